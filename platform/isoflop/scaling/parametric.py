"""Which law L(N, D) = E + A N^-alpha + B D^-beta do the runs follow? (Approach 3)

The form and the objective are those of Hoffmann et al. 2022 (section 3.3 and appendix D.3), the
bootstrap by run is that of Besiroglu et al. 2024. Deterministic, numpy alone; the work is done in
`huber`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.scaling.huber import Problem, law, polish, starts
from isoflop.scaling.interval import Array, Interval, Refusal, positive

PARAMETERS = ("E", "A", "B", "alpha", "beta")
BLOCK = 128  # resamples side by side: large enough for numpy, small enough for the cache
VANISHING = 1e-4  # share of the loss below which a term counts as zero
FLATTEST = 1e-3  # an exponent below this makes its term a second constant
STEEPEST = 3.0  # above, the end of the start grid, its term explains only the smallest runs


@dataclass(frozen=True)
class Optimum:
    """The size and tokens that give the lowest loss for a budget."""

    flops: float
    size: Interval
    tokens: Interval
    loss: Interval


@dataclass(frozen=True, eq=False)
class ParametricFit:
    """The law that fits best. `boundary` names the terms that vanished or exponents that left
    their range: such a law describes the runs but must not be extrapolated."""

    E: float  # nats per token that no size and no data remove
    A: float
    B: float
    alpha: float
    beta: float
    objective: float  # sum of Huber losses of ln L
    delta: float
    points: int
    boundary: tuple[str, ...]
    starts: int  # polished cells of the grid
    agreeing: int  # of them, those that ended within 1e-6 (relative) of the best objective
    problem: Problem
    weights: Array
    theta: Array  # (5,) in the problem's centred covariates
    centre: tuple[float, float]  # means of ln N and ln D

    def predict(self, size: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss in nats per token; `size` and `tokens` broadcast."""
        x = np.log(np.asarray(size, dtype=float)) - self.centre[0]
        y = np.log(np.asarray(tokens, dtype=float)) - self.centre[1]
        with np.errstate(over="ignore", under="ignore"):
            loss: Array = np.exp(_log_loss(self.theta, x, y))
        return loss

    def optimum(self, flops: float, *, factor: float = 6.0) -> Optimum | Refusal:
        """The lowest loss for `flops` = factor N D (6 by default), without an interval."""
        return _optimum(self, self.theta[None], flops, factor)

    def residuals(self) -> Array:
        """ln L predicted less ln L measured, per run."""
        residual: Array = law(self.problem, self.theta[None])[0][0] - self.problem.target
        return residual


@dataclass(frozen=True, eq=False)
class Resampled:
    """A fit and its bootstrap by run: theta (R, 5) of the resamples that could be fitted."""

    fit: ParametricFit
    theta: Array
    degenerate: int  # resamples without two sizes and two token counts, left out

    def interval(self, parameter: str) -> Interval:
        """Of "E", "A", "B", "alpha" or "beta"."""
        if parameter not in PARAMETERS:
            allowed = ", ".join(PARAMETERS)
            raise ValueError(f"parameter is {parameter!r}; it must be one of {allowed}")
        column = PARAMETERS.index(parameter)
        value = _shifted(self.fit.theta[None], self.fit.centre)[0, column]
        interval = Interval.of(float(value), _shifted(self.theta, self.fit.centre)[:, column])
        return interval.exponential() if parameter in ("E", "A", "B") else interval

    def predict(self, size: float, tokens: float) -> Interval:
        """The law's loss at one point. The scatter of single runs about the law is not in it."""
        x, y = np.log(float(size)) - self.fit.centre[0], np.log(float(tokens)) - self.fit.centre[1]
        value = float(_log_loss(self.fit.theta, x, y))
        return Interval.of(value, _log_loss(self.theta.T, x, y)).exponential()

    def optimum(self, flops: float, *, factor: float = 6.0) -> Optimum | Refusal:
        """As the fit's, with intervals from the resamples whose own law has an optimum."""
        return _optimum(self.fit, self.theta, flops, factor)


def fit(
    size: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    delta: float = 1e-3,
    weights: ArrayLike | None = None,
) -> ParametricFit | Refusal:
    """The law through runs of `size` parameters and `tokens` tokens with `loss` nats per token.

    `weights`: how much each run counts (default 1 each). Refused below 6 runs, or where sizes and
    tokens do not vary apart from each other. Raises ValueError for values that are not above 0.
    """
    n, d, target = positive("size", size), positive("tokens", tokens), positive("loss", loss)
    if not n.shape == d.shape == target.shape or n.ndim != 1:
        raise ValueError(
            f"size {n.shape}, tokens {d.shape}, loss {target.shape} must be one length"
        )
    if not delta > 0:
        raise ValueError(f"delta is {delta}; it must be above 0")
    counts = np.ones(len(n)) if weights is None else positive("weights", weights)
    if counts.shape != n.shape:
        raise ValueError(f"weights {counts.shape} must have the shape of the runs, {n.shape}")
    refusal = _refuse(n, d)
    if refusal:
        return refusal
    centre = (float(np.log(n).mean()), float(np.log(d).mean()))
    problem = Problem(np.log(n) - centre[0], np.log(d) - centre[1], np.log(target), delta)
    return _fit(problem, counts, centre)


