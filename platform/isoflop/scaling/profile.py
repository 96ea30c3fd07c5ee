"""Which values of a parameter do the runs allow, when all other parameters may adapt?

The profile of the objective: the parameter is held at a value, the others are fitted again, and the
value is allowed while the objective rises by less than the noise would explain. Unlike percentiles
of resamples it does not need the resamples to scatter evenly about the estimate. The rise is
compared with chi2 after the scaling of robust likelihood-ratio tests (Heritier & Ronchetti 1994):
twice the rise times mean psi' over mean psi^2, psi the objective's slope; for least squares that is
the ordinary test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.scaling.interval import Array, Interval
from isoflop.scaling.minimise import polish
from isoflop.scaling.parametric import ParametricFit

CHI2 = 3.841458820694124  # 95 % of chi2 with one degree of freedom
STEPS = np.concatenate([np.arange(0.5, 4.01, 0.5), [5.0, 6.5, 8.0, 11.0, 15.0]])
SKEWED = 0.2  # (upper - lower arm) / (both) of an interval beyond which it counts as skewed


@dataclass(frozen=True, eq=False)
class Profile:
    """Values of the parameter (ascending, logarithms where the form estimates those), the scaled
    rise of the objective there, and the interval; an arm that never ends is infinite."""

    parameter: str
    values: Array
    rise: Array
    interval: Interval


def skewed(interval: Interval) -> bool:
    """Whether one arm of the interval is much longer than the other."""
    up, down = interval.high - interval.value, interval.value - interval.low
    if not np.isfinite(up + down):
        return True
    return abs(up - down) > SKEWED * (up + down)


def profile(fit: ParametricFit, parameter: str) -> Profile:
    """The profile of one of the form's `pinnable` parameters. Raises ValueError for others."""
    form = fit.form
    if parameter not in form.pinnable or parameter in fit.pinned:
        allowed = ", ".join(name for name in form.pinnable if name not in fit.pinned)
        raise ValueError(f"parameter is {parameter!r}; a profile is known for {allowed}")
    if fit.bounds:
        raise ValueError(f"{', '.join(fit.bounds)} bounded: no profile is known")
    if fit.shared:
        raise ValueError(f"{', '.join(fit.shared)} shared with other families: no profile is known")
    matrix, shift = form.uncentred(fit.centre)
    row = matrix[form.coordinates.index(parameter)]
    level = float(row @ fit.theta + shift[form.coordinates.index(parameter)])
    along = np.eye(len(fit.theta)) if fit.directions is None else fit.directions
    path, unit = _path(fit, along, row)
    steps = np.concatenate([-STEPS[::-1], STEPS]) * unit
    start = fit.theta + steps[:, None] * path
    inner = row @ along
    _, _, right = np.linalg.svd(inner[None])
    found = polish(fit.problem, fit.weights[None], start, along @ right[1:].T)
    rise = np.maximum(found.value - fit.objective, 0) * _scaling(fit)
    low = level - _crossing(-steps[::-1][len(STEPS) :], rise[::-1][len(STEPS) :])
    high = level + _crossing(steps[len(STEPS) :], rise[len(STEPS) :])
    interval = Interval(level, low, high)
    if parameter in form.logarithmic:
        interval = interval.exponential()
    return Profile(parameter, level + steps, rise, interval)


def _path(fit: ParametricFit, along: Array, row: Array) -> tuple[Array, float]:
    """How theta moves with the parameter to first order, and one standard error of it: that of an
    M-estimate, mean psi^2 / (mean psi')^2 times the inverse of the squared slopes."""
    slopes = along.T @ fit.problem.jacobian(fit.theta[None])[0]
    curvature = (slopes * fit.weights) @ slopes.T
    size = np.abs(np.diag(curvature)).max()
    inverse = np.linalg.pinv(curvature + 1e-12 * size * np.eye(len(curvature)), hermitian=True)
    inner = row @ along
    spread = float(inner @ inverse @ inner)
    bend, square = _moments(fit)
    unit = np.sqrt(max(spread * square, 1e-300)) / max(bend, 1e-300)
    return along @ inverse @ inner / spread, float(unit)


def _scaling(fit: ParametricFit) -> float:
    """What turns a rise of the objective into a chi2 variable."""
    bend, square = _moments(fit)
    # A perfect fit leaves no noise to compare a rise with: every rise is then too much.
    return 2 * bend / max(square, 1e-300)


def _moments(fit: ParametricFit) -> tuple[float, float]:
    """The means of psi' and psi^2, for the runs less the free parameters."""
    residual, loss = fit.residuals(), fit.loss
    square = float(np.average(loss.slope(residual) ** 2, weights=fit.weights))
    # In the linear zone psi' is a density at 0, which a window of sensible width estimates.
    window = 1.06 * 1.4826 * float(np.median(np.abs(residual))) * fit.points**-0.2
    if loss.delta >= window:
        bend = float(np.average(loss.bend(residual), weights=fit.weights))
    else:
        inside = (np.abs(residual) <= window) * loss.delta / window
        side = loss.robust_bend(residual) * np.maximum(np.abs(residual), loss.delta) / loss.delta
        bend = float(np.average(inside * side, weights=fit.weights))
    freedom = max(fit.points - fit.free, 1) / fit.points
    return bend, square / freedom


def _crossing(steps: Array, rise: Array) -> float:
    """The distance at which the rise reaches the limit: signed roots are close to straight."""
    root = np.sqrt(np.concatenate([[0.0], rise]))
    distance = np.concatenate([[0.0], steps])
    above = np.flatnonzero(root >= np.sqrt(CHI2))
    if not len(above):
        return float("inf")
    i = int(above[0])
    share = (np.sqrt(CHI2) - root[i - 1]) / (root[i] - root[i - 1])
    return float(distance[i - 1] + share * (distance[i] - distance[i - 1]))
