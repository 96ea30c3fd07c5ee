"""Which size and how many tokens give the lowest loss for a budget, by a law and its resamples?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoflop.scaling.interval import Array, Interval, Refusal

if TYPE_CHECKING:
    from isoflop.scaling.parametric import ParametricFit

FLATTEST = 1e-3  # an exponent below this makes its term a second constant


@dataclass(frozen=True)
class Optimum:
    """The size and tokens that give the lowest loss for a budget."""

    flops: float
    size: Interval
    tokens: Interval
    loss: Interval
    ratio: Interval  # tokens per parameter
    without: int = 0  # resamples whose own law has no optimum


def optimum(
    fit: ParametricFit, theta: Array, flops: float, factor: float | None
) -> Optimum | Refusal:
    """Hoffmann et al. 2022, equation 4, for any form, in logarithms and centred covariates."""
    factor = fit.factor if factor is None else factor
    if not (flops > 0 and factor > 0):
        raise ValueError(f"flops {flops} and factor {factor} must be above 0")
    bad = [name for name in fit.boundary if name != "E"]
    if bad:
        why = f"the fitted law has {', '.join(bad)} at the boundary"
        return Refusal("law at its boundary", why, "add sizes and lengths, or repeat runs")
    # A product that is constant in centred units: x + y = budget.
    budget = float(np.log(flops) - np.log(factor) - fit.centre[0] - fit.centre[1])
    c = float(np.log(flops)) - fit.centre[2]
    point = _best(fit, fit.theta[None], budget, c)
    if not len(point[0]):
        why = "no size is best: the terms of the fitted law do not oppose each other"
        return Refusal("law at its boundary", why, "add sizes and lengths, or repeat runs")
    draws = _best(fit, theta, budget, c)
    missing = len(theta) - len(draws[0])
    if not len(draws[0]):
        draws = point
    shifts = (fit.centre[0], fit.centre[1], 0.0, fit.centre[1] - fit.centre[0])
    intervals = [
        Interval.of(float(value[0]) + shift, resampled + shift).exponential()
        for value, resampled, shift in zip(point, draws, shifts, strict=True)
    ]
    n, d, loss, ratio = intervals
    return Optimum(float(flops), n, d, loss, ratio, missing)


def _best(
    fit: ParametricFit, theta: Array, budget: float, c: float
) -> tuple[Array, Array, Array, Array]:
    """ln N, ln D (centred), ln L and ln D/N at the minimum of each law that has one."""
    x = fit.form.split(theta, budget)
    flat = (theta[:, [fit.form.coordinates.index(n) for n in fit.form.exponents]] <= FLATTEST).any(
        axis=1
    )
    good = np.isfinite(x) & ~flat
    x = x[good]
    y = budget - x
    law = fit.form.along(theta[good], x, y, np.full(len(x), c))
    return x, y, law, y - x
