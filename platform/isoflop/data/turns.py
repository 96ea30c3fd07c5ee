"""Which source does a row of a mixture come from? In turns, so that shares hold at every row.

After any number of rows each source has given its share of them, within one row. That is Tijdeman's
chairman assignment (1980): a source may take its j-th turn once (j - 1) / share rows are over, must
before j / share are, and of those that may, the one that must first goes first. The turns repeat
after a period, so that any row can be looked up.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]

LONGEST = 2**16  # rows of a period


class Turns:
    """The endless sequence of turns of sources with these weights."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Weights count by their ratios; those that do not repeat within 65,536 rows are rounded to
        shares that do, of at least one row each.

        Raises ValueError for a weight that is not above 0.
        """
        self.counts = period(tuple(weights))
        self.sources, self.ranks = _table(self.counts)

    @property
    def shares(self) -> list[float]:
        return [count / len(self.sources) for count in self.counts]

    def of(self, entries: Places) -> tuple[Places, Places]:
        """The source (N,) of each row, and how many rows (N,) that source has given before it."""
        periods, places = np.divmod(entries, len(self.sources))
        sources = self.sources[places].astype(np.int64)
        return sources, periods * np.array(self.counts)[sources] + self.ranks[places]

    def taken(self, rows: int) -> list[int]:
        """How many of the first `rows` rows each source has given."""
        periods, rest = divmod(rows, len(self.sources))
        begun = np.bincount(self.sources[:rest], minlength=len(self.counts))
        return [periods * count + int(more) for count, more in zip(self.counts, begun, strict=True)]


def period(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Turns of each source in one period."""
    for weight in weights:
        if not 0 < weight < math.inf:
            raise ValueError(f"a source's weight is {weight}; it must be above 0, and finite")
    exact = [Fraction(weight).limit_denominator(LONGEST) for weight in weights]
    if all(exact):
        scale = math.lcm(*(share.denominator for share in exact))
        turns = [int(share * scale) for share in exact]
        common = math.gcd(*turns)
        if sum(turns) // common <= LONGEST:
            return tuple(turn // common for turn in turns)
    return _rounded([weight / math.fsum(weights) for weight in weights])


def _rounded(shares: list[float]) -> tuple[int, ...]:
    """By largest remainders, of what is left when each has one."""
    spare = LONGEST - len(shares)
    wanted = [max(0.0, share * LONGEST - 1) for share in shares]
    wanted = [want * spare / math.fsum(wanted) for want in wanted]
    turns = [1 + int(want) for want in wanted]
    order = sorted(range(len(shares)), key=lambda i: (int(wanted[i]) - wanted[i], i))
    for i in order[: LONGEST - sum(turns)]:
        turns[i] += 1
    return tuple(turns)


@lru_cache(maxsize=4)
def _table(counts: tuple[int, ...]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]:
    """Of each row of a period (M,): its source, and how many turns that source had before."""
    length = sum(counts)
    sources = np.empty(length, dtype=np.uint16)
    ranks = np.empty(length, dtype=np.int32)
    taken = [0] * len(counts)
    waiting = [(0, source) for source in range(len(counts))]  # by the rows that must be over
    ready: list[tuple[int, int]] = []  # by the rows that may be over
    for row in range(length):
        while waiting and waiting[0][0] <= row:
            source = heapq.heappop(waiting)[1]
            due = -(-(taken[source] + 1) * length // counts[source])
            heapq.heappush(ready, (due, source))
        source = heapq.heappop(ready)[1]
        sources[row], ranks[row] = source, taken[source]
        taken[source] += 1
        heapq.heappush(waiting, (taken[source] * length // counts[source], source))
    assert taken == list(counts)
    return sources, ranks
