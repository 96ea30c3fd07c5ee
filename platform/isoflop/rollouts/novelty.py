"""How much of what a model writes had it read by then, word for word?

An index of the rows that training has read: a 64-bit hash of every n-gram within a row, sorted, for
n of 4, 8, 16 and 32; for n = 8 with its places, from which the longest copied span follows. What
stands across the border of two rows was never read as one text, and counts as new. Two n-grams of
equal hash would be taken for one: with 1e7 of them, one n-gram in 1e12 by chance.

The index takes 48 bytes per token. It is made of parts of whole rows, so that no span lies across
two; one part is in memory and grows, full ones lie in files without a name (in `TMPDIR`), which go
with the process. What was read is looked for in every part, which is as exact as in one.

Letters: B rows of T tokens, n order of the n-grams, Q n-grams asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ORDERS = (4, 8, 16, 32)
SPAN = 8  # tokens: shorter copies are no spans, common phrases have as many
PLACES = 32  # of one n-gram are looked at, at most
PART = 4_000_000  # tokens of a part: about 400 MB of memory while it grows
MOST_TOKENS = 256_000_000  # 12 GB of files
BYTES = 48  # of the index, for each token

_FACTOR = 0x9E3779B97F4A7C15
Hashes = NDArray[np.uint64]
Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Copies:
    """Of one text: the share of its n-grams that were never read, and its longest copied span."""

    novel: Mapping[int, float | None]  # by order; None where it has fewer tokens than that
    longest: int  # tokens, 0 if there is no span of at least `SPAN`
    # First token and length of every stretch whose tokens all stand in n-grams of `SPAN` that were
    # read, wherever each of those stood: what a reader is shown as copied.
    stretches: tuple[tuple[int, int], ...] = ()


class Rows(Protocol):
    @property
    def ids(self) -> NDArray[np.int64]: ...


class Reads(Protocol):
    """What a run reads: `isoflop.data.loader.Batches`."""

    @property
    def rows(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def windows_per_epoch(self) -> int: ...
    def batch(self, step: int) -> Rows: ...


@dataclass(eq=False)
class Part:
    """The index of some rows."""

    tokens: int = 0
    hashes: dict[int, Hashes] = field(
        default_factory=lambda: {order: np.empty(0, np.uint64) for order in ORDERS}
    )
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    keys: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))  # of `places`

    def add(self, rows: Ids) -> None:
        """Rows (B, T) that were read, each a text of its own."""
        for order, found in _hashed(rows):
            flat = found.ravel()
            if order == SPAN:
                starts = self.tokens + np.arange(len(rows))[:, None] * rows.shape[1]
                place = (starts + np.arange(found.shape[1])[None, :]).ravel()
                self._place(flat, place)
                flat = self.keys[_firsts(self.keys)]
            else:
                flat = _merged(self.hashes[order], flat)
            self.hashes[order] = flat
        self.tokens += rows.size

    def _place(self, keys: Hashes, places: NDArray[np.int64]) -> None:
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        if len(self.keys):
            both = np.concatenate([self.keys, keys])
            order = np.argsort(both, kind="stable")  # of two sorted runs: a merge
            keys, places = both[order], np.concatenate([self.places, places])[order]
        self.keys, self.places = keys, places

    def filed(self) -> Part:
        """The same, in files."""
        hashes = {order: _filed(found) for order, found in self.hashes.items()}
        return Part(self.tokens, hashes, _filed(self.places), _filed(self.keys))

    def spans(
        self,
        at: NDArray[np.int64],
        keys: Hashes,
        owner: NDArray[np.int64],
        longest: NDArray[np.int64],
    ) -> None:
        """Raise `longest` to the longest runs of n-grams that follow each other in both texts."""
        low = np.searchsorted(self.keys, keys, side="left")
        count = np.minimum(np.searchsorted(self.keys, keys, side="right") - low, PLACES)
        if not count.sum():
            return
        mine = np.repeat(at, count)
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        diagonal = self.places[np.repeat(low, count) + within] - mine
        order = np.lexsort((mine, diagonal))
        mine, diagonal = mine[order], diagonal[order]
        fresh = np.ones(len(mine), dtype=np.bool_)
        fresh[1:] = (np.diff(mine) != 1) | (np.diff(diagonal) != 0)
        starts = np.flatnonzero(fresh)
        length = np.diff(np.append(starts, len(mine))) + SPAN - 1
        np.maximum.at(longest, owner[mine[starts]], length)


@dataclass(eq=False)
class Seen:
    """The index of all that was read. Grows with the run; any text may be asked for at any time."""

    part: int = PART  # tokens
    parts: list[Part] = field(default_factory=lambda: [Part()])  # the last one grows

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    def add(self, rows: Ids) -> None:
        """Rows (B, T) that were read, each a text of its own."""
        while len(rows):
            growing = self.parts[-1]
            room = max(1, (self.part - growing.tokens) // rows.shape[1])
            growing.add(rows[:room])
            rows = rows[room:]
            if growing.tokens + rows.shape[1] > self.part:
                self.parts[-1:] = [growing.filed(), Part()]

    def copies(self, texts: Sequence[Ids]) -> list[Copies]:
        """What was copied in each of these texts."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        if not len(texts):
            return []
        ends = np.cumsum(lengths)
        owner = np.repeat(np.arange(len(texts)), lengths)
        left = ends[owner] - np.arange(len(owner))  # tokens from here to the text's end
        flat = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts])
        novel: dict[int, NDArray[np.float64]] = {}
        longest = np.zeros(len(texts), dtype=np.int64)
        stretches: list[list[tuple[int, int]]] = [[] for _ in texts]
        known = np.ones(len(flat), dtype=np.bool_)  # by the n-grams before: part of the longer ones
        for order, found in _hashed(flat[None, :]):
            whole = left[: found.shape[1]] >= order
            asked = np.flatnonzero(whole & known[: found.shape[1]])
            hit = asked[self._holds(order, found[0][asked])]
            known = np.zeros(len(flat), dtype=np.bool_)
            known[hit] = True
            if order == SPAN:
                ordered = hit[np.argsort(found[0][hit])]  # in order, what is looked up lies close
                for part in self.parts:
                    part.spans(ordered, found[0][ordered], owner, longest)
                _stretches(hit, owner, ends - lengths, stretches)
            total = np.maximum(lengths - order + 1, 0)
            copied = np.bincount(owner[hit], minlength=len(texts))
            novel[order] = np.where(total > 0, 1 - copied / np.maximum(total, 1), np.nan)
        return [
            Copies(
                {order: _known(novel[order][i]) if order in novel else None for order in ORDERS},
                int(longest[i]),
                tuple(stretches[i]),
            )
            for i in range(len(texts))
        ]

    def _holds(self, order: int, asked: Hashes) -> NDArray[np.bool_]:
        """Which of the hashes stand in any part."""
        ordered, back = np.unique(asked, return_inverse=True)
        found = np.zeros(len(ordered), dtype=np.bool_)
        for part in self.parts:
            found |= _holds(part.hashes[order], ordered)
        return found[back]


