from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.holdout import Score, Split, budgets, largest, rolling, score
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
