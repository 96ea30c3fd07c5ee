"""Is what an index says was read what a search of the text finds?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoflop.rollouts.novelty import ORDERS, SPAN, Reading, Seen

Ids = NDArray[np.int64]


def runs(rows: Ids, n: int) -> set[tuple[int, ...]]:
    return {tuple(row[i : i + n].tolist()) for row in rows for i in range(len(row) - n + 1)}


def novel(rows: Ids, text: Ids, n: int) -> float | None:
    known = runs(rows, n)
    own = [tuple(text[i : i + n].tolist()) for i in range(len(text) - n + 1)]
    return sum(gram not in known for gram in own) / len(own) if own else None


def longest(rows: Ids, text: Ids) -> int:
    for n in range(len(text), SPAN - 1, -1):
        if runs(text[None, :], n) & runs(rows, n):
            return n
    return 0


def covered(rows: Ids, text: Ids) -> set[int]:
    """The tokens that stand in an n-gram of `SPAN` which was read."""
    known = runs(rows, SPAN)
    starts = range(len(text) - SPAN + 1)
    hits = [i for i in starts if tuple(text[i : i + SPAN].tolist()) in known]
    return {place for i in hits for place in range(i, i + SPAN)}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), vocab=st.sampled_from([2, 5, 60]), parts=st.integers(1, 3))
def test_copies_are_what_a_search_finds(seed: int, vocab: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(vocab, size=(6, 40))
    seen = Seen()
    filed = Seen(part=90)  # two rows in each part
    for part in np.array_split(rows, parts):
        seen.add(part)
        filed.add(part)
    assert [part.tokens for part in filed.parts] == [80, 80, 80, 0]
    assert isinstance(filed.parts[0].keys, np.memmap) and filed.tokens == seen.tokens == 240
    texts = [rng.integers(vocab, size=size) for size in (0, 3, 9, 33)]
    start = int(rng.integers(20))
    texts.append(np.concatenate([rng.integers(vocab, size=5), rows[2, start : start + 17]]))
    for text, found, by_parts in zip(texts, seen.copies(texts), filed.copies(texts), strict=True):
        assert by_parts.novel == found.novel and by_parts.stretches == found.stretches
        assert longest(rows, text) >= by_parts.longest >= found.longest  # it looks at more places
        for n in ORDERS:
            assert found.novel[n] == pytest.approx(novel(rows, text, n)), n
        if vocab > 2:  # of two tokens, spans have more places than are looked at
            assert found.longest == longest(rows, text)
        assert found.longest <= longest(rows, text)
        marked = [place for a, size in found.stretches for place in range(a, a + size)]
        assert len(marked) == len(set(marked)) and set(marked) == covered(rows, text)


def test_spans_do_not_cross_rows_or_texts() -> None:
    rows = np.arange(80).reshape(2, 40)
    seen = Seen()
    seen.add(rows)
    across, first, second = seen.copies([np.arange(30, 50), np.arange(0, 20), np.arange(20, 40)])
    assert across.longest == 10
    assert (first.longest, second.longest) == (20, 20)
    assert across.stretches == ((0, 20),), "two copies that touch"
    assert first.stretches == second.stretches == ((0, 20),)
    assert across.novel[8] == pytest.approx(7 / 13)


def test_nothing_read_means_all_is_new() -> None:
    (found,) = Seen().copies([np.arange(40)])
    assert found.longest == 0 and set(found.novel.values()) == {1.0}
    assert Seen().copies([]) == []


@dataclass(frozen=True)
class Row:
    ids: Ids


@dataclass(frozen=True)
class Steps:
    """Batches of 2 rows; a pass has 5 of them."""

    rows: int = 2
    context: int = 39
    windows_per_epoch: int = 5

    def batch(self, step: int) -> Row:
        entries = np.arange(2 * step, 2 * step + 2)
        return Row((entries % 5)[:, None] * 1000 + np.arange(40)[None, :])


def test_reading_follows_the_run_for_one_pass() -> None:
    reading = Reading(Steps())
    third = [np.arange(2000, 2040)]

    def copied(step: int) -> int:
        seen = reading.until(step)
        assert seen is not None
        return seen.copies(third)[0].longest

    assert [copied(step) for step in (0, 1, 2, 3, 3, 9)] == [0, 0, 40, 40, 40, 40]
    assert reading.step == 3, "there is nothing new after one pass"
    assert reading.seen.tokens == 3 * 2 * 40


def test_what_no_index_should_hold_is_none() -> None:
    assert Reading(Steps(windows_per_epoch=10**9)).until(10**7) is None


def test_an_index_is_read_in_parts() -> None:
    """As many steps at once as fill a part, whatever was read before."""
    reading = Reading(Steps(windows_per_epoch=400), Seen(part=200))
    for step in (0, 1, 8, 8, 31):
        seen = reading.until(step)
        assert seen is not None and seen.tokens == step * 80
    assert [part.tokens for part in reading.seen.parts] == [200] * 12 + [80]
    (found,) = reading.seen.copies([np.arange(4000, 4040)])
    assert found.longest == 40
