from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.interval import Interval
from isoflop.scaling.objective import named
from isoflop.scaling.parametric import ParametricFit, fit
from isoflop.scaling.profile import CHI2, profile, skewed

World = Callable[..., pd.DataFrame]
SIZE = "params_without_input_embedding"
BUDGETS = (1e10, 1e11, 1e12, 1e13)


def law(table: pd.DataFrame, name: str = "l2", **pinned: float) -> ParametricFit:
    found = fit(table[SIZE], table["tokens"], table["loss"], objective=named(name), pinned=pinned)
    assert isinstance(found, ParametricFit)
    return found


@pytest.mark.parametrize("parameter", ["E", "B", "alpha"])
def test_the_ends_are_where_a_pinned_fit_is_too_bad(world: World, parameter: str) -> None:
    table = world({"a": {}}, noise=0.003, budgets=BUDGETS)
    best = law(table)
    found = profile(best, parameter).interval
    noise = 2 * best.objective / (best.points - 5)  # variance of ln L about the law
    for end in (found.low, found.high):
        held = law(table, **{parameter: end})
        assert 2 * (held.objective - best.objective) / noise == pytest.approx(CHI2, rel=0.05)
        assert held.values[parameter] == pytest.approx(end, rel=1e-6)


@pytest.mark.parametrize("name", ["l2", "huber", pytest.param("l1", marks=pytest.mark.slow)])
def test_the_truth_lies_inside_at_the_nominal_rate(world: World, name: str) -> None:
    inside = []
    for seed in range(12):
        best = law(world({"a": {}}, seed=seed, noise=0.003, budgets=BUDGETS, sizes=12), name)
        for parameter, truth in (("E", 1.8), ("A", 25.0), ("B", 120.0), ("alpha", 0.33)):
            found = profile(best, parameter).interval
            inside.append(found.low <= truth <= found.high)
    assert 0.8 <= np.mean(inside) <= 1.0


def test_what_is_pinned_stays(world: World) -> None:
    table = world({"a": {}}, noise=0.003)
    held = law(table, E=1.8, alpha=0.33)
    assert held.values["E"] == pytest.approx(1.8) and held.alpha == pytest.approx(0.33)
    assert held.free == 3
    found = profile(held, "beta").interval
    free = profile(law(table), "beta").interval
    assert found.high - found.low < free.high - free.low
    with pytest.raises(ValueError, match="parameter is 'E'; a profile is known for A, B, beta"):
        profile(held, "E")


def test_skew() -> None:
    assert not skewed(Interval(1.0, 0.5, 1.6)) and skewed(Interval(1.0, 0.5, 3.0))
    assert skewed(Interval(1.0, 0.0, np.inf))
