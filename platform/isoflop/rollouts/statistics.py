"""How sure is a number that was measured on a few prompts with a few seeds each?

Rollouts of one prompt resemble each other, so the prompts are the sample: they are drawn again with
replacement, and each brings its rollouts along as they are. Drawing the seeds again inside a drawn
prompt would count the noise between seeds twice, since the prompts' means already carry it
(Davison & Hinkley 1997, section 3.8). With a single prompt the seeds are all there is, and the
interval is about that prompt only.

`draw="nested"` is the hierarchical bootstrap in full: prompts are drawn, then seeds within each,
and what would count twice is taken out before. The prompts' means are drawn together by the share
of their variance that is the seeds' noise, and the residuals stretched to the variance that they
stand for. It covers as often, and takes a few times as long.

A few prompts give intervals that are too short by the percentile method; its levels are widened as
Hesterberg 2015 (The American Statistician 69) proposes, so that normal data get Student's t.

Letters: B resamples, G groups (prompts, or rollouts where there is one prompt).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000
GROUPS = 16  # at most so many parts are left out in turn; fewer would leave the error itself unsure

Floats = NDArray[np.float64]
Draw = Literal["prompts", "nested"]


@dataclass(frozen=True)
class Aggregate:
    """A value over many rollouts, its standard error, and a 95 % interval. None: not to be had."""

    value: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    prompts: int  # that have at least one value
    rollouts: int  # that have a value
    estimator: str  # how value and interval were made, or why there is none
    missing: int = 0  # rollouts without a value: left out


def mean(
    values: Sequence[float | None] | Floats,
    prompts: Sequence[int] | NDArray[np.integer],
    *,
    share: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
    draw: Draw = "prompts",
) -> Aggregate:
    """The mean of the rollouts' values with its interval by bootstrap over prompts.

    `values`: one per rollout, None or not finite where there is none; `prompts`: which prompt each
    belongs to; `share`: they lie in [0, 1]; `draw`: prompts with their rollouts as they are, or
    "nested", their rollouts too. Equal arguments give equal results. Where all values
    are equal, a bootstrap would claim certainty. All shares 0 or 1 get the exact binomial interval
    (Clopper & Pearson 1934), which takes the rollouts as independent; other values get none.
    """
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    groups = np.asarray(prompts)
    if len(array) != len(groups):
        raise ValueError(f"{len(array)} values need as many prompts, not {len(groups)}")
    kept = np.isfinite(array)
    missing = int((~kept).sum())
    array, groups = array[kept], groups[kept]
    if not len(array):
        return Aggregate(None, None, None, None, 0, 0, "no values", missing)
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    known = Aggregate(float(array.mean()), None, None, None, count, len(array), "", missing)
    if array.min() == array.max():
        return _constant(known, share)
    if count == 1:  # a prompt of its own for every rollout: the seeds are the sample
        group, count = np.arange(len(array)), len(array)
    nests = draw == "nested" and known.prompts > 1
    error, low, high = (_nested if nests else _bootstrap)(array, group, count, seed, resamples)
    unit = "prompts" if known.prompts > 1 else "seeds of one prompt"
    unit += ", then seeds" if nests else ""
    return replace(
        known, standard_error=error, low=low, high=high, estimator=f"mean, bootstrap over {unit}"
    )


def _bootstrap(
    values: Floats, group: NDArray[np.integer], groups: int, seed: int, resamples: int
) -> tuple[float, float, float]:
    """Standard error and interval of the pooled mean over drawn groups."""
    sums = np.bincount(group, weights=values, minlength=groups)
    sizes = np.bincount(group, minlength=groups)
    drawn = np.random.default_rng(seed).multinomial(groups, [1 / groups] * groups, size=resamples)
    means = (drawn @ sums) / (drawn @ sizes)
    tail = _tail(groups)
    low, high = np.quantile(means, [tail, 1 - tail])
    # A resample of G groups varies (G - 1) / G times as much as a new sample would.
    return float(means.std(ddof=1) * math.sqrt(groups / (groups - 1))), float(low), float(high)


def _nested(
    values: Floats, group: NDArray[np.integer], groups: int, seed: int, resamples: int
) -> tuple[float, float, float]:
    """The same, drawing rollouts within drawn groups too.

    The variance of the means is what both levels come to together. What of it is not noise of the
    rollouts is that between groups, and the centres have it; the residuals have the rest.
    """
    sizes = np.bincount(group, minlength=groups)
    means = np.bincount(group, weights=values, minlength=groups) / sizes
    residuals = values - means[group]
    within = residuals @ residuals / max(1, len(values) - groups)
    observed, noise = float(means.var(ddof=1)), float(within * (1 / sizes).mean())
    between = max(0.0, observed - noise)
    middle = float(values.mean())
    spread = math.sqrt(between / observed * groups / (groups - 1)) if observed else 0.0
    centres = middle + spread * (means - means.mean())
    rest = math.sqrt((observed - between) / noise) if noise else 0.0
    residuals *= rest * np.sqrt(sizes / np.maximum(1, sizes - 1))[group]
    random = np.random.default_rng(seed)
    drawn = random.multinomial(groups, [1 / groups] * groups, size=resamples)
    sums = drawn @ (centres * sizes)
    for index in range(groups):
        own = residuals[group == index]
        for times in range(1, int(drawn[:, index].max()) + 1):
            among = drawn[:, index] >= times
            sums[among] += own[random.integers(len(own), size=(among.sum(), len(own)))].sum(axis=1)
    found = sums / (drawn @ sizes)
    low, high = np.quantile(found, [tail := _beyond(_student(groups - 1)), 1 - tail])
    return float(found.std(ddof=1)), float(low), float(high)


def _tail(groups: int) -> float:
    """The probability beyond each end of the widened percentile interval."""
    return _beyond(math.sqrt(groups / (groups - 1)) * _student(groups - 1))


def _beyond(deviations: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(-deviations))


def _student(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _constant(known: Aggregate, share: bool) -> Aggregate:
    value = known.value
    if not share or value not in (0.0, 1.0):
        return replace(known, estimator="mean, all values equal: no interval")
    away = 1 - ((1 - LEVEL) / 2) ** (1 / known.rollouts)
    low, high = (0.0, away) if value == 0 else (1 - away, 1.0)
    return replace(
        known, standard_error=0.0, low=low, high=high, estimator="share, exact binomial interval"
    )


def jackknife(
    statistic: Callable[[NDArray[np.bool_]], float | None],
    prompts: Sequence[int] | NDArray[np.integer],
    *,
    name: str,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> Aggregate:
    """A statistic of a whole set of rollouts, with its interval by leaving out prompts in turn.

    `statistic` takes the rollouts to use as a mask. A bootstrap would not do: a resample holds the
    same rollout twice, and what is counted here (distinct n-grams) would see repetition that is
    not there. Above 16 prompts, groups of them are left out. With one prompt, its rollouts are
    left out instead. The interval is Student's, cut to [lowest, highest].
    """
    groups = np.asarray(prompts)
    known = len(np.unique(groups))
    everything = np.ones(len(groups), dtype=np.bool_)
    value = statistic(everything) if len(groups) else None
    base = Aggregate(value, None, None, None, known, len(groups), name)
    if value is None:
        return base
    _, group = np.unique(groups if known > 1 else np.arange(len(groups)), return_inverse=True)
    group = group % GROUPS
    count = int(group.max()) + 1
    left = [statistic(group != index) for index in range(count)]
    partial = np.array([item for item in left if item is not None], dtype=np.float64)
    if count < 2 or len(partial) < count:
        return replace(base, estimator=f"{name}; too few tokens for an interval")
    error = math.sqrt((count - 1) / count * float(((partial - partial.mean()) ** 2).sum()))
    half = _student(count - 1) * error
    unit = "prompts" if known > 1 else "seeds of one prompt"
    return replace(
        base,
        standard_error=error,
        low=max(lowest, value - half),
        high=min(highest, value + half),
        estimator=f"{name}, jackknife over {unit}",
    )
