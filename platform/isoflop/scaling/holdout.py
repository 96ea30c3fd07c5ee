"""How well does a law predict runs that are larger than all it was fitted to?

The question a scaling law is asked is about the next run, so this, and not the fit to the runs at
hand, compares forms. Two answers: the largest budget is held out once; or the origin rolls, and
each budget of the larger half is predicted from all that are smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.scaling.interval import LEVEL, Array, Refusal
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap

APART = 1.1  # budgets differ by at least this factor
GROUPS = 8  # of equal numbers of runs, where compute has no clear budgets
MOST_BUDGETS = 16
FAILED = 10.0  # times as far off as half of its origin: a run that failed, not scatter
Fitter = Callable[[NDArray[np.bool_]], ParametricFit | Refusal]


@dataclass(frozen=True, eq=False)
class Split:
    """Which runs are fitted and which, all of more compute, are predicted."""

    train: NDArray[np.bool_]
    test: NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """How far predictions lay from the runs held out."""

    points: int  # runs predicted
    splits: int
    reach: float  # compute of the held-out runs (median) over the most that was fitted
    error: float  # mean of |predicted / measured - 1|
    bias: float  # mean of predicted / measured - 1
    nats: float  # mean of |predicted - measured|
    covered: float | None = None  # share of them within their own 95 % prediction interval
    calibrated: float | None = None  # the same, intervals widened by what earlier origins taught
    widening: float | None = None  # the factor for the next prediction, from all origins


@dataclass(frozen=True, eq=False)
class Outcome:
    """One split's predictions beside what was measured, (n,); bounds of their 95 % intervals."""

    predicted: Array
    measured: Array
    reach: float
    low: Array | None = None
    high: Array | None = None

    def excess(self) -> Array:
        """How far each run lay from its prediction, in arms of its interval (1: at the bound)."""
        assert self.low is not None and self.high is not None, "asked with resamples only"
        miss = np.log(self.measured / self.predicted)
        up = np.maximum(np.log(self.high / self.predicted), 1e-12)
        down = np.maximum(np.log(self.predicted / self.low), 1e-12)
        excess: Array = np.where(miss > 0, miss / up, -miss / down)
        return excess


def budgets(flops: Array) -> NDArray[np.intp]:
    """A number per run, 0 for the smallest compute: its budget where there are clear ones (3 to 16
    clumps at least 10 % apart), else its eighth of the runs."""
    logs = np.log(flops)
    order = np.argsort(logs, kind="stable")
    clump = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > np.log(APART))])
    if not 3 <= clump[-1] + 1 <= MOST_BUDGETS or np.bincount(clump).min() < 2:
        clump = (np.arange(len(flops)) * GROUPS) // len(flops)
    groups = np.empty(len(flops), dtype=np.intp)
    groups[order] = clump
    # Equal compute never falls on both sides of a split.
    _, place = np.unique(logs, return_inverse=True)
    lowest = np.full(place.max() + 1, groups.max())
    np.minimum.at(lowest, place, groups)
    return np.unique(lowest[place], return_inverse=True)[1]


def largest(flops: Array) -> list[Split]:
    """One split: the largest budget is held out."""
    groups = budgets(flops)
    return [Split(groups < groups.max(), groups == groups.max())]


def rolling(flops: Array) -> list[Split]:
    """Each budget of the larger half, predicted from all smaller ones."""
    groups = budgets(flops)
    return _origins(groups, _first(groups), int(groups.max()) + 1)


def earlier(flops: Array) -> list[Split]:
    """The origins before those of `rolling`, from the third budget on: they calibrate."""
    groups = budgets(flops)
    return _origins(groups, 2, _first(groups))


def _first(groups: NDArray[np.intp]) -> int:
    return max((int(groups.max()) + 1) // 2, 1)


def _origins(groups: NDArray[np.intp], first: int, last: int) -> list[Split]:
    return [Split(groups < g, groups == g) for g in range(first, last)]


def score(
    fitter: Fitter, splits: Sequence[Split], *runs: Array, resamples: int = 0, seed: int = 0
) -> Score | Refusal:
    """Fits each split's smaller runs by `fitter` (mask -> law) and predicts the larger ones.

    `runs`: their size, tokens, FLOPs and loss.
    `resamples` above 0: also counts how many held-out runs their prediction intervals cover.
    Splits whose smaller runs refuse a law are left out; refused where all do.
    """
    found = outcomes(fitter, splits, *runs, resamples=resamples, seed=seed)
    return found if isinstance(found, Refusal) else summary(found)


def outcomes(
    fitter: Fitter,
    splits: Sequence[Split],
    size: Array,
    tokens: Array,
    flops: Array,
    loss: Array,
    *,
    resamples: int = 0,
    seed: int = 0,
) -> list[Outcome] | Refusal:
    """As `score`, each split by itself."""
    refusal = Refusal("too few points", "no run can be held out", "add runs of more compute")
    found = []
    for split in splits:
        if not split.train.any():
            continue
        law = fitter(split.train)
        if isinstance(law, Refusal):
            refusal = law
            continue
        at = (size[split.test], tokens[split.test], flops[split.test])
        drawn = bootstrap(law, resamples=resamples, seed=seed) if resamples else law
        found.append(outcome(drawn, at, loss[split.test], flops[split.train].max(), seed))
    return found or refusal


def outcome(
    law: ParametricFit | Resampled,
    at: tuple[Array, Array, Array],
    measured: Array,
    most: float,
    seed: int,
) -> Outcome:
    """What the law says of runs held out (size, tokens, flops), where those it was fitted to had at
    most `most` FLOPs; with intervals where it was resampled."""
    reach = float(np.median(at[2]) / most)
    if isinstance(law, ParametricFit):
        return Outcome(law.predict(*at), measured, reach)
    low, high = law.bands(*at, noise=True, seed=seed)
    return Outcome(law.fit.predict(*at), measured, reach, low, high)


def summary(found: Sequence[Outcome], before: Sequence[Outcome] = ()) -> Score:
    """The score of the outcomes; `before` and each other's predecessors calibrate their intervals,
    so both stand in the order of their compute."""
    predicted = np.concatenate([outcome.predicted for outcome in found])
    measured = np.concatenate([outcome.measured for outcome in found])
    relative = predicted / measured - 1
    covered = calibrated = factor = None
    if found[0].low is not None:
        excess = [outcome.excess() for outcome in (*before, *found)]
        covered = float((np.concatenate(excess[len(before) :]) <= 1).mean())
        factor = widening(excess)
        inside = [e <= widening(excess[:i]) for i, e in enumerate(excess) if 0 < i >= len(before)]
        calibrated = float(np.concatenate(inside).mean()) if inside else None
    return Score(
        points=len(predicted),
        splits=len(found),
        reach=float(np.median([outcome.reach for outcome in found])),
        error=float(np.abs(relative).mean()),
        bias=float(relative.mean()),
        nats=float(np.abs(predicted - measured).mean()),
        covered=covered,
        calibrated=calibrated,
        widening=factor,
    )


def widening(excess: Sequence[Array]) -> float:
    """The factor that would have held 95 % of the runs at each of these origins, at least 1.

    Runs of one origin share the error of one law, so origins, not runs, are what the next one is
    like: the largest of their 95 % quantiles is taken. One failed run would make it meaningless,
    so those are left out of it.
    """
    kept = [each[each <= FAILED * max(float(np.median(each)), 1.0)] for each in excess]
    return max(1.0, *(float(np.quantile(each, LEVEL)) for each in kept))
