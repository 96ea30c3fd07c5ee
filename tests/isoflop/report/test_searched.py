"""Is it said, and drawn, what a search found?"""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from isoflop.report.searched import Searched
from isoflop.space import Findings, Settings, Tried, choice, log

SPACE = {"lr": log(1e-4, 1e-2), "beta2": choice(0.9, 0.95, 0.99), "arch": "llama"}
POINTS = [(2e-4, 0.99), (1e-3, 0.9), (9.9e-3, 0.99)]


def searched(values: list[tuple[float, ...]], best: tuple[str, ...], **settings: Any) -> Searched:
    """Three trials that finished, and one that was ended early."""
    tried = [
        Tried(number=i, run=f"run-{i}", point={"lr": lr, "beta2": beta2, "arch": "llama"},
              status="finished", values=told, kept=True)
        for i, ((lr, beta2), told) in enumerate(zip(POINTS, values, strict=True))
    ]  # fmt: skip
    early = Tried(number=3, run="run-3", point=tried[0].point, status="pruned", values=(),
                  kept=True, why="val/loss is 9 after 1000 tokens (median)")  # fmt: skip
    asked = Settings(trials=4, **settings)
    shares = tuple({"lr": 0.7, "beta2": 0.1} for _ in asked.aims)
    found = Findings(
        space=SPACE, settings=asked, tried=(*tried, early), best=best, importance=shares
    )
    runs = [one.run for one in found.tried]
    return Searched(found, pd.DataFrame({"run": runs, "label": [f"point {run}" for run in runs]}))


ONE = [(3.0,), (2.5,), (2.0,)]
TWO = [(3.0, 1.0), (2.5, 0.5), (2.0, 0.9)]  # the first loses to both others


def test_an_optimum_at_the_end_of_its_range_is_no_optimum() -> None:
    said = searched(ONE, ("run-2",)).text
    assert "Of 3 trials that ended, point run-2 is the best: held-out loss 2 nats" in said
    assert "0.5 better than the next" in said
    assert "But lr lies at the upper end of its range" in said
    assert "What moves held-out loss here: lr 70%." in said and "beta2" not in said
    assert "1 trials were ended early" in said


def test_a_front_names_its_ends() -> None:
    both = searched(TWO, ("run-1", "run-2"), minimise=("val/loss", "flops"))
    assert "2 are such that no other is better in one aim" in both.text
    assert "point run-2 has the best held-out loss, 2" in both.text
    assert "point run-1 has the best flops, 0.5" in both.text
    assert [row[1] for row in both.rows] == ["point run-2", "point run-1"]
    marked = both.frame().set_index("run")["best"]
    assert list(marked[marked].index) == ["run-1", "run-2"]
    assert both.plots()["pareto"]["data"][0]["x"] == [2.0, 2.5]


def test_a_front_is_seen_beside_held_out_text() -> None:
    """Where the metric is of rollouts, and not itself a distance from it."""
    aims = {"minimise": ("val/loss", "rollout/held/repeated_32")}
    both = searched(TWO, ("run-1", "run-2"), **aims)
    known = {"rollout/held/repeated_32": {"run-1": 0.2, "run-2": 0.2}, "rollout/other": {}}
    beside = Searched(both.found, both.table, known)
    assert beside.held == [None, 0.2]
    assert "Held-out text has held/repeated 32 0.2." in beside.text
    assert "Held-out text" not in both.text
    pareto = dict(beside.figures())["pareto"]
    assert pareto is not None
    (panel,) = pareto.axes
    legend = panel.get_legend()
    assert legend is not None
    assert [label.get_text() for label in legend.get_texts()] == ["front", "held-out text"]
    near = searched(TWO, ("run-1",), minimise=("val/loss",), near=("rollout/held/repeated_32",))
    assert Searched(near.found, near.table, known).held == [None, None]


@pytest.mark.parametrize(("values", "best", "settings", "names"), [
    (ONE, ("run-2",), {}, ["search", "axes", "importance"]),
    (TWO, ("run-1", "run-2"), {"minimise": ("val/loss", "flops")},
     ["pareto", "search", "axes", "importance"]),
], ids=["one aim", "two aims"])  # fmt: skip
def test_figures_show_every_axis_and_choices_in_their_order(
    values: list[tuple[float, ...]],
    best: tuple[str, ...],
    settings: dict[str, Any],
    names: list[str],
) -> None:
    drawn = dict(searched(values, best, **settings).figures())
    assert list(drawn) == names
    axes = drawn["axes"]
    assert axes is not None
    assert len(axes.axes) == 2 * len(values[0]), "the axis that is held has no panel"
    ticks = [label.get_text() for label in axes.axes[1].get_xticklabels()]
    assert ticks == ["0.9", "0.95", "0.99"], "also the one that nobody tried"
    (points,) = axes.axes[1].collections
    assert [x for x, _ in points.get_offsets().tolist()] == [2, 0, 2]  # type: ignore[union-attr]
