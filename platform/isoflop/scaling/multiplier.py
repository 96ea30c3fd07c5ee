"""How much more compute does one family need to reach the loss of another?

The effective-compute multiplier of `first` over `second` at C: the factor m for which second's best
loss at m C equals first's best loss at C, each at its own best size. Above 1, `first` is better.
Resamples are paired: row r of both families belongs to one draw, so what moves both laws alike (a
shared floor, the same cells drawn) cancels.
"""

from __future__ import annotations

import numpy as np

from isoflop.scaling.interval import Array, Interval, Refusal
from isoflop.scaling.parametric import ParametricFit, Resampled
from isoflop.scaling.smooth import SmoothForm

FARTHEST = 12.0  # ln of the largest multiplier that is told from "never"
HALVINGS = 60


def multiplier(first: Resampled, second: Resampled, flops: float) -> Interval | Refusal:
    """The multiplier at `flops`, with the interval of its paired resamples.

    Resamples whose law has no optimum are left out. An end of the interval is inf (or 0) where
    resamples say that `second` never reaches (always surpasses) the loss.
    """
    if not flops > 0:
        raise ValueError(f"flops is {flops}; it must be above 0")
    for law in (first, second):
        if isinstance(law.fit.form, SmoothForm):
            raise ValueError(f"no multiplier is known for the form {law.fit.form.name}")
        bad = [name for name in law.fit.boundary if name != "E"]
        if bad:
            why = f"a fitted law has {', '.join(bad)} at the boundary"
            return Refusal("law at its boundary", why, "add sizes and lengths, or repeat runs")
    value = _solve(first.fit, first.fit.theta[None], second.fit, second.fit.theta[None], flops)[0]
    if not abs(value) < FARTHEST:
        why = "one law's floor lies above what the other has reached already"
        return Refusal("law at its boundary", why, "share E, or compare at less compute")
    rows = min(len(first.theta), len(second.theta))
    draws = _solve(first.fit, first.theta[:rows], second.fit, second.theta[:rows], flops)
    draws = draws[np.isfinite(draws)]
    interval = Interval.of(float(value), draws if len(draws) else [value])
    low = -np.inf if interval.low <= -FARTHEST * 0.999 else interval.low
    high = np.inf if interval.high >= FARTHEST * 0.999 else interval.high
    return Interval(interval.value, low, high).exponential()


def _solve(
    first: ParametricFit, one: Array, second: ParametricFit, two: Array, flops: float
) -> Array:
    """ln m (R,) by bisection, since the best loss falls with compute; nan without an optimum."""
    goal = best_loss(first, one, np.full(len(one), np.log(flops)))
    low, high = np.full(len(one), -FARTHEST), np.full(len(one), FARTHEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = best_loss(second, two, np.log(flops) + middle) > goal
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    lost = ~np.isfinite(goal + best_loss(second, two, np.full(len(two), np.log(flops))))
    found: Array = np.where(lost, np.nan, (low + high) / 2)
    return found


def best_loss(fit: ParametricFit, theta: Array, log_flops: Array) -> Array:
    """ln L (R,) of each law in theta (R, P) at its own best size for its own ln C (R,)."""
    c = log_flops - fit.centre[2]
    budget = log_flops - np.log(fit.factor) - fit.centre[0] - fit.centre[1]
    x = fit.form.split(theta, budget)
    return fit.form.along(theta, x, budget - x, c)
