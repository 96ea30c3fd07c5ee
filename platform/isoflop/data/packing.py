"""Which documents share a row, so that few rows are filled up with padding?

Best-fit decreasing: the longest first, each into the row in which it leaves the least room (Ding et
al. 2024, who cut only documents that are longer than a row). Rows with the same room left are as
good as each other, so the work goes by lengths and not by documents: some thousand steps over
arrays, for any number of documents.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Bins = npt.NDArray[np.int32]


def best_fit(sizes: Counts, capacity: int) -> Bins:
    """The row (N,), from 0 on, that each of N pieces goes into. Deterministic.

    Raises ValueError for a size that is not from 1 to `capacity`.
    """
    if len(sizes) and not (sizes.min() >= 1 and sizes.max() <= capacity):
        raise ValueError(
            f"sizes are from {sizes.min()} to {sizes.max()}; a row holds from 1 to {capacity}"
        )
    narrow = (
        np.uint16 if capacity < 2**16 else np.int64
    )  # numpy sorts short numbers by their digits
    order = np.argsort((capacity - sizes).astype(narrow), kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)
    bins = np.empty(len(sizes), dtype=np.int32)
    rows = _Open(capacity)
    done = 0
    for size in range(capacity, 0, -1):
        left = int(counts[size])
        while left:
            taken = rows.fill(size, left)
            bins[order[done : done + len(taken)]] = taken
            done += len(taken)
            left -= len(taken)
    return bins


class _Open:
    """The rows begun so far, by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.by_room: list[list[Bins]] = [[] for _ in range(capacity + 1)]
        self.some = np.zeros(capacity + 1, dtype=bool)  # is there a row with that room?

    def fill(self, size: int, wanted: int) -> Bins:
        """Rows (at most `wanted`,) for pieces of one size, from those that it fits best.

        A piece leaves a row with less room than any other it fits, so the next goes there too:
        every row is filled before another is begun.
        """
        room, rows = self._best(size, wanted)
        each = room // size  # pieces that go into one of these rows
        full, rest = divmod(min(wanted, each * len(rows)), each)
        self._put(room - each * size, rows[:full])
        self._put(room - rest * size, rows[full : full + (rest > 0)])
        self._put(room, rows[full + (rest > 0) :])
        return np.concatenate(
            [np.repeat(rows[:full], each), np.repeat(rows[full : full + 1], rest)]
        )

    def _best(self, size: int, wanted: int) -> tuple[int, Bins]:
        """All the rows with the least room that is enough; new ones if none has it."""
        room = size + int(np.argmax(self.some[size:]))
        if self.some[room]:
            rows = np.concatenate(self.by_room[room])
            self.by_room[room], self.some[room] = [], False
            return room, rows
        new = -(-wanted // (self.capacity // size))
        rows = np.arange(self.count, self.count + new, dtype=np.int32)
        self.count += new
        return self.capacity, rows

    def _put(self, room: int, rows: Bins) -> None:
        if len(rows):
            self.by_room[room].append(rows)
            self.some[room] = True
