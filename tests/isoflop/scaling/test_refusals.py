"""Is each refusal of the right type, and would the runs that it names cure it?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.columns import Columns, runs
from isoflop.scaling.interval import Refusal
from isoflop.scaling.isoflop import exponents, minima
from isoflop.scaling.parametric import ParametricFit, bootstrap, fit

World = Callable[..., pd.DataFrame]
SIZE = "params_without_input_embedding"


def law(size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    loss: np.ndarray = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.3
    return loss


@pytest.mark.parametrize(
    ("reason", "size", "tokens"),
    [
        ("too few points", [1e7, 1e8, 1e9, 1e9], [1e9, 1e10, 1e10, 1e9]),
        ("one size only", [1e8] * 8, np.geomspace(1e9, 1e11, 8)),
        ("one token count only", np.geomspace(1e7, 1e9, 8), [1e10] * 8),
        ("one line only", np.geomspace(1e7, 1e9, 8), np.geomspace(2e8, 2e10, 8)),
    ],
)
def test_the_named_runs_cure_a_refused_law(
    reason: str, size: list[float], tokens: list[float]
) -> None:
    n, d = np.array(size), np.array(tokens)
    refusal = fit(n, d, law(n, d))
    assert isinstance(refusal, Refusal) and refusal.reason == reason and refusal.runs
    named = refusal.runs
    for run in named:
        assert run.flops == pytest.approx(6 * run.size * run.tokens)
    n = np.concatenate([n, [run.size for run in named]])
    d = np.concatenate([d, [run.tokens for run in named]])
    assert isinstance(fit(n, d, law(n, d)), ParametricFit)
    assert str(named[0]) in str(refusal) and refusal.record()["runs"][0]["N"] == named[0].size


@pytest.mark.parametrize("side", ["smaller", "larger"])
def test_sizes_beyond_the_edge_find_the_minimum(world: World, side: str) -> None:
    table = world({"a": {}}, noise=0.0, budgets=(1e12,), sizes=9)
    table = table.sort_values(SIZE)
    kept = table.iloc[4:] if side == "smaller" else table.iloc[:5]
    (found,) = minima(kept)
    assert isinstance(found.status, Refusal) and found.status.reason == "optimum at the edge"
    rows = [kept]
    for run in found.status.runs:
        row = kept.iloc[:1].assign(**{SIZE: run.size, "tokens": run.tokens, "flops": run.flops})
        rows.append(row.assign(loss=1.8 + 25 * run.size**-0.33 + 120 * run.tokens**-0.34))
        assert run.flops == pytest.approx(1e12)
    (cured,) = minima(pd.concat(rows))
    assert cured.status == "interior"


def test_one_budget_asks_for_another(world: World) -> None:
    (growth,) = exponents(minima(world({"a": {}}, budgets=(1e12,)), resamples=50))
    assert isinstance(growth.status, Refusal) and growth.status.reason == "too few budgets"
    flops = {round(run.flops) for run in growth.status.runs}
    assert len(growth.status.runs) == 5 and flops == {round(1e12 / 4)}


def frame(**columns: object) -> pd.DataFrame:
    size, tokens = (a.ravel() for a in np.meshgrid([1e7, 1e8, 1e9], [1e9, 4e9, 1.6e10]))
    made = pd.DataFrame({"N": size, "D": tokens, "loss": law(size, tokens)})
    return made.assign(**columns)


def test_losses_before_the_end_are_left_out_and_named() -> None:
    table = frame(max_tokens=[2e9, *[1e9] * 2, *[4e9] * 3, *[1.6e10] * 2, np.nan])
    found = runs(table, Columns())
    assert len(found.frame) == 8
    (refusal,) = found.refusals
    assert refusal.reason == "mid-schedule losses" and "(the first at 50 %)" in str(refusal)
    assert [(run.size, run.tokens) for run in refusal.runs] == [pytest.approx((1e7, 1e9))]
    assert len(runs(table, Columns(midway=True)).frame) == 9
    assert not runs(table, Columns(midway=True)).refusals


def test_checkpoints_betray_themselves() -> None:
    """Even steps from 0 are checkpoints; a grid of lengths by factors is not."""
    tokens = np.tile(np.arange(1, 9) * 1e9, 3)
    size = np.repeat([1e7, 1e8, 1e9], 8)
    table = pd.DataFrame({"N": size, "D": tokens, "loss": law(size, tokens)})
    (refusal,) = runs(table, Columns()).refusals
    assert refusal.reason == "mid-schedule losses" and "21 of 24" in refusal.explanation
    assert not runs(frame(), Columns()).refusals
    named = frame(id=["a", "b", "c"] * 3)
    (refusal,) = runs(named, Columns(run="id")).refusals
    assert "6 of 9" in refusal.explanation


def test_diverged_cells_are_named() -> None:
    table = frame(status=["finished"] * 7 + ["diverged"] * 2)
    table.loc[7:, "loss"] = np.nan
    found = runs(table, Columns())
    assert len(found.frame) == 7
    (refusal,) = found.refusals
    assert refusal.reason == "diverged cells" and "(2 diverged)" in str(refusal)
    assert [run.size for run in refusal.runs] == pytest.approx([1e8, 1e9])


def test_rows_of_one_run_are_drawn_together() -> None:
    """Ten copies of each row of a run tell no more than one: the interval must not shrink."""
    random = np.random.default_rng(5)
    size, tokens = np.exp(random.uniform(16, 21, 30)), np.exp(random.uniform(20, 25, 30))
    loss = law(size, tokens) * np.exp(0.01 * random.normal(size=30))
    one = fit(size, tokens, loss)
    many = fit(*(np.tile(a, 10) for a in (size, tokens, loss)))
    assert isinstance(one, ParametricFit) and isinstance(many, ParametricFit)
    widths = [
        np.std(bootstrap(law, resamples=200, groups=groups).draws("E"))
        for law, groups in ((one, None), (many, np.tile(np.arange(30), 10)), (many, None))
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.05) and widths[2] < 0.5 * widths[0]
