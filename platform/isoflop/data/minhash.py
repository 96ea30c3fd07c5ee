"""Which documents are nearly the same? MinHash signatures, and a search for those that agree.

Broder 1997: the share of equal minima over random hash functions estimates the Jaccard similarity
of two sets, here the sets of five consecutive words (as in Lee et al. 2022, "Deduplicating
Training Data Makes Language Models Better"). Signatures are cut into bands (Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", 3.4): only documents that agree in a whole band are
compared. With 128 functions an estimate near 0.8 has a standard error of 0.035; a pair well above
the threshold is missed with a small probability that `bands` keeps below a percent.

Letters: D documents, S shingles of one, K hash functions, B bands, R rows of a band.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data.hashing import ODD, Hashes, mix

FUNCTIONS = 128
WORDS = 5
_SHINGLES = 4096  # hashed at a time: their (S, K) hashes take 4 MB
_CHARACTERS = 2**20  # looked at a time; the runs of words across two such pieces are not counted
_ODD = np.uint64(ODD)

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


def signature(text: str) -> npt.NDArray[np.uint32]:
    """The minima (K,) over all shingles of a text. Case and punctuation count, blanks do not."""
    shingles = _shingles(text)
    multipliers, offsets = _functions()
    least = np.full(FUNCTIONS, 2**32 - 1, dtype=np.uint32)
    for start in range(0, len(shingles), _SHINGLES):
        block = shingles[start : start + _SHINGLES, None]
        # Multiply-shift (Dietzfelbinger et al. 1997): the high half of an odd product is universal.
        hashes = ((block * multipliers + offsets) >> np.uint64(32)).astype(np.uint32)
        np.minimum(least, hashes.min(axis=0), out=least)
    return least


def leaders(signatures: list[Array], first: Integers, threshold: float) -> Integers:
    """`first`, changed so that near-duplicates follow the first document of their group (D,).

    `signatures` are blocks (d, K) in the order of the documents, mapped from disk as they may be.
    Of documents that already follow another one, only the other is looked at.
    """
    alone = np.flatnonzero(first == np.arange(len(first)))
    edges = np.cumsum([0, *(len(block) for block in signatures)])
    assert edges[-1] == len(first)
    groups = _Groups(len(first))
    count, rows = bands(threshold)
    for band in range(count):
        for one, other in _agreeing(signatures, alone, slice(band * rows, (band + 1) * rows)):
            if groups.root(one) == groups.root(other):
                continue
            pair = [_row(signatures, edges, place) for place in (one, other)]
            if float((pair[0] == pair[1]).mean()) >= threshold:
                groups.join(one, other)
    return groups.roots(alone)[first]


@cache
def bands(threshold: float) -> tuple[int, int]:
    """(B, R) with B R <= K: the most rows, so the fewest comparisons, that still find a pair 0.05
    above the threshold with a probability of 99 %.

    Raises ValueError for a threshold that is not between 0 and 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"near_duplicates is {threshold}; it must be above 0 and at most 1")
    similar = min(1.0, threshold + 0.05)
    for rows in range(FUNCTIONS, 1, -1):
        count = FUNCTIONS // rows
        if 1 - (1 - similar**rows) ** count >= 0.99:
            return count, rows
    return FUNCTIONS, 1


class _Groups:
    """Which documents belong together; the first of a group stands for it (union by order)."""

    def __init__(self, count: int) -> None:
        self._above = np.arange(count)

    def root(self, place: int) -> int:
        while (above := int(self._above[place])) != place:
            self._above[place] = self._above[above]
            place = above
        return place

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._above[high] = low

    def roots(self, places: Integers) -> Integers:
        """For each of all documents its root, for `places`; others stand for themselves."""
        found = np.arange(len(self._above))
        moved = places[self._above[places] != places]
        found[moved] = [self.root(place) for place in moved.tolist()]
        return found


def _agreeing(signatures: list[Array], alone: Integers, band: slice) -> Iterable[tuple[int, int]]:
    """Pairs of documents whose signatures agree in a band: each with the first, and with the one
    before it, of those that share it.
    """
    hashes = np.concatenate([_mixed(block[:, band]) for block in signatures])[alone]
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    start = 0
    for place in np.flatnonzero(equal).tolist():
        if place == 0 or not equal[place - 1]:
            start = place
        other = int(alone[order[place + 1]])
        yield int(alone[order[start]]), other
        if place != start:
            yield int(alone[order[place]]), other


def _row(signatures: list[Array], edges: Integers, place: int) -> Array:
    block = int(np.searchsorted(edges, place, side="right")) - 1
    row: Array = signatures[block][place - edges[block]]
    return row


def _shingles(text: str) -> Hashes:
    """A hash of each run of WORDS words (S,), each once; a shorter text is one shingle."""
    runs = [_runs(_words(text[k : k + _CHARACTERS])) for k in range(0, len(text), _CHARACTERS)]
    return np.unique(np.concatenate(runs))


def _words(text: str) -> Hashes:
    """A hash of each word (W,). Words are what blanks of ASCII and control characters separate."""
    content = np.frombuffer(text.encode(), dtype=np.uint8)
    inside = content > 32
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(1, dtype=np.uint64)
    content, inside, starts = content[starts[0] :], inside[starts[0] :], starts - starts[0]
    # Letter i of a word counts times a power of an odd number, so order matters; overflow wraps.
    place = np.arange(len(content)) - np.repeat(starts, np.diff(starts, append=len(content)))
    letters = np.where(inside, content.astype(np.uint64) + np.uint64(1), np.uint64(0))
    powers = np.cumprod(np.full(int(place.max()) + 1, _ODD, dtype=np.uint64))
    found: Hashes = np.add.reduceat(letters * powers[place], starts)
    return found


def _runs(words: Hashes) -> Hashes:
    """A hash of each WORDS consecutive hashes; of all of them where there are fewer."""
    length = min(WORDS, len(words))
    count = len(words) - length + 1
    found = np.zeros(count, dtype=np.uint64)
    for shift in range(length):
        found = mix(found + _ODD + words[shift : shift + count])
    return found


def _mixed(rows: Array) -> Hashes:
    """One hash for each row of minima (d, R)."""
    found = np.zeros(len(rows), dtype=np.uint64)
    for column in range(rows.shape[1]):
        found = mix(found + _ODD + rows[:, column])
    return found


@cache
def _functions() -> tuple[Hashes, Hashes]:
    """Multipliers, odd, and offsets (K,) of the hash functions: the same everywhere and always."""
    draws = mix(np.arange(1, 2 * FUNCTIONS + 1, dtype=np.uint64) * _ODD)
    return draws[:FUNCTIONS] | np.uint64(1), draws[FUNCTIONS:]
