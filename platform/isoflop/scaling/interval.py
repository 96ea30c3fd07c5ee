"""How sure is a number, and when is it not given at all?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LEVEL = 0.95  # of every interval in a report
NATS = "nats per token"  # what a loss is in, unless a study judges by the other
BITS = "bits per byte"


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

    def widened(self, factor: float) -> Interval:
        """With arms `factor` times as long."""
        low, high = self.value - self.low, self.high - self.value
        return Interval(self.value, self.value - factor * low, self.value + factor * high)

    def exponential(self) -> Interval:
        """The interval of exp(x) from that of x: percentiles of logarithms never overflow."""
        with np.errstate(over="ignore", under="ignore"):
            return Interval(*(float(np.exp(x)) for x in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Wanted:
    """A run that is not there yet."""

    size: float  # parameters
    tokens: float
    flops: float

    def __str__(self) -> str:
        size, tokens = compact(self.size), compact(self.tokens)
        return f"N {size} on D {tokens} ({scientific(self.flops)} FLOPs)"


Reason = Literal[
    "too few points",
    "no interior minimum",
    "optimum at the edge",
    "one size only",
    "one token count only",
    "one line only",
    "too few budgets",
    "law at its boundary",
    "nothing repeated",
    "mid-schedule losses",
    "diverged cells",
    "no repeats",
    "nothing to explain",
    "not asked",
]
MOST_NAMED = 6  # runs that a sentence names; the JSON has them all


@dataclass(frozen=True)
class Refusal:
    """A question that the runs at hand cannot answer, why, and which runs would cure it."""

    reason: Reason
    explanation: str
    cure: str
    runs: tuple[Wanted, ...] = ()  # that would cure it, where they can be named

    def __str__(self) -> str:
        named = ", ".join(str(run) for run in self.runs[:MOST_NAMED])
        more = f" and {len(self.runs) - MOST_NAMED} more" if len(self.runs) > MOST_NAMED else ""
        return f"{self.explanation}; {self.cure}" + (f": {named}{more}" if named else "")

    def record(self) -> dict[str, Any]:
        """As JSON; the runs in the letters of the papers."""
        runs = [{"N": run.size, "D": run.tokens, "C": run.flops} for run in self.runs]
        words = {k: getattr(self, k) for k in ("reason", "explanation", "cure")}
        return {**words, "runs": runs}


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
