from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from isoflop.scaling import plots
from isoflop.scaling.isoflop import minima
from isoflop.scaling.parametric import ParametricFit, fit

World = Callable[..., pd.DataFrame]


def test_the_envelope_keeps_what_no_cheaper_run_beats() -> None:
    flops = np.array([1e11, 1.01e11, 1e12, 2e12, 4e12])
    loss = np.array([4.0, 3.9, 3.5, 3.6, 3.2])
    x, y = plots._envelope(flops, loss)
    assert x.tolist() == [1.01e11, 1e12, 4e12]
    assert y.tolist() == [3.9, 3.5, 3.2]


def test_isoflop_panels_share_their_range_and_hold_every_run(world: World) -> None:
    table = world({"a": {}, "b": {"E": 2.5}})
    figure = plots.isoflop_curves(table, minima(table, resamples=50))
    assert figure is not None
    left, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    assert left.get_ylim() == right.get_ylim()
    drawn = sum(len(line.get_xdata()) for line in left.lines if line.get_linestyle() == "None")
    assert drawn >= 21  # the runs; the minima are stars beside them


def test_a_refused_minimum_is_drawn_as_such(world: World) -> None:
    table = world({"a": {}}, budgets=(1e11,)).head(4)
    figure = plots.isoflop_curves(table, minima(table))
    assert figure is not None
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["1e11, no minimum"]


def test_the_law_and_its_residuals(world: World) -> None:
    table = world({"a": {}})
    law = fit(table["params_without_input_embedding"], table["tokens"], table["loss"])
    assert isinstance(law, ParametricFit)
    figure = plots.parametric({"a": law})
    assert figure is not None
    points = figure.axes[0].collections[0].get_offsets()
    assert np.allclose(np.asarray(points)[:, 0], table["loss"])
    predicted = law.predict(table["params_without_input_embedding"], table["tokens"])
    assert np.allclose(np.asarray(points)[:, 1], predicted)
    low, high = figure.axes[1].get_xlim()
    assert low < table["params_without_input_embedding"].min() < high


def test_there_is_no_figure_where_there_is_nothing_to_draw(world: World) -> None:
    none = world({"a": {}}).assign(status="failed")
    assert plots.loss_against_compute(none, {}) is None
    assert plots.isoflop_curves(none, minima(none)) is None
    assert plots.parametric({}) is None
    assert plots.loss_curves(none, {}) is None
    assert plots.rollouts_against_compute(world({"a": {}})) is None
    assert plots.rollouts_over_training(none, {}) is None


def test_step_0_of_the_rollouts_is_kept_although_it_has_read_nothing(world: World) -> None:
    table = world({"a": {}}).head(1)
    curve = pd.DataFrame({"tokens": [0.0, 10.0, 100.0], "rollout/loop": [1.0, np.nan, 0.5]})
    figure = plots.rollouts_over_training(table, {table["run"].iloc[0]: curve})
    assert figure is not None
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.0, 100.0]


def test_what_a_study_of_memory_is_after_comes_first() -> None:
    names = [f"rollout/{s}/{m}" for m in ("loop", "recalled", "longest_copy") for s in ("t", "h")]
    assert plots.telling(names)[:2] == ["rollout/t/recalled", "rollout/h/recalled"]
    assert plots.telling(names)[2:4] == ["rollout/t/longest_copy", "rollout/h/longest_copy"]
    one = [name for name in names if name != "rollout/t/recalled"]  # no set of prefixes and control
    assert plots.telling(one)[0] == "rollout/t/loop" and len(plots.telling(one)) == 5
