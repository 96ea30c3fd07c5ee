"""Do 95 % intervals hold the truth 95 times in 100?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from isoflop.rollouts.statistics import Aggregate, Draw, jackknife, mean


def groups(prompts: int, seeds: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(prompts), seeds)


def covers(aggregate: Aggregate, truth: float) -> bool:
    assert aggregate.low is not None and aggregate.high is not None
    return aggregate.low <= truth <= aggregate.high


@pytest.mark.parametrize("draw", ["prompts", "nested"])
@pytest.mark.parametrize("prompts", [8, 24])
@pytest.mark.parametrize("between", [0.0, 1.0])
def test_coverage_of_means(prompts: int, between: float, draw: Draw) -> None:
    """With and without differences between prompts, 4 seeds each."""
    rng = np.random.default_rng(1)
    hits, errors, values = [], [], []
    for _ in range(500):
        effect = between * rng.normal(size=(prompts, 1))
        drawn = (effect + rng.normal(size=(prompts, 4))).ravel()
        found = mean(drawn, groups(prompts, 4), resamples=600, draw=draw)
        hits.append(covers(found, 0.0))
        errors.append(found.standard_error or 0.0)
        values.append(found.value or 0.0)
    assert 0.92 <= np.mean(hits) <= 0.98
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.12)


@pytest.mark.parametrize("draw", ["prompts", "nested"])
def test_coverage_of_shares(draw: Draw) -> None:
    """Flags whose probability differs between prompts."""
    rng = np.random.default_rng(2)
    hits = []
    for _ in range(500):
        chance = rng.beta(2, 3, size=(16, 1))
        flags = (rng.random((16, 4)) < chance).ravel().astype(float)
        hits.append(covers(mean(flags, groups(16, 4), share=True, resamples=600, draw=draw), 0.4))
    assert 0.92 <= np.mean(hits) <= 0.98


def test_coverage_of_the_jackknife() -> None:
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(500):
        drawn = (rng.normal(size=(10, 1)) + rng.normal(size=(10, 4)) + 1).ravel()

        def squared(kept: NDArray[np.bool_], drawn: NDArray[np.float64] = drawn) -> float:
            return float(drawn[kept].mean()) ** 2

        hits.append(covers(jackknife(squared, groups(10, 4), name="square"), 1.0))
    assert 0.91 <= np.mean(hits) <= 0.98


def test_ignoring_the_prompts_would_be_too_sure() -> None:
    rng = np.random.default_rng(4)
    drawn = (rng.normal(size=(8, 1)) + 0.1 * rng.normal(size=(8, 8))).ravel()
    clustered = mean(drawn, groups(8, 8)).standard_error
    naive = mean(drawn, np.arange(64)).standard_error
    assert clustered is not None and naive is not None
    assert clustered > 2 * naive


def test_drawing_the_seeds_again_would_count_their_noise_twice() -> None:
    """Why only prompts are drawn: of prompts that do not differ, a bootstrap at both levels claims
    about root 2 times the error there is."""
    rng = np.random.default_rng(9)
    prompts, seeds, resamples = 16, 4, 300
    once, twice, values = [], [], []
    for _ in range(200):
        drawn = rng.normal(size=(prompts, seeds))
        chosen = rng.integers(prompts, size=(resamples, prompts))
        inner = rng.integers(seeds, size=(resamples, prompts, seeds))
        twice.append(drawn[chosen[:, :, None], inner].mean(axis=(1, 2)).std())
        found = mean(drawn.ravel(), groups(prompts, seeds), resamples=resamples)
        once.append(found.standard_error or 0.0)
        values.append(drawn.mean())
    true = np.std(values)
    assert np.mean(once) == pytest.approx(true, rel=0.1)
    assert np.mean(twice) > 1.25 * true


def test_drawing_at_both_levels_agrees_with_the_prompts_where_these_are_enough() -> None:
    rng = np.random.default_rng(10)
    drawn = (rng.normal(size=(64, 1)) + rng.normal(size=(64, 4))).ravel()[:-2]  # one has two only
    one, two = (
        mean(drawn, groups(64, 4)[:-2], draw=draw, resamples=4000) for draw in ("prompts", "nested")
    )
    assert one.value == two.value and one.standard_error is not None
    assert two.standard_error == pytest.approx(one.standard_error, rel=0.07)
    assert one.low == pytest.approx(two.low, abs=0.2 * one.standard_error)
    assert two.estimator == "mean, bootstrap over prompts, then seeds"
    alone = mean(drawn[::4], np.arange(64), draw="nested")  # a seed for each: nothing to draw again
    assert alone.standard_error == pytest.approx(drawn[::4].std(ddof=1) / 8, rel=0.05)


def test_nulls_are_left_out_and_counted() -> None:
    found = mean([1.0, None, 3.0, math.nan, math.inf], [0, 0, 1, 1, 2])
    assert (found.value, found.prompts, found.rollouts, found.missing) == (2.0, 2, 2, 3)
    nothing = mean([None, None], [0, 1])
    assert (nothing.value, nothing.low, nothing.estimator) == (None, None, "no values")
    assert (nothing.rollouts, nothing.missing) == (0, 2)
    assert mean([], []).value is None


def test_equal_arguments_give_equal_results() -> None:
    values = np.random.default_rng(5).random(32)
    assert mean(values, groups(8, 4)) == mean(values, groups(8, 4))
    assert mean(values, groups(8, 4)) != mean(values, groups(8, 4), seed=1)


def test_prompts_need_not_be_in_order() -> None:
    values = np.random.default_rng(6).random(32)
    shuffled = np.random.default_rng(7).permutation(32)
    first, second = mean(values, groups(8, 4)), mean(values[shuffled], groups(8, 4)[shuffled])
    assert first.value == pytest.approx(second.value)
    assert first.low == pytest.approx(second.low)


def test_one_prompt_speaks_of_its_seeds() -> None:
    found = mean([1.0, 2.0, 3.0, 4.0], [5, 5, 5, 5])
    assert found.estimator == "mean, bootstrap over seeds of one prompt"
    assert found.standard_error == pytest.approx(math.sqrt(5 / 3 / 4), rel=0.1)


def test_all_equal_is_not_certain() -> None:
    none = mean([0.0] * 20, groups(5, 4), share=True)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 20))
    every = mean([1.0] * 20, groups(5, 4), share=True)
    assert every.high == 1.0
    assert every.low == pytest.approx(0.025 ** (1 / 20))
    assert mean([0.0] * 20, groups(5, 4)).high is None, "not a share: nothing bounds it"
    assert mean([3.0], [0]).low is None


def test_jackknife_of_a_mean_is_the_textbook_error() -> None:
    values = np.random.default_rng(8).random(12)
    found = jackknife(lambda kept: float(values[kept].mean()), np.arange(12), name="mean")
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(12))
    assert found.estimator == "mean, jackknife over prompts"


def test_jackknife_without_enough_says_so() -> None:
    values = np.arange(8.0)
    short = jackknife(lambda kept: 1.0 if kept.all() else None, values.astype(int), name="n")
    assert (short.value, short.low) == (1.0, None)
    assert "too few tokens" in short.estimator
    assert jackknife(lambda kept: None, [0, 1], name="n").value is None
    assert jackknife(lambda kept: 1.0, [], name="n").value is None
    assert jackknife(lambda kept: 1.0, [0], name="n").low is None


def test_values_and_prompts_must_match() -> None:
    with pytest.raises(ValueError, match="2 values need as many prompts, not 1"):
        mean([1.0, 2.0], [0])
