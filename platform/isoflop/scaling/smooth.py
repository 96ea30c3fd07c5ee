"""Which laws are more than sums of powers, and how are they laid through runs?

    broken       L = E + A N^-alpha + B D^-beta (1 + (D/D_b)^4)^(-c/4)
                 one break in the data term (Caballero et al. 2023, with smoothness 1/4)
    farseer      L = exp(a_3 N^gamma + b_3) + exp(a_2 N^beta + b_2) D^-exp(a_1 N^alpha + b_1)
                 the shape of Li et al. 2025 (Farseer), with D in units of the runs' geometric mean
    repetition   L = E + A N'^-alpha + B D'^-beta, where repeated tokens and the parameters that
                 unique tokens cannot feed wear off (Muennighoff et al. 2023, equations 5 and 6)

Slopes come from complex steps (Squire & Trapp 1998), which are exact to rounding; the curvature is
that of reweighted least squares. Slower than `minimise.PowerSum`, and needing nothing but the law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from isoflop.scaling import slopes
from isoflop.scaling.forms import CHINCHILLA, Centre, Form, Points
from isoflop.scaling.interval import Array
from isoflop.scaling.minimise import Local
from isoflop.scaling.objective import Objective

STEP = 1e-30  # of the imaginary part: nothing is subtracted, so it may be as small as it likes
TOLERANCE = 1e-9  # relative decrease: without exact curvature the last digits come slowly
Slopes = Callable[[Array, Points], Array]
Law = Callable[[Any, Points], Any]  # columns of theta (P, S, 1), points (n,) -> ln L (S, n)


@dataclass(frozen=True, eq=False)
class Smooth:
    """Runs and a law that is analytic in its parameters; see `minimise.Problem`."""

    points: Points  # centred
    target: Array
    objective: Objective
    law: Law
    slopes: Slopes | None = None  # of ln L in closed form, where they are known

    @property
    def x(self) -> Array:
        return self.points.x

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    @property
    def y(self) -> Array:
        return self.points.y

    def predict(self, theta: Array) -> Array:
        """ln L (S, n) at theta (S, P)."""
        found: Array = np.real(self.law(theta.T[:, :, None], self.points))
        return found

    def jacobian(self, theta: Array) -> Array:
        """The slopes of ln L (S, P, n)."""
        if self.slopes is not None:
            return self.slopes(theta, self.points)
        found = np.empty((len(theta), theta.shape[1], self.target.shape[-1]))
        for parameter in range(theta.shape[1]):
            moved = theta.astype(complex)
            moved[:, parameter] += 1j * STEP
            found[:, parameter] = np.imag(self.law(moved.T[:, :, None], self.points)) / STEP
        return found

    def local(self, theta: Array, weights: Array, robust: bool) -> Local:
        """Value, slope and the curvature of reweighted squares, whether `robust` or not."""
        residual = self.predict(theta) - self.target
        slopes = self.jacobian(theta)
        pull = weights * self.objective.slope(residual)
        bend = weights * self.objective.robust_bend(residual)
        curvature = (slopes * bend[:, None]) @ slopes.transpose(0, 2, 1)
        gradient = (slopes @ pull[:, :, None])[:, :, 0]
        return Local((weights * self.objective.value(residual)).sum(axis=1), gradient, curvature)


def _sum(*terms: Any) -> Any:
    """log-sum-exp that complex steps pass through."""
    top = np.max([np.real(np.broadcast_arrays(*terms)[i]) for i in range(len(terms))], axis=0)
    return top + np.log(sum(np.exp(term - top) for term in terms))


def _broken(theta: Any, at: Points) -> Any:
    a, b, e, alpha, beta, where, change = theta
    bend = _sum(0 * where + 0 * at.y, slopes.SHARP * (at.y - where)) / slopes.SHARP
    return _sum(a - alpha * at.x, b - beta * at.y - change * bend, e + 0 * at.x)


def _farseer(theta: Any, at: Points) -> Any:
    level3, slope3, gamma, level2, slope2, beta, level1, slope1, alpha = theta

    def bent(level: Any, slope: Any, power: Any) -> Any:
        small = np.abs(np.real(power)) < 1e-6
        safe = np.where(small, 1e-6, power)
        steep = safe * at.x
        return level + slope * (np.exp(np.where(np.real(steep) < 50, steep, 50)) - 1) / safe

    grown = bent(level1, slope1, alpha)
    decay = np.exp(np.where(np.real(grown) < 5, grown, 5))
    return _sum(bent(level3, slope3, gamma), bent(level2, slope2, beta) - decay * at.y)


def _worn(excess: Any, half: Any) -> Any:
    """ln of what R = exp(excess) - 1 repeats are worth: 1 + R* (1 - exp(-R / R*)), R* = e^half."""
    inside = np.where(np.real(excess) > 0, np.where(np.real(excess) < 50, excess, 50), 0)
    repeats = np.exp(inside) - 1
    scale = np.exp(np.where(np.abs(np.real(half)) < 50, half, np.sign(np.real(half)) * 50))
    return np.log(1 + scale * (1 - np.exp(-repeats / scale)))


def _repetition(theta: Any, at: Points) -> Any:
    a, b, e, alpha, beta, tokens_half, size_half = theta
    alpha = np.where(np.real(alpha) > 1e-3, alpha, 1e-3)
    beta = np.where(np.real(beta) > 1e-3, beta, 1e-3)
    # The size that unique tokens feed: the optimum for as many tokens, seen once.
    fed = (np.log(alpha) + a - np.log(beta) - b + beta * at.u) / alpha
    fed = np.where(np.real(fed) < at.x, fed, at.x)
    n = fed + _worn(at.x - fed, size_half)
    d = at.u + _worn(at.y - at.u, tokens_half)
    return _sum(a - alpha * n, b - beta * d, e + 0 * n)


@dataclass(frozen=True)
class SmoothForm(Form):
    """A law given by a function. Its `terms` and first coordinates are those of the sum of powers
    that it extends, from whose fit it starts."""

    law: Law = _broken
    slopes: Slopes | None = None
    extra: tuple[str, ...] = ()  # coordinates behind those of the sum of powers
    ladder: tuple[tuple[float, ...], ...] = ()  # the values of each of `extra` to start from

    @property
    def coordinates(self) -> tuple[str, ...]:
        return (*super().coordinates, *self.extra)

    @property
    def pinnable(self) -> tuple[str, ...]:
        """What the extension does not change."""
        return () if self.name == "farseer" else CHINCHILLA.pinnable

    def smooth(self, points: Points, target: Array, objective: Objective) -> Smooth:
        return Smooth(points, target, objective, self.law, self.slopes)

    def log_loss(self, theta: Array, points: Points) -> Array:
        """ln L (S, n) at centred points."""
        return self.smooth(points, np.zeros(len(points.x)), Objective()).predict(theta)

    def begin(self, simple: Array) -> Array:
        """Starts (S, P) from the laws (S0, 5) of the sum of powers."""
        rungs = np.array(list(product(*self.ladder)))
        if self.name != "farseer":
            return np.hstack(
                [np.repeat(simple, len(rungs), axis=0), np.tile(rungs, (len(simple), 1))]
            )
        a, b, e, alpha, beta = simple.T
        floor = np.logaddexp(a, e)
        fall = -alpha * np.exp(a - floor)
        zero = np.zeros(len(a))
        core = [floor, fall, zero, b, zero, zero, np.log(np.maximum(beta, 0.05)), zero, zero]
        starts = np.repeat(np.column_stack(core), len(rungs), axis=0)
        starts[:, [2, 5, 8]] = np.tile(rungs, (len(simple), 1))
        return starts

    def natural(self, theta: Array, centre: Centre) -> dict[str, Array]:
        """The reported parameters (S,) by name, `logarithmic` ones as logarithms."""
        if self.name == "farseer":
            found = {}
            for index, number in zip((0, 3, 6), "321", strict=True):
                level, slope, power = theta[:, index : index + 3].T
                safe = np.where(np.abs(power) < 1e-6, 1e-6, power)
                found[f"a_{number}"] = slope * np.exp(-safe * centre[0]) / safe
                found[f"b_{number}"] = level - slope / safe
                found[{"3": "gamma", "2": "beta", "1": "alpha"}[number]] = power
            return {name: found[name] for name in self.parameters}
        plain = CHINCHILLA.natural(theta[:, :5], centre)
        for index, name in enumerate(self.extra):
            plain[name] = theta[:, 5 + index] + (centre[1] if name == "D_b" else 0.0)
        return plain

    @property
    def logarithmic(self) -> frozenset[str]:
        """Parameters whose logarithm is estimated."""
        return frozenset({"E", "A", "B", "D_b", "R_D", "R_N"} & set(self.parameters))

    def split(self, theta: Array, budget: Array | float) -> Array:
        """As `Form.split`, by search 8 e-folds to either side of the middle, each token once."""
        assert np.ndim(budget) == 0, "one budget for all laws"
        budget = float(np.asarray(budget))
        low, high = np.full(len(theta), budget / 2 - 8), np.full(len(theta), budget / 2 + 8)
        best = np.full(len(theta), np.nan)
        for _ in range(6):
            grid = np.linspace(low, high, 41, axis=1)
            losses = self._each(theta, grid, budget - grid)
            place = np.clip(losses.argmin(axis=1), 1, 39)
            rows = np.arange(len(theta))
            edge = (losses.argmin(axis=1) != place) | ~np.isfinite(losses).all(axis=1)
            best = np.where(edge, np.nan, grid[rows, place])
            low, high = grid[rows, place - 1], grid[rows, place + 1]
        return best

    def along(self, theta: Array, x: Array, y: Array, c: Array) -> Array:
        """ln L (S,) of each law at a point of its own, each token read once."""
        return self._each(theta, x[:, None], y[:, None])[:, 0]

    def _each(self, theta: Array, x: Array, y: Array) -> Array:
        """ln L (S, n) of each law at points of its own (S, n), each token read once."""
        found: Array = np.real(self.law(theta.T[:, :, None], Points(x, y, 0 * x, y)))
        return found


_BASE: dict[str, Any] = {"terms": CHINCHILLA.terms, "exponents": CHINCHILLA.exponents}
BROKEN = SmoothForm(
    name="broken",
    equation="L = E + A N^-alpha + B D^-beta (1 + (D/D_b)^4)^(-c/4)",
    parameters=(*CHINCHILLA.parameters, "D_b", "c"),
    law=_broken,
    slopes=slopes.broken,
    extra=("D_b", "c"),
    ladder=((-1.0, 0.0, 1.0), (-0.1, 0.1)),
    **_BASE,
)
FARSEER = SmoothForm(
    name="farseer",
    equation="L = exp(a_3 N^gamma + b_3) + exp(a_2 N^beta + b_2) D^-exp(a_1 N^alpha + b_1)",
    parameters=("a_1", "b_1", "alpha", "a_2", "b_2", "beta", "a_3", "b_3", "gamma"),
    law=_farseer,
    slopes=slopes.farseer,
    terms=CHINCHILLA.terms,
    exponents=(),
    extra=("fall_3", "gamma", "level_2", "fall_2", "beta", "level_1"),
    ladder=((-0.4, 0.1), (-0.2, 0.2), (-0.2, 0.2)),
)
REPETITION = SmoothForm(
    name="repetition",
    equation="L = E + A N'^-alpha + B D'^-beta, X' = X_u (1 + R_X (1 - exp(-(X/X_u - 1)/R_X)))",
    parameters=(*CHINCHILLA.parameters, "R_D", "R_N"),
    law=_repetition,
    extra=("R_D", "R_N"),
    ladder=((1.0, 3.0), (0.5, 2.5)),
    **_BASE,
)
