"""Which documents count, and which of them are held out?

Everything here works on what a scan noted of each document, in the order of the source: the first
half of its SHA-256 and its size. That is 24 bytes a document, and about 60 while they are sorted:
ten million documents take 0.6 GB, whatever their length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# What becomes of a document. CUT: its end is held out, the rest is trained on.
DROPPED, TRAIN, VALIDATION, CUT = range(4)

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

RECORD = np.dtype([("digest", "u1", 32), ("size", "<i8")])  # on disk; size in bytes of UTF-8
_CHUNK = 2**16


@dataclass(frozen=True)
class Documents:
    """What is known of every document of a source, in its order: three arrays (D,)."""

    high: npt.NDArray[np.uint64]  # the first 8 bytes of the digest as a number, ...
    low: npt.NDArray[np.uint64]  # ... and the next 8: 128 bits never meet by accident
    sizes: Integers

    @staticmethod
    def of(records: list[Array]) -> Documents:
        """From arrays of RECORD, one after the other; each may be mapped from a file."""
        count = sum(map(len, records))
        high, low = np.empty(count, np.uint64), np.empty(count, np.uint64)
        sizes = np.empty(count, np.int64)
        start = 0
        for block in records:
            stop = start + len(block)
            halves = np.ascontiguousarray(block["digest"][:, :16]).view(">u8")
            high[start:stop], low[start:stop] = halves[:, 0], halves[:, 1]
            sizes[start:stop] = block["size"]
            start = stop
        return Documents(high, low, sizes)

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class Split:
    """What becomes of each document, and how much of the one that is cut is held out."""

    sides: npt.NDArray[np.uint8]  # (D,): DROPPED, TRAIN, VALIDATION or CUT
    tail: float = 0.0


def first_of_equals(documents: Documents) -> Integers:
    """For each document the place of the first one with the same content (D,): often its own."""
    order = np.lexsort((documents.low, documents.high))  # stable: equals stay in their order
    high, low = documents.high[order], documents.low[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    return first


def split(documents: Documents, share: float, first: Integers) -> Split:
    """Hold out documents in the order of their digests, as random as the content and as repeatable,
    until they make `share` of the bytes; one of which more than half would overshoot it is passed
    over. If that leaves more than half of the share open (a few books, say, or a single one), the
    end of the largest other document fills it.

    `first` names for each document the one that stands for it: -1 drops it, another one than itself
    (an equal document that is kept) takes it to the same side.
    """
    kept = first >= 0
    leaders = np.flatnonzero(first == np.arange(len(first)))
    weights = np.bincount(first[kept], documents.sizes[kept], len(first)).astype(np.int64)
    leaders = leaders[np.lexsort((documents.low[leaders], documents.high[leaders]))]
    wanted = share * int(weights.sum())
    chosen = list(_held_out(leaders, weights, wanted))
    if len(chosen) == len(leaders):  # something must be left to train on
        chosen.pop()
    held = int(weights[chosen].sum())
    sides = np.full(len(first), TRAIN, dtype=np.uint8)
    sides[chosen] = VALIDATION
    tail = 0.0
    if 2 * held < wanted:
        rest = leaders[sides[leaders] == TRAIN]
        largest = rest[np.flatnonzero(weights[rest] == weights[rest].max())[-1]]
        sides[largest] = CUT
        tail = (wanted - held) / int(weights[largest])
    sides = sides[first]  # a first of -1 takes any side, and is dropped below
    sides[~kept] = DROPPED
    return Split(sides, tail)


def _held_out(leaders: Integers, weights: Integers, wanted: float) -> Iterator[int]:
    held, least = 0, int(weights[leaders].min())
    for start in range(0, len(leaders), _CHUNK):
        block = leaders[start : start + _CHUNK]
        for place, size in zip(block.tolist(), weights[block].tolist(), strict=True):
            if held + size / 2 <= wanted:
                held += size
                yield place
        if held + least / 2 > wanted:
            return


def cut(text: str, tail: float) -> tuple[str, str]:
    """A text before and after the last line end that leaves `tail` of it, or there without one.

    Raises ValueError for a text too small to give two parts.
    """
    place = int(len(text) * (1 - tail))
    line = text.rfind("\n", 0, place) + 1
    head, rest = text[: line or place], text[line or place :]
    if not head.strip() or not rest.strip():
        raise ValueError(
            f"the text ({len(text)} characters) is too small to hold out a part of it for "
            "validation; give more text, or a larger data.validation"
        )
    return head, rest
