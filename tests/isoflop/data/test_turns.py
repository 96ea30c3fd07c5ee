"""Do the sources of a mixture keep to their shares, at every row?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data.turns import LONGEST, Turns, period

whole = st.lists(st.integers(1, 200), min_size=1, max_size=8)


@given(whole)
def test_shares_hold_at_every_row(weights: list[int]) -> None:
    turns = Turns(weights)
    rows = np.arange(3 * sum(turns.counts))
    sources, _ = turns.of(rows)
    for source, weight in enumerate(weights):
        given = np.cumsum(sources == source)
        assert (np.abs(given - (rows + 1) * weight / sum(weights)) < 1 - 1e-9).all()


@given(whole, st.integers(0, 10**15))
def test_any_row_can_be_looked_up(weights: list[int], first: int) -> None:
    turns = Turns(weights)
    sources, before = turns.of(np.arange(first, first + 50))
    for source in range(len(weights)):
        given = before[sources == source]
        assert np.array_equal(given, turns.taken(first)[source] + np.arange(len(given)))
    assert sum(turns.taken(first)) == first


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=5))
def test_shares_that_do_not_repeat_are_rounded(weights: list[float]) -> None:
    counts = period(tuple(weights))
    assert min(counts) >= 1 and sum(counts) <= LONGEST
    for count, weight in zip(counts, weights, strict=True):
        assert count / sum(counts) == pytest.approx(
            weight / math.fsum(weights), abs=len(weights) / LONGEST
        )


def test_round_shares_have_a_short_period() -> None:
    assert period((0.7, 0.3)) == (7, 3)
    assert period((2, 2)) == (1, 1)
    assert period((5.0,)) == (1,)
    assert sum(period((math.pi, math.e, 1e-9))) == LONGEST
    assert Turns((0.7, 0.2, 0.1)).of(np.arange(10))[0].tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 0, 2]


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan])
def test_a_weight_that_is_none_is_named(weight: float) -> None:
    with pytest.raises(ValueError, match=rf"weight is {weight}; it must be above 0"):
        Turns((1, weight))
