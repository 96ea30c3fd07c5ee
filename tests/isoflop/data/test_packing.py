"""Does packing waste no more room than the textbook's, and lose nothing?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.packing import best_fit


def textbook(sizes: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing, a piece at a time."""
    rows: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        fits = [row for row in rows if sum(row) + size <= capacity]
        if fits:
            max(fits, key=sum).append(size)
        else:
            rows.append([size])
    return rows


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c)))))
def test_it_packs_as_the_textbook_does(case: tuple[int, list[int]]) -> None:
    """The same rooms are left, whichever of two rows with the same room takes a piece."""
    capacity, sizes = case
    bins = best_fit(np.array(sizes, dtype=np.int64), capacity)
    filled = np.bincount(bins, weights=np.array(sizes)) if sizes else np.array([])
    assert sorted(filled.tolist()) == sorted(sum(row) for row in textbook(sizes, capacity))


def test_a_million_documents_fill_their_rows() -> None:
    """Long-tailed lengths, as text has them: hardly any padding is left."""
    draws = np.random.default_rng(0).lognormal(5.5, 1.2, 1_000_000)
    sizes = np.clip(draws, 2, 2049).astype(np.int64)
    bins = best_fit(sizes, 2049)
    filled = np.bincount(bins, weights=sizes)
    assert filled.max() <= 2049
    assert filled.mean() > 0.999 * 2049
    assert np.array_equal(bins, best_fit(sizes, 2049))


@pytest.mark.parametrize("size", [0, 9])
def test_sizes_that_do_not_fit_are_named(size: int) -> None:
    with pytest.raises(ValueError, match=rf"sizes are from .*{size}.* from 1 to 8"):
        best_fit(np.array([4, size]), 8)
