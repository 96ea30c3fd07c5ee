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

from isoflop.scaling.interval import Array, Refusal
from isoflop.scaling.parametric import ParametricFit, bootstrap

APART = 1.1  # budgets differ by at least this factor
GROUPS = 8  # of equal numbers of runs, where compute has no clear budgets
MOST_BUDGETS = 16
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
    first = (groups.max() + 1) // 2
    return [Split(groups < g, groups == g) for g in range(max(first, 1), groups.max() + 1)]


def score(
    fitter: Fitter,
    splits: Sequence[Split],
    size: Array,
    tokens: Array,
    flops: Array,
    loss: Array,
    *,
    resamples: int = 0,
    seed: int = 0,
) -> Score | Refusal:
    """Fits each split's smaller runs by `fitter` (mask -> law) and predicts the larger ones.

    `resamples` above 0: also counts how many held-out runs their prediction intervals cover.
    Splits whose smaller runs refuse a law are left out; refused where all do.
    """
    relative, nats, reach, inside = [], [], [], []
    refusal = Refusal("too few points", "no run can be held out", "add runs of more compute")
    used = 0
    for split in splits:
        if not split.train.any():
            continue
        law = fitter(split.train)
        if isinstance(law, Refusal):
            refusal = law
            continue
        used += 1
        at = (size[split.test], tokens[split.test], flops[split.test])
        predicted, measured = law.predict(*at), loss[split.test]
        relative.append(predicted / measured - 1)
        nats.append(np.abs(predicted - measured))
        reach.append(np.median(flops[split.test]) / flops[split.train].max())
        if resamples:
            drawn = bootstrap(law, resamples=resamples, seed=seed)
            low, high = drawn.bands(*at, noise=True, seed=seed)
            inside.append((low <= measured) & (measured <= high))
    if not used:
        return refusal
    misses = np.concatenate(relative)
    return Score(
        points=len(misses),
        splits=used,
        reach=float(np.median(reach)),
        error=float(np.abs(misses).mean()),
        bias=float(misses.mean()),
        nats=float(np.concatenate(nats).mean()),
        covered=float(np.concatenate(inside).mean()) if inside else None,
    )
