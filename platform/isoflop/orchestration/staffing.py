"""How many workers does each run of a grid get? As few as can hold it, and more where the others
would wait for it.

Several workers have their price: a group of them starts in tens of seconds, and gradients travel at
every step. So each run has the least number of workers whose devices hold its state: one, nearly
always. While the longest run alone would take longer than all of them spread evenly over what there
is, it gets the next number of workers that can share its batch (as in Turek, Wolf & Yu 1992), and
of all that was tried on the way the choice that ends first is taken. Runs with as many workers are
one stage; stages follow each other, the one with most workers first.

What is chosen changes results by no more than `--workers` does, and is no part of a run.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from isoflop.run import Run
from isoflop.training.means import USUAL, Means
from isoflop.training.memory import state
from isoflop.training.sharding import FITS, refuse

START_SECONDS = 30.0  # of a group of workers, until its first step
LOST = 0.15  # of the time, for gradients that travel, with each doubling of the workers
WORTH = 0.9  # of the time until all have ended: less gained is not worth the trouble
GIGA = 1e9

# Why a run has its number of workers.
ASKED, ONE, MEMORY, LENGTH = "asked", "", "memory", "length"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What there is to share out."""

    units: int  # cores, or GPUs
    memory: int = 0  # bytes of a GPU; 0: of a CPU, or unknown

    def fewest(self, run: Run, means: Means = USUAL) -> int:
        """Workers that can hold a run. Raises ValueError where there are too few GPUs for it."""
        bounded = self.memory > 0 and means.shard != "off"
        held = state(run) if bounded else 0
        for workers in self._numbers(run):
            enough = not bounded or held <= FITS * self.memory * workers
            if enough and (workers > 1 or means.shard != "on"):
                if workers > 1:
                    refuse(run, workers, means)
                return workers
        raise ValueError(
            f"a run of {run.model.name} has {held / GIGA:.0f} GB of weights, gradients and "
            f"moments; {self.units} workers with {self.memory / GIGA:.0f} GB each cannot hold it "
            f"and share a batch of {run.rows} rows equally"
        )

    def more(self, run: Run, workers: int) -> int | None:
        """The next number that can share the run's batch equally; None where rows are compared with
        all others of a batch, which one worker must then have."""
        if run.objective.contrast:
            return None
        return next((n for n in self._numbers(run) if n > workers), None)

    def _numbers(self, run: Run) -> list[int]:
        return [n for n in range(1, self.units + 1) if run.rows % n == 0]


@dataclass(frozen=True)
class Staff:
    """The workers of a run, and why."""

    workers: int
    why: str = ONE

    def __str__(self) -> str:
        return f"{self.workers}, {self.why}" if self.why else str(self.workers)


def staffed(
    runs: Mapping[str, Run], seconds: Mapping[str, float], place: Place, means: Means = USUAL
) -> dict[str, Staff]:
    """The workers of each run by its identity; `seconds` is what it would take with one. Raises
    ValueError where one cannot be held."""
    least = {name: place.fewest(run, means) for name, run in runs.items()}
    chosen = best = dict(least)
    while (name := _longest(chosen, seconds, place)) is not None:
        more = place.more(runs[name], chosen[name])
        if more is None:
            break
        chosen = {**chosen, name: more}
        if wall(chosen, seconds, place.units) < WORTH * wall(best, seconds, place.units):
            best = chosen
    return {name: Staff(n, _why(n, least[name])) for name, n in best.items()}


def _why(workers: int, least: int) -> str:
    if workers > least:
        return LENGTH
    return MEMORY if least > 1 else ONE


def _longest(chosen: Mapping[str, int], seconds: Mapping[str, float], place: Place) -> str | None:
    """The run that the others would wait for; None where none is longer than an even share."""
    if not chosen:
        return None
    took = {name: taken(seconds[name], n) for name, n in chosen.items()}
    even = sum(took[name] * n for name, n in chosen.items()) / place.units
    name = max(took, key=lambda name: took[name])
    return name if took[name] > even else None


def taken(seconds: float, workers: int) -> float:
    """What a run of so many seconds takes with several workers."""
    if workers == 1:
        return seconds
    return START_SECONDS + seconds / workers * (1 + LOST * math.log2(workers))


def wall(chosen: Mapping[str, int], seconds: Mapping[str, float], units: int) -> float:
    """Until all have ended, stage after stage."""
    return sum(
        makespan([taken(seconds[name], n) for name in names], units // n)
        for n, names in stages(chosen).items()
    )


def stages(chosen: Mapping[str, int]) -> dict[int, list[str]]:
    """The runs by their number of workers, most first."""
    numbers = sorted(set(chosen.values()), reverse=True)
    return {n: [name for name, own in chosen.items() if own == n] for n in numbers}


def makespan(seconds: Iterable[float], slots: int) -> float:
    """Wall time of jobs that start biggest first on the slot that is free first."""
    free = [0.0] * slots
    for length in sorted(seconds, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)
