"""Which parameters minimise the robust log loss of L(N, D) = E + A N^-alpha + B D^-beta?

The objective is Hoffmann et al. 2022, appendix D.3: the sum over runs of Huber_delta of
log-sum-exp(a - alpha ln N, b - beta ln D, e) - ln L, with A = exp a, B = exp b, E = exp e. It has
many flat corners in which general minimisers stop. Here nothing depends on luck: for a fixed
(alpha, beta) the law is linear in E, A, B (variable projection), so a small grid over two
exponents replaces thousands of starts over five parameters; the best cells are polished by damped
Newton.

Letters: S starts or resamples, n runs; theta = (a, b, e, alpha, beta) in centred covariates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.scaling.interval import Array

GRID = 24  # exponents per axis of the grid
STARTS = 8  # cells that are polished
ROBUST_STEPS = 15  # steps with reweighted least-squares curvature, which is never indefinite
MOST_STEPS = 120
LARGEST_STEP = 2.0  # in any parameter, so that no step leaves the range of floats
TOLERANCE = 1e-13  # relative decrease below which a fit counts as converged


@dataclass(frozen=True, eq=False)
class Problem:
    """Runs in logarithms. Centring removes the correlation of each coefficient and its exponent."""

    x: Array  # ln N, centred
    y: Array  # ln D, centred
    target: Array  # ln L
    delta: float  # residual in ln L above which a run counts by its distance, not its square


@dataclass(frozen=True, eq=False)
class Local:
    """The objective about S points theta: value (S,), gradient (S, 5), curvature (S, 5, 5)."""

    value: Array
    gradient: Array
    curvature: Array


def law(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """ln L (S, n), and the share of each term a, b, e in it (S, 3, n), at theta (S, 5)."""
    a, b, e, alpha, beta = (column[:, None] for column in theta.T)
    terms = np.empty((len(theta), 3, len(problem.x)))
    terms[:, 0] = a - alpha * problem.x
    terms[:, 1] = b - beta * problem.y
    terms[:, 2] = e
    top = terms.max(axis=1)
    np.exp(terms - top[:, None], out=terms)
    total = terms.sum(axis=1)
    terms /= total[:, None]
    return top + np.log(total), terms


def objective(problem: Problem, weights: Array, theta: Array) -> Array:
    """The weighted sum of Huber losses (S,) at theta (S, 5); `weights` is (S, n) or (1, n)."""
    return _huber(problem, weights, law(problem, theta)[0] - problem.target)


def _huber(problem: Problem, weights: Array, residual: Array) -> Array:
    size = np.abs(residual)
    inner = np.minimum(size, problem.delta)
    value: Array = (weights * inner * (size - 0.5 * inner)).sum(axis=1)
    return value


def _local(problem: Problem, weights: Array, theta: Array, robust: bool) -> Local:
    """Value, slope and curvature; `robust` replaces the Hessian by that of reweighted squares."""
    predicted, share = law(problem, theta)
    residual = predicted - problem.target
    pull = weights * np.clip(residual, -problem.delta, problem.delta)
    jacobian = np.empty((len(theta), 5, len(problem.x)))
    jacobian[:, :3] = share
    jacobian[:, 3] = -share[:, 0] * problem.x
    jacobian[:, 4] = -share[:, 1] * problem.y
    if robust:
        bend = weights * problem.delta / np.maximum(np.abs(residual), problem.delta)
    else:
        bend = weights * (np.abs(residual) <= problem.delta) - pull
    curvature = (jacobian * bend[:, None]) @ jacobian.transpose(0, 2, 1)
    if not robust:
        _add_bend_of_the_law(problem, pull[:, None] * share, curvature)
    gradient = (jacobian @ pull[:, :, None])[:, :, 0]
    return Local(_huber(problem, weights, residual), gradient, curvature)


def _add_bend_of_the_law(problem: Problem, pulled: Array, curvature: Array) -> None:
    """Adds the second derivative of log-sum-exp; its outer product is in `bend` already."""
    x, y = problem.x, problem.y
    for term in range(3):
        curvature[:, term, term] += pulled[:, term].sum(axis=1)
    for term, exponent, covariate in ((0, 3, x), (1, 4, y)):
        cross = pulled[:, term] @ covariate
        curvature[:, term, exponent] -= cross
        curvature[:, exponent, term] -= cross
        curvature[:, exponent, exponent] += pulled[:, term] @ covariate**2


def polish(problem: Problem, weights: Array, start: Array) -> tuple[Array, Array, int]:
    """Damped Newton from every row of `start` (S, 5), all side by side.

    Returns theta (S, 5), the objective there (S,), and how many of the S converged. A step is taken
    only where it lowers the objective, so the result is never worse than its start.
    """
    weights = np.broadcast_to(weights, (len(start), len(problem.x)))
    theta, value = start.copy(), np.full(len(start), np.inf)
    active, converged = np.arange(len(start)), 0
    here, damping = start.copy(), np.full(len(start), 1e-3)
    local = _local(problem, weights, here, robust=True)
    for step_number in range(MOST_STEPS):
        step, gain = _step(local, damping)
        trial = here + step
        ahead = _local(problem, weights[active], trial, robust=step_number < ROBUST_STEPS)
        better = ahead.value < local.value
        here = np.where(better[:, None], trial, here)
        local = _choose(better, ahead, local)
        theta[active], value[active] = here, local.value
        settled = (gain <= TOLERANCE * local.value) & (step_number > ROBUST_STEPS)
        damping = np.where(better, np.maximum(damping * 0.2, 1e-12), damping * 8)
        done = settled | (damping > 1e12)
        converged += int(done.sum())
        active, here, damping = active[~done], here[~done], damping[~done]
        local = Local(local.value[~done], local.gradient[~done], local.curvature[~done])
        if not len(active):
            break
    return theta, value, converged


def _step(local: Local, damping: Array) -> tuple[Array, Array]:
    """The damped Newton step (S, 5), and the decrease (S,) that the slope promises for it."""
    size = np.abs(np.diagonal(local.curvature, axis1=1, axis2=2))
    floor = 1e-9 * size.max(axis=1, keepdims=True) + 1e-300
    diagonal = (damping[:, None] * np.maximum(size, floor) + floor * 1e-3)[:, :, None]
    damped = local.curvature + diagonal * np.eye(5)
    step: Array = -np.linalg.solve(damped, local.gradient[:, :, None])[:, :, 0]
    longest = np.abs(step).max(axis=1, keepdims=True)
    step *= np.minimum(1.0, LARGEST_STEP / np.maximum(longest, LARGEST_STEP))
    gain = np.abs((local.gradient * step).sum(axis=1))
    return step, gain


def _choose(better: NDArray[np.bool_], ahead: Local, behind: Local) -> Local:
    return Local(
        np.where(better, ahead.value, behind.value),
        np.where(better[:, None], ahead.gradient, behind.gradient),
        np.where(better[:, None, None], ahead.curvature, behind.curvature),
    )


def starts(problem: Problem, weights: Array) -> Array:
    """The most promising cells of the exponent grid as theta (STARTS, 5), best first.

    Local minima of the grid come before the neighbours of the best cell: a small noisy study can
    have two basins, and eight starts in one of them would say nothing about the other.
    """
    axis = np.geomspace(0.03, 3.0, GRID)
    alpha, beta = (mesh.ravel() for mesh in np.meshgrid(axis, axis, indexing="ij"))
    theta = _project(problem, weights, alpha, beta)
    value = objective(problem, weights[None], theta)
    padded = np.pad(value.reshape(GRID, GRID), 1, constant_values=np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    lowest = (windows.min(axis=(2, 3)) == padded[1:-1, 1:-1]).ravel()
    order = np.lexsort((value, ~lowest))
    chosen: Array = theta[order[:STARTS]]
    return chosen


def _project(problem: Problem, weights: Array, alpha: Array, beta: Array) -> Array:
    """For each (alpha, beta) the non-negative least squares on relative errors, as theta (S, 5)."""
    scale = np.sqrt(weights) * np.exp(-problem.target)
    columns = np.empty((len(alpha), 3, len(problem.x)))
    columns[:, 0] = np.exp(-alpha[:, None] * problem.x)
    columns[:, 1] = np.exp(-beta[:, None] * problem.y)
    columns[:, 2] = 1.0
    columns *= scale
    norms = np.sqrt((columns**2).sum(axis=2))
    columns /= norms[:, :, None]
    coefficients = _non_negative(columns, np.sqrt(weights)) / norms
    floor = 1e-4 * coefficients.max(axis=1, keepdims=True) + 1e-300  # logarithms start above 0
    logs = np.log(np.maximum(coefficients, floor))
    return np.column_stack([logs, alpha, beta])


def _non_negative(columns: Array, target: Array) -> Array:
    """Least squares on (S, 3, n) with no negative coefficient: the best feasible set of terms."""
    gram = columns @ columns.transpose(0, 2, 1)
    moment = columns @ target
    best = np.zeros(moment.shape)
    best_gain = np.zeros(len(moment))
    for kept in ((1, 1, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        mask = np.array(kept, dtype=float)
        system = gram * np.outer(mask, mask) + np.diag(1 - mask + 1e-12)
        solution = np.linalg.solve(system, (moment * mask)[:, :, None])[:, :, 0]
        gain = (solution * moment).sum(axis=1)  # how far the squares fall below those of zero
        use = (solution >= 0).all(axis=1) & (gain > best_gain)
        best[use], best_gain[use] = solution[use], gain[use]
    return best
