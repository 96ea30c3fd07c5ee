"""Is every epoch a permutation, as good as random, also where it is computed and not sorted?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from isoflop.data import order
from isoflop.data.order import ROUNDS, Order, permuted

keys = st.integers(0, 2**64 - 1).map(
    lambda seed: np.random.Philox(key=np.uint64(seed)).random_raw(ROUNDS)
)


@given(st.integers(1, 700), keys)
def test_it_is_a_permutation(count: int, keys: order.Words) -> None:
    found = permuted(np.arange(count), count, keys)
    assert np.array_equal(np.sort(found), np.arange(count))


@given(st.integers(1, 2**40), keys, st.data())
def test_different_places_go_to_different_rows(
    count: int, keys: order.Words, data: st.DataObject
) -> None:
    places = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=50))), dtype=int)
    found = permuted(places, count, keys)
    assert len(set(found.tolist())) == len(places)
    assert ((found >= 0) & (found < count)).all()


def plausible(counts: order.Places) -> bool:
    """Pearson's chi-squared against equal counts; false for one random table in a million."""
    expected = counts.sum() / counts.size
    statistic = float(((counts - expected) ** 2).sum() / expected)
    return bool(1e-6 < chi2.sf(statistic, counts.size - 1) <= 1 - 1e-6)


@pytest.mark.parametrize("count", [37, 100])
def test_permutations_are_uniform(count: int) -> None:
    """Over many keys: where a place goes, and where two neighbours go together."""
    streams = np.random.Philox(key=count)
    landed = np.array(
        [permuted(np.arange(3), count, streams.random_raw(ROUNDS)) for _ in range(8_000)]
    )
    for place in range(3):
        assert plausible(np.bincount(landed[:, place], minlength=count))
    gaps = (landed[:, 1] - landed[:, 0]) % count
    assert plausible(np.bincount(gaps, minlength=count)[1:])
    halves = (landed >= count // 2) @ np.array([1, 2, 4])
    chance = np.bincount(halves, minlength=8) / len(landed)
    assert np.abs(chance - 1 / 8).max() < 0.025


def test_a_large_epoch_is_spread_evenly() -> None:
    """Consecutive rows of one epoch of 10**9: near and far ones as often as by chance."""
    count = 10**9 + 7
    big = Order(count=count, room=100, seed=3)
    rows, offsets = big.visits(np.arange(5 * count + 10_000, 5 * count + 210_000))
    assert len(np.unique(rows)) == 200_000 and len(set(offsets.tolist())) == 1
    assert plausible(np.bincount(rows * 1000 // count, minlength=1000))
    gaps = np.diff(rows) % count
    assert plausible(np.bincount(gaps * 1000 // count, minlength=1000))
    assert plausible(np.bincount(rows % 128, minlength=128))


def test_both_ways_are_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "SORTED_BELOW", 500)
    for count in (499, 500):
        epochs = Order(count=count, room=9, seed=1)
        rows, offsets = epochs.visits(np.arange(4 * count))
        for epoch in range(4):
            inside = slice(epoch * count, (epoch + 1) * count)
            assert np.array_equal(np.sort(rows[inside]), np.arange(count))
            assert len(set(offsets[inside].tolist())) == 1
        assert len(set(offsets.tolist())) > 1
        assert len({tuple(rows[e * count : (e + 1) * count]) for e in range(4)}) == 4
        again, _ = epochs.visits(np.arange(3 * count, count, -1))
        assert np.array_equal(again, rows[3 * count : count : -1])


def test_the_computed_order_is_fixed_for_ever() -> None:
    rows, offsets = Order(count=2**24, room=64, seed=7).visits(np.array([0, 1, 2**24, 2**25 - 1]))
    assert rows.tolist() == [1921666, 12066561, 13449269, 15793751]
    assert offsets.tolist() == [36, 36, 29, 29]
