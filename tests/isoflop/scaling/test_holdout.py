from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.holdout import (
    Outcome,
    Score,
    Split,
    budgets,
    earlier,
    largest,
    outcomes,
    rolling,
    score,
    summary,
    widening,
)
from isoflop.scaling.interval import Refusal
from isoflop.scaling.parametric import ParametricFit, bootstrap, fit

World = Callable[..., pd.DataFrame]
SIZE = "params_without_input_embedding"


def scored(table: pd.DataFrame, form: str, splits: list[Split], **options: int) -> Score:
    size, tokens, flops, loss = (
        table[name].to_numpy(float) for name in (SIZE, "tokens", "flops", "loss")
    )

    def lay(kept: np.ndarray) -> ParametricFit | Refusal:
        return fit(size[kept], tokens[kept], loss[kept], form=form)

    found = score(lay, splits, size, tokens, flops, loss, **options)
    assert isinstance(found, Score)
    return found


def test_budgets_are_found_where_there_are_any() -> None:
    assert budgets(np.array([3e11, 1e11, 1.02e11, 1e12, 3.05e11, 1e12])).tolist() == [
        1, 0, 0, 2, 1, 2,
    ]  # fmt: skip
    spread = np.geomspace(1e10, 1e14, 80)
    assert np.bincount(budgets(spread)).tolist() == [10] * 8
    same = np.repeat(np.geomspace(1e10, 1e14, 40), [1, 3] * 20)
    groups = budgets(same)
    assert all(len(set(groups[same == flops])) == 1 for flops in same)


def test_what_is_held_out_is_always_larger() -> None:
    flops = np.random.default_rng(0).permutation(np.repeat(np.geomspace(1e10, 1e13, 6), 5))
    assert len(largest(flops)) == 1 and len(rolling(flops)) == 3
    for split in (*largest(flops), *rolling(flops)):
        assert flops[split.train].max() < flops[split.test].min()


def test_the_right_form_predicts_better_than_a_wrong_one(world: World) -> None:
    table = world(
        {"a": {"alpha": 0.5, "beta": 0.25}}, noise=0.001, budgets=(1e10, 1e11, 1e12, 1e13)
    )
    splits = rolling(table["flops"].to_numpy())
    right, wrong = (scored(table, form, splits) for form in ("chinchilla", "kaplan"))
    assert right.error < 0.01 and 2 * right.error < wrong.error
    assert right.reach == pytest.approx(10) and right.points == 14 and right.splits == 2


def test_prediction_intervals_cover_runs_held_out(world: World) -> None:
    """Of larger runs about 95 % lie within the intervals that the smaller ones gave."""
    found = []
    for seed in range(16):
        table = world({"a": {}}, noise=0.004, seed=seed, budgets=(1e10, 1e11, 1e12, 1e13))
        one = scored(table, "chinchilla", largest(table["flops"].to_numpy()), resamples=100)
        assert one.covered is not None
        found.append(one.covered)
    assert 0.85 <= np.mean(found) <= 1.0


def test_noise_widens_the_prediction(world: World) -> None:
    table = world({"a": {}}, noise=0.01)
    law = fit(table[SIZE], table["tokens"], table["loss"])
    assert isinstance(law, ParametricFit)
    resampled = bootstrap(law, resamples=300)
    n, d = float(table[SIZE].median()), float(table["tokens"].median())
    mean, one = (resampled.predict(n, d, noise=noise) for noise in (False, True))
    assert one.high - one.low > 1.5 * (mean.high - mean.low)
    low, high = resampled.bands(np.array([2 * n, n]), np.array([d, d]))
    assert (low[1], high[1]) == pytest.approx((mean.low, mean.high))


def test_too_few_budgets_refuse(world: World) -> None:
    table = world({"a": {}}, budgets=(1e11,), sizes=7)
    size, tokens, flops, loss = (
        table[name].to_numpy(float) for name in (SIZE, "tokens", "flops", "loss")
    )
    splits = rolling(flops)
    found = score(lambda m: fit(size[m], tokens[m], loss[m]), splits, size, tokens, flops, loss)
    assert isinstance(found, Refusal)


def test_earlier_origins_teach_how_wide_intervals_must_be() -> None:
    """Intervals half as wide as they should be: the second origin's are stretched to hold."""
    random, origins = np.random.default_rng(0), []
    for _ in range(3):
        measured = 3.0 * np.exp(0.01 * random.normal(size=200))
        arm = np.full(200, 0.0098)
        low, high = 3.0 * np.exp(-arm), 3.0 * np.exp(arm)
        origins.append(Outcome(np.full(200, 3.0), measured, 2.0, low, high))
    found = summary(origins[1:], origins[:1])
    assert found.covered == pytest.approx(0.67, abs=0.06)
    assert found.calibrated == pytest.approx(0.95, abs=0.04)
    assert found.widening == pytest.approx(2.0, rel=0.15)
    assert summary(origins[:1]).calibrated is None  # nothing was before it
    assert widening([np.full(10, 0.5)]) == 1.0  # intervals are never narrowed


def test_published_runs_ask_for_wider_intervals(published: pd.DataFrame) -> None:
    """The scatter of the published runs grows at few tokens per parameter: plain intervals of the
    largest budget hold far fewer than 95 %, calibrated ones more."""
    table = published[published["loss"] < published["loss"].nlargest(5).iloc[-1]]
    n, d, c, loss = (table[name].to_numpy(float) for name in ("N", "D", "C", "loss"))

    def lay(kept: np.ndarray) -> ParametricFit | Refusal:
        return fit(n[kept], d[kept], loss[kept], flops=c[kept], form="tied")

    before, after = (
        outcomes(lay, splits(c), n, d, c, loss, resamples=60) for splits in (earlier, rolling)
    )
    assert not isinstance(before, Refusal) and not isinstance(after, Refusal)
    assert len(before) == 2 and len(after) == 4
    found = summary(after, before)
    assert found.covered is not None and found.calibrated is not None
    assert found.covered < 0.92 < found.calibrated


def test_one_failed_run_makes_no_interval_meaningless(world: World) -> None:
    """A loss four times as high as it should be, among the runs held out."""
    table = world({"a": {}}, noise=0.004, seed=3, budgets=(1e10, 1e11, 1e12, 1e13))
    table.loc[len(table) - 3, "loss"] *= 4
    found = scored(table, "chinchilla", rolling(table["flops"].to_numpy()), resamples=100)
    assert found.error > 0.05  # it is not hidden
    assert found.widening is not None and found.widening < 4


def test_an_outlier_among_the_runs_shifts_no_prediction(world: World) -> None:
    """A robust law passes by it, and so do the runs that scatter about the law."""
    table = world({"a": {}}, noise=0.004, seed=3, sizes=20, budgets=(1e10, 1e11, 1e12, 1e13))
    table.loc[5, "loss"] *= 4
    law = fit(table[SIZE], table["tokens"], table["loss"])
    assert isinstance(law, ParametricFit)
    found = bootstrap(law, resamples=200).predict(
        float(table[SIZE].median()), float(table["tokens"].median()), noise=True
    )
    assert 0.97 < found.low / found.value < 1 < found.high / found.value < 1.03