def _fit(problem: Problem, weights: Array, centre: tuple[float, float]) -> ParametricFit:
    begin = starts(problem, weights)
    theta, value, _ = polish(problem, weights[None], begin)
    best = int(value.argmin())
    *logs, alpha, beta = _shifted(theta[best : best + 1], centre)[0]
    with np.errstate(over="ignore", under="ignore"):
        e, a, b = np.exp(logs)
    return ParametricFit(
        E=float(e),
        A=float(a),
        B=float(b),
        alpha=float(alpha),
        beta=float(beta),
        objective=float(value[best]),
        delta=problem.delta,
        points=len(problem.x),
        boundary=_boundary(problem, theta[best]),
        starts=len(begin),
        agreeing=int((value <= value[best] * (1 + 1e-6)).sum()),
        problem=problem,
        weights=weights,
        theta=theta[best],
        centre=centre,
    )


def _refuse(size: Array, tokens: Array) -> Refusal | None:
    if len(size) < 6:
        why = f"{len(size)} runs cannot fix a law of 5 parameters"
        return Refusal("too few points", why, "finish at least 6 runs")
    if len(np.unique(size)) < 2:
        why = f"all runs have {size[0]:.4g} parameters"
        return Refusal("one size only", why, "add runs of another size")
    if len(np.unique(tokens)) < 2:
        why = f"all runs read {tokens[0]:.4g} tokens"
        return Refusal("one token count only", why, "add runs of another length")
    logs = np.column_stack([np.log(size), np.log(tokens)])
    spread = np.linalg.svd(logs - logs.mean(axis=0), compute_uv=False)
    if spread[1] < 0.02 * spread[0]:
        why = "sizes and tokens lie on one line, so their effects cannot be told apart"
        return Refusal("one line only", why, "add runs of a second budget")
    return None


def bootstrap(fit: ParametricFit, *, resamples: int = 1000, seed: int = 0) -> Resampled:
    """Refits to runs drawn with replacement, each from the point fit's parameters.

    Whole runs are drawn, since the losses within one run are not independent. The same seed gives
    the same result to the bit.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    n = fit.points
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    usable = np.array([_varied(fit.problem, row > 0) for row in counts])
    if not usable.any():
        raise ValueError(f"none of {resamples} resamples holds two sizes and two token counts")
    weights = counts[usable] * fit.weights
    blocks = []
    for first in range(0, len(weights), BLOCK):
        block = weights[first : first + BLOCK]
        start = np.repeat(fit.theta[None], len(block), axis=0)
        blocks.append(polish(fit.problem, block, start)[0])
    return Resampled(fit, np.concatenate(blocks), int(resamples - usable.sum()))


def _varied(problem: Problem, drawn: Array) -> bool:
    return bool(np.ptp(problem.x[drawn]) > 0 and np.ptp(problem.y[drawn]) > 0)


def _shifted(theta: Array, centre: tuple[float, float]) -> Array:
    """theta (R, 5) as ln E, ln A, ln B, alpha, beta without the centring."""
    a, b, e, alpha, beta = theta.T
    return np.column_stack([e, a + alpha * centre[0], b + beta * centre[1], alpha, beta])


def _log_loss(theta: Array, x: ArrayLike, y: ArrayLike) -> Array:
    """ln L in centred covariates; logarithms hold what a runaway resample would overflow."""
    a, b, e, alpha, beta = theta
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    loss: Array = np.logaddexp(np.logaddexp(a - alpha * x, b - beta * y), e)
    return loss


def _boundary(problem: Problem, theta: Array) -> tuple[str, ...]:
    largest = law(problem, theta[None])[1][0].max(axis=1)
    vanished = [name for name, share in zip("ABE", largest, strict=True) if share < VANISHING]
    exponents = zip(("alpha", "beta"), theta[3:], strict=True)
    return (*vanished, *(name for name, k in exponents if not FLATTEST <= k <= STEEPEST))


def _optimum(fit: ParametricFit, theta: Array, flops: float, factor: float) -> Optimum | Refusal:
    """Hoffmann et al. 2022, equation 4, in logarithms and centred covariates."""
    if not (flops > 0 and factor > 0):
        raise ValueError(f"flops {flops} and factor {factor} must be above 0")
    bad = [name for name in fit.boundary if name != "E"]
    if bad:
        why = f"the fitted law has {', '.join(bad)} at the boundary"
        return Refusal("law at its boundary", why, "add sizes and lengths, or repeat runs")
    # A product that is constant in centred units: x + y = budget.
    budget = np.log(flops) - np.log(factor) - sum(fit.centre)
    usable = theta[(theta[:, 3] > FLATTEST) & (theta[:, 4] > FLATTEST)]
    draws = _best_split(usable if len(usable) else fit.theta[None], budget)
    point = _best_split(fit.theta[None], budget)
    shifts = (fit.centre[0], fit.centre[1], 0.0)
    intervals = [
        Interval.of(float(value[0]) + shift, resampled + shift).exponential()
        for value, resampled, shift in zip(point, draws, shifts, strict=True)
    ]
    return Optimum(float(flops), *intervals)


def _best_split(theta: Array, budget: float) -> tuple[Array, Array, Array]:
    """ln N, ln D (centred) and ln L at the minimum of each law in theta (R, 5)."""
    a, b, _, alpha, beta = theta.T
    x = (np.log(alpha) + a - np.log(beta) - b + beta * budget) / (alpha + beta)
    y = budget - x
    return x, y, _log_loss(theta.T, x, y)
