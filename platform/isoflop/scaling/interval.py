"""How sure is a number, and when is it not given at all?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LEVEL = 0.95  # of every interval in a report


@dataclass(frozen=True)
class Interval:
    """An estimate between the bounds that hold the central 95 % of its resamples."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(value: float, resampled: ArrayLike) -> Interval:
        """The percentile interval of `resampled` (any shape, not empty), widened to hold `value`.

        An estimate outside the central range of its own resamples is biased; an interval that left
        the estimate out would hide it.
        """
        draws = np.asarray(resampled, dtype=float)
        assert draws.size > 0, "an interval needs at least one resample"
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return Interval(float(value), min(float(low), value), max(float(high), value))

    def exponential(self) -> Interval:
        """The interval of exp(x) from that of x: percentiles of logarithms never overflow."""
        with np.errstate(over="ignore", under="ignore"):
            return Interval(*(float(np.exp(x)) for x in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Refusal:
    """A question that the runs at hand cannot answer, why, and which runs would cure it."""

    reason: Literal[
        "too few points",
        "no interior minimum",
        "optimum at the edge",
        "one size only",
        "one token count only",
        "one line only",
        "too few budgets",
        "law at its boundary",
        "nothing repeated",
        "not asked",
    ]
    explanation: str
    cure: str

    def __str__(self) -> str:
        return f"{self.explanation}; {self.cure}"


def compact(number: float) -> str:
    """Parameters or tokens as people say them: 912, 13.1k, 1.31M, 2.4B, 1.2T."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if unit <= abs(number) * (1 + 5e-4) and abs(number) < 1e15:
            return f"{number / unit:.3g}{name}"
    return scientific(number)


def scientific(number: float) -> str:
    """FLOPs with three digits: 3e11, 1.23e18."""
    return f"{number:.3g}".replace("e+", "e")


def positive(name: str, values: ArrayLike) -> Array:
    """The values as floats (6ND overflows int64 above 9.2e18 FLOPs), each finite and above 0.

    Raises ValueError that names the first value that is not.
    """
    array = np.asarray(values, dtype=float)
    bad = ~(np.isfinite(array) & (array > 0))
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{name}[{where}] is {array[where]}; it must be finite and above 0")
    return array