@dataclass(eq=False)
class Reading:
    """The index of what a run has read, brought forward with it.

    After one pass over all sources there is nothing new but where rows begin, so it ends there.
    """

    batches: Reads
    seen: Seen = field(default_factory=Seen)
    step: int = 0

    def until(self, step: int) -> Seen | None:
        """What was read before this step; None if that is more than an index should hold.

        Raises AssertionError for a step before the last one asked for.
        """
        last = self._last(step)
        assert last >= self.step, "an index does not forget"
        if last * self.batches.rows * self.batches.context > MOST_TOKENS:
            return None
        some = max(1, self.seen.part // (self.batches.rows * self.batches.context))
        for first in range(self.step, last, some):
            steps = range(first, min(first + some, last))
            self.seen.add(np.concatenate([self.batches.batch(step).ids for step in steps]))
        self.step = max(self.step, last)
        return self.seen

    def ahead(self, step: int) -> int:
        """Tokens that would be added for this step."""
        return max(0, self._last(step) - self.step) * self.batches.rows * self.batches.context

    def _last(self, step: int) -> int:
        return min(step, -(-self.batches.windows_per_epoch // self.batches.rows))


def _stretches(
    hits: NDArray[np.int64],
    owner: NDArray[np.int64],
    begins: NDArray[np.int64],
    found: list[list[tuple[int, int]]],
) -> None:
    """Join n-grams of `SPAN` that were read, by where they start, where they touch in one text."""
    if not len(hits):
        return
    apart = (np.diff(hits) > SPAN) | (np.diff(owner[hits]) != 0)
    first = hits[np.append(True, apart)]
    last = hits[np.append(apart, True)]
    own = owner[first]
    for text, start, length in zip(own, first - begins[own], last - first + SPAN, strict=True):
        found[text].append((int(start), int(length)))


def _hashed(rows: Ids) -> Iterator[tuple[int, Hashes]]:
    """The hashes (B, T - n + 1) of each order's n-grams, those of 2 n from two of n."""
    hashes = rows.astype(np.uint64) + np.uint64(1)
    order, factor = 1, _FACTOR
    while 2 * order <= min(max(ORDERS), rows.shape[1]):
        hashes = hashes[:, :-order] * np.uint64(factor) + hashes[:, order:]
        order, factor = 2 * order, factor * factor % 2**64
        if order in ORDERS:
            yield order, hashes ^ (hashes >> np.uint64(29))


def _filed(values: Hashes | NDArray[np.int64]) -> Any:
    """The same numbers in a file, which has no name and goes when they do."""
    if not len(values):  # nothing cannot be mapped
        return values
    with tempfile.TemporaryFile(prefix="isoflop-") as file:
        values.tofile(file)
        return np.memmap(file, dtype=values.dtype, mode="r", shape=values.shape)


def _merged(known: Hashes, more: Hashes) -> Hashes:
    fresh = np.sort(more)
    if len(known):
        fresh = np.sort(np.concatenate([known, fresh]), kind="stable")
    return fresh[_firsts(fresh)]


def _firsts(ordered: Hashes) -> NDArray[np.bool_]:
    first = np.ones(len(ordered), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def _holds(ordered: Hashes, asked: Hashes) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(asked), dtype=np.bool_)
    place = np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[place] == asked
    return found


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
