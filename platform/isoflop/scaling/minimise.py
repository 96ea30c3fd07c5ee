"""Which parameters minimise the objective of a law that is a sum of powers?

The law is ln L = s log-sum-exp_k(t_k): every term t_k is linear in the parameters theta (the
logarithm of a coefficient, exponents times logarithms of sizes, tokens or FLOPs), and s is 1 or a
parameter of its own (Kaplan's outer exponent). The objective has many flat corners in which general
minimisers stop, so starts are chosen in `starts` without luck and polished here by damped Newton
with exact derivatives, thousands side by side.

Letters: S starts or resamples, n runs, K terms, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.scaling.interval import Array
from isoflop.scaling.objective import Objective

ROBUST_STEPS = 15  # steps with reweighted least-squares curvature, which is never indefinite
MOST_STEPS = 120
EARLY_STEPS = 30  # towards an objective that is only on the way
LARGEST_STEP = 2.0  # in any parameter, so that no step leaves the range of floats
TOLERANCE = 1e-13  # relative decrease that a fit counts as converged below, by exact curvature


@dataclass(frozen=True, eq=False)
class Local:
    """The objective about S points theta: value (S,), gradient (S, P), curvature (S, P, P)."""

    value: Array
    gradient: Array
    curvature: Array


@dataclass(frozen=True, eq=False)
class Polished:
    """Where the steps ended: theta (S, P), the objective there (S,), and which of S converged."""

    theta: Array
    value: Array
    converged: NDArray[np.bool_]


class Problem(Protocol):
    """Runs and a law, as `polish` needs them."""

    @property
    def target(self) -> Array: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def tolerance(self) -> float: ...

    def predict(self, theta: Array) -> Array:
        """ln L (S, n) at theta (S, P)."""
        ...

    def jacobian(self, theta: Array) -> Array:
        """The slopes of ln L (S, P, n) at theta (S, P)."""
        ...

    def local(self, theta: Array, weights: Array, robust: bool) -> Local:
        """Value, slope, curvature; `robust` replaces the Hessian by that of reweighted squares."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """One parameter in one term: theta[parameter] * slope is added to it."""

    term: int
    parameter: int
    slope: Array  # (n,)


@dataclass(frozen=True, eq=False)
class PowerSum:
    """Runs in logarithms, and the law whose terms are made of `parts`.

    Covariates are centred, which removes the correlation of each coefficient with its exponent.
    """

    x: Array  # ln N, centred
    y: Array  # ln D, centred
    target: Array  # ln L
    objective: Objective
    offsets: Array  # (K, n): what a term holds without any parameter; -inf where it is not there
    parts: tuple[Part, ...]
    size: int  # P
    power: int | None = None  # the parameter ln s

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    def terms(self, theta: Array) -> Array:
        """t_k (S, K, n) at theta (S, P)."""
        found = np.broadcast_to(self.offsets, (len(theta), *self.offsets.shape)).copy()
        for part in self.parts:
            found[:, part.term] += theta[:, part.parameter, None] * part.slope
        return found

    def predict(self, theta: Array) -> Array:
        """ln L (S, n) at theta (S, P)."""
        return self._scale(theta) * self._law(theta)[0]

    def jacobian(self, theta: Array) -> Array:
        """The slopes of ln L (S, P, n) at theta (S, P)."""
        return self._slopes(theta, *self._law(theta))

    def shares(self, theta: Array) -> Array:
        """The share of each term in the sum, (S, K, n)."""
        return self._law(theta)[1]

    def _scale(self, theta: Array) -> Array:
        if self.power is None:
            return np.ones((len(theta), 1))
        # No law has an exponent beyond these; a resample that runs away must not overflow.
        return np.exp(np.clip(theta[:, self.power], -50, 50))[:, None]

    def _law(self, theta: Array) -> tuple[Array, Array]:
        """log-sum-exp of the terms (S, n), and the share of each (S, K, n)."""
        terms = self.terms(theta)
        top = terms.max(axis=1)
        terms -= top[:, None]
        np.exp(terms, out=terms)
        total = terms.sum(axis=1)
        terms /= total[:, None]
        return top + np.log(total), terms

    def _slopes(self, theta: Array, inner: Array, share: Array) -> Array:
        slopes = np.zeros((len(theta), self.size, self.target.shape[-1]))
        for part in self.parts:
            slopes[:, part.parameter] += share[:, part.term] * part.slope
        if self.power is not None:
            slopes[:, self.power] = inner
            slopes *= self._scale(theta)[:, None]
        return slopes

    def local(self, theta: Array, weights: Array, robust: bool) -> Local:
        """Value, slope, curvature; `robust` replaces the Hessian by that of reweighted squares."""
        inner, share = self._law(theta)
        scale = self._scale(theta)
        residual = scale * inner - self.target
        pull = weights * self.objective.slope(residual)
        slopes = self._slopes(theta, inner, share)
        if robust:
            bend = weights * self.objective.robust_bend(residual)
        else:
            bend = weights * self.objective.bend(residual) - pull / scale
        curvature = (slopes * bend[:, None]) @ slopes.transpose(0, 2, 1)
        if not robust:
            self._bend_terms((pull * scale)[:, None] * share, curvature)
            if self.power is not None:
                self._bend_power(pull * (1 + inner), slopes, curvature)
        gradient = (slopes @ pull[:, :, None])[:, :, 0]
        value = (weights * self.objective.value(residual)).sum(axis=1)
        return Local(value, gradient, curvature)

    def _bend_terms(self, pulled: Array, curvature: Array) -> None:
        """Adds the second derivative of log-sum-exp; its outer product is in `bend` already."""
        for one in self.parts:
            for two in self.parts:
                if one.term == two.term and one.parameter <= two.parameter:
                    added = pulled[:, one.term] @ (one.slope * two.slope)
                    curvature[:, one.parameter, two.parameter] += added
                    if one.parameter != two.parameter:
                        curvature[:, two.parameter, one.parameter] += added

    def _bend_power(self, pulled: Array, slopes: Array, curvature: Array) -> None:
        """Adds the second derivatives with ln s: the slopes themselves, and what `bend` took."""
        row = (slopes @ pulled[:, :, None])[:, :, 0]
        curvature[:, self.power, :] += row
        curvature[:, :, self.power] += row
        curvature[:, self.power, self.power] -= row[:, self.power]


def evaluate(problem: Problem, weights: Array, theta: Array) -> Array:
    """The weighted objective (S,) at theta (S, P); `weights` is (S, n) or (1, n)."""
    cost = problem.objective.value(problem.predict(theta) - problem.target)
    value: Array = (weights * cost).sum(axis=1)
    return value


def polish(
    problem: Problem,
    weights: Array,
    start: Array,
    directions: Array | None = None,
    targets: Array | None = None,
) -> Polished:
    """Damped Newton from every row of `start` (S, P), all side by side.

    `targets` (S, n): ln L of the runs for each row instead of the problem's own.
    `directions` (P, Q): steps are taken along these columns only, which keeps every linear
    constraint on theta that holds at the start. A step is taken only where it lowers the objective,
    so the result is never worse than its start.
    """
    weights = np.broadcast_to(weights, (len(start), len(problem.target)))
    if targets is not None:
        problem = replace(problem, target=targets)  # type: ignore[type-var]
    along = np.eye(start.shape[1]) if directions is None else directions
    if not along.shape[1]:
        return Polished(start, evaluate(problem, weights, start), np.ones(len(start), bool))
    early = problem.objective.path()[:-1]
    for objective in early:
        smoother = replace(problem, objective=objective)  # type: ignore[type-var]
        start = _newton(smoother, weights, start, along, EARLY_STEPS).theta
    found = _newton(problem, weights, start, along)
    return _vertex(problem, weights, found, along) if early else found


def _newton(
    problem: Problem, weights: Array, start: Array, along: Array, steps: int = MOST_STEPS
) -> Polished:
    theta, value = start.copy(), np.full(len(start), np.inf)
    converged = np.zeros(len(start), dtype=bool)
    active, here, damping = np.arange(len(start)), start.copy(), np.full(len(start), 1e-3)
    local = problem.local(here, weights, True)
    for step_number in range(steps):
        step, gain = _step(local, damping, along)
        trial = here + step
        ahead = _rows(problem, active).local(trial, weights[active], step_number < ROBUST_STEPS)
        better = ahead.value < local.value
        here = np.where(better[:, None], trial, here)
        local = _choose(better, ahead, local)
        theta[active], value[active] = here, local.value
        settled = (gain <= problem.tolerance * local.value) & (step_number > ROBUST_STEPS)
        damping = np.where(better, np.maximum(damping * 0.2, 1e-12), damping * 8)
        done = settled | (damping > 1e12)
        converged[active[done]] = True
        active, here, damping = active[~done], here[~done], damping[~done]
        local = Local(local.value[~done], local.gradient[~done], local.curvature[~done])
        if not len(active):
            break
    return Polished(theta, value, converged)


def _rows(problem: Problem, rows: NDArray[np.intp]) -> Problem:
    """The problem of these rows, where each has targets of its own."""
    if problem.target.ndim == 1:
        return problem
    own: Problem = replace(problem, target=problem.target[rows])  # type: ignore[type-var]
    return own


def _step(local: Local, damping: Array, along: Array) -> tuple[Array, Array]:
    """The damped Newton step (S, P), and the decrease (S,) that the slope promises for it."""
    curvature, gradient = local.curvature, local.gradient
    free = along.shape[0] == along.shape[1]
    if not free:
        curvature, gradient = along.T @ curvature @ along, gradient @ along
    size = np.abs(np.diagonal(curvature, axis1=1, axis2=2))
    floor = 1e-9 * size.max(axis=1, keepdims=True) + 1e-300
    diagonal = (damping[:, None] * np.maximum(size, floor) + floor * 1e-3)[:, :, None]
    damped = curvature + diagonal * np.eye(along.shape[1])
    try:
        inner: Array = -np.linalg.solve(damped, gradient[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:  # one runaway among many, singular to the last bit
        inner = -(np.linalg.pinv(damped) @ gradient[:, :, None])[:, :, 0]
    step = inner if free else inner @ along.T
    longest = np.abs(step).max(axis=1, keepdims=True)
    step = step * np.minimum(1.0, LARGEST_STEP / np.maximum(longest, LARGEST_STEP))
    gain = np.abs((local.gradient * step).sum(axis=1))
    return step, gain


def _choose(better: NDArray[np.bool_], ahead: Local, behind: Local) -> Local:
    return Local(
        np.where(better, ahead.value, behind.value),
        np.where(better[:, None], ahead.gradient, behind.gradient),
        np.where(better[:, None, None], ahead.curvature, behind.curvature),
    )


def _vertex(problem: Problem, weights: Array, found: Polished, along: Array) -> Polished:
    """Least absolute deviations end where the law passes exactly through as many runs as it has
    free parameters: goes there from nearby, and keeps what is lower."""
    theta = found.theta.copy()
    rows = np.arange(len(theta))[:, None]
    residual = np.abs(problem.predict(theta) - problem.target)
    nearest = np.argsort(np.where(weights > 0, residual, np.inf), axis=1)[:, : along.shape[1]]
    for _ in range(4):
        miss = (problem.predict(theta) - problem.target)[rows, nearest]
        slopes = problem.jacobian(theta).transpose(0, 2, 1)[rows, nearest] @ along
        # Where the nearest runs do not fix all parameters, the shortest step is taken.
        step = (np.linalg.pinv(slopes, rcond=1e-12) @ miss[:, :, None])[:, :, 0]
        theta -= np.clip(np.nan_to_num(step @ along.T), -0.1, 0.1)
    value = evaluate(problem, weights, theta)
    better = value < found.value
    return Polished(
        np.where(better[:, None], theta, found.theta),
        np.where(better, value, found.value),
        found.converged | better,
    )
