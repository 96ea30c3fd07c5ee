"""Which curve of one variable do the runs follow: accuracy against loss, a metric against compute?

    exponential  y = e - k exp(-g x)                   y an error, x a loss (Gadre et al. 2024)
    sigmoid      y = low + gain / (1 + exp(s (x - m))) y an accuracy, x a loss (Bhagia et al. 2024)
    power        y = floor + A exp(-g x)               x = ln C: a power of compute, to a floor
    logistic     y = floor / (1 + exp(-s (x - m)))     a rate that grows to a floor
    broken       as power, less c w softplus((x - b) / w) in the exponent: one break, at b

Least squares in y itself. Starts are a grid over the parameters in which the curve is not linear;
the search is that of the laws (`minimise`), slopes by complex steps (`smooth`). The bootstrap draws
whole runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isoflop.scaling.forms import Points
from isoflop.scaling.interval import Array, Interval, Refusal
from isoflop.scaling.minimise import evaluate, polish
from isoflop.scaling.objective import named
from isoflop.scaling.smooth import Smooth

POLISHED = 6  # starts
BLOCK = 128
WIDTH = 0.3  # of a break, in the variable's standard deviations
Curve = Callable[[Any, Any], Any]  # columns of theta (P, S, 1), x (n,) standardised -> y (S, n)


@dataclass(frozen=True, eq=False)
class Shape:
    """A curve over z = (x - mean) / sd, and how its start grid is laid."""

    name: str
    equation: str
    parameters: tuple[str, ...]
    curve: Curve
    grid: tuple[tuple[float, ...], ...]  # of the parameters behind the first `linear`
    linear: int  # parameters in front in which the curve is linear, given the others


@dataclass(frozen=True, eq=False)
class Response:
    """The curve that fits best and its resamples."""

    shape: Shape
    theta: Array  # (P,)
    draws: Array  # (R, P)
    centre: float
    scale: float
    span: tuple[float, float]  # of x
    points: int
    residuals: Array  # (n,) of y, widened to what the parameters took from them

    def predict(self, x: ArrayLike) -> Array:
        """y at x, of any shape."""
        flat = np.ravel(np.asarray(x, float))
        found: Array = self.each(self.theta[None], flat[None])[0].reshape(np.shape(x))
        return found

    def each(self, theta: Array, x: Array) -> Array:
        """y (S, n) of each curve theta (S, P) at points of its own, x (S, n) or (1, n)."""
        z = (x - self.centre) / self.scale
        found: Array = np.real(self.shape.curve(theta.T[:, :, None], z))
        return found

    def interval(self, x: float, *, noise: bool = False, seed: int = 0) -> Interval:
        """y at one x; with `noise` that of one more run there."""
        drawn = self.each(self.draws, np.array([[x]]))[:, 0]
        if noise:
            drawn = drawn + np.random.default_rng(seed).choice(self.residuals, len(drawn))
        return Interval.of(float(self.predict(x)), drawn)

    @property
    def scatter(self) -> float:
        return float(np.sqrt(np.square(self.residuals).mean()))


def respond(
    x: ArrayLike, y: ArrayLike, shape: Shape, *, resamples: int = 1000, seed: int = 0
) -> Response | Refusal:
    """The curve of that shape through runs at x (n,) with values y (n,), both finite.

    Refused below two runs more than parameters, or where x or y is the same for all.
    """
    at, values = np.asarray(x, float), np.asarray(y, float)
    if at.shape != values.shape or at.ndim != 1 or not np.isfinite([at, values]).all():
        raise ValueError(f"x {at.shape} and y {values.shape} must be finite and of one length")
    refusal = _refuse(at, values, len(shape.parameters))
    if refusal:
        return refusal
    centre, scale = float(at.mean()), float(at.std())
    problem = _problem((at - centre) / scale, values, shape)
    ones = np.ones((1, len(at)))
    begin = _starts(problem, shape, values)
    found = polish(problem, ones, begin)
    theta = found.theta[int(np.nanargmin(found.value))]
    drawn = _bootstrap(problem, theta, resamples, seed)
    residual = problem.predict(theta[None])[0] - values
    freedom = len(at) - len(theta)
    span = float(at.min()), float(at.max())
    widened = -(residual - residual.mean()) * np.sqrt(len(at) / freedom)
    return Response(shape, theta, drawn, centre, scale, span, len(at), widened)


def _refuse(x: Array, y: Array, free: int) -> Refusal | None:
    if len(x) < free + 2:
        why = f"{len(x)} runs cannot fix a curve of {free} parameters"
        return Refusal("too few points", why, f"finish at least {free + 2} runs")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        what = "variable" if np.ptp(x) == 0 else "value"
        why = f"all runs have the same {what}"
        return Refusal("nothing to explain", why, "add runs of more or less compute")
    return None


def _problem(z: Array, y: Array, shape: Shape) -> Smooth:
    def law(theta: Any, points: Points) -> Any:
        return shape.curve(theta, points.x)

    return Smooth(Points(z, z, z, z), y, named("l2"), law)


def _starts(problem: Smooth, shape: Shape, y: Array) -> Array:
    """Each cell of the grid with its linear parameters by least squares; the best ones.

    The curve at unit vectors of the linear parameters gives the columns.
    """
    cells = np.array(list(product(*shape.grid)))
    offset = problem.predict(np.hstack([np.zeros((len(cells), shape.linear)), cells]))
    columns = []
    for i in range(shape.linear):
        unit = np.zeros((len(cells), shape.linear))
        unit[:, i] = 1.0
        columns.append(problem.predict(np.hstack([unit, cells])) - offset)
    theta = np.hstack([np.zeros((len(cells), shape.linear)), cells])
    if columns:
        design = np.stack(columns, axis=2)  # (S, n, linear)
        inverse = np.linalg.pinv(design, rcond=1e-8)
        theta[:, : shape.linear] = (inverse @ (y - offset)[:, :, None])[:, :, 0]
    value = evaluate(problem, np.ones((1, len(y))), theta)
    return theta[np.argsort(value)[:POLISHED]]


def _bootstrap(problem: Smooth, theta: Array, resamples: int, seed: int) -> Array:
    n = len(problem.target)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    blocks = []
    for first in range(0, resamples, BLOCK):
        weights = counts[first : first + BLOCK].astype(float)
        found = polish(problem, weights, np.repeat(theta[None], len(weights), axis=0))
        blocks.append(found.theta)
    return np.concatenate(blocks)


def _safe(exponent: Any) -> Any:
    """exp without overflow, analytic where it matters."""
    inside = np.where(np.real(exponent) < 60, exponent, 60)
    return np.exp(np.where(np.real(inside) > -60, inside, -60))


def _sigmoid(z: Any) -> Any:
    return 1 / (1 + _safe(-z))


RATES = tuple(np.log(np.geomspace(0.05, 8, 14)).tolist())  # ln of a slope per standard deviation
PLACES = tuple(np.linspace(-3.0, 3.0, 13).tolist())  # in standard deviations of x


def exponential() -> Shape:
    """Error against loss; falls towards -infinity as x falls, so it is for the range it saw."""

    def curve(theta: Any, z: Any) -> Any:
        level, k, rate = theta
        return level - k * _safe(-_safe(rate) * z)

    equation = "error = e - k exp(-g L)"
    return Shape("exponential", equation, ("e", "k", "ln g"), curve, (RATES,), 2)


def sigmoid(chance: float | None = None) -> Shape:
    """Accuracy against loss, from `chance` (None: fitted) at a high loss."""

    def curve(theta: Any, z: Any) -> Any:
        low = chance if chance is not None else theta[-3]
        gain, rate, middle = theta[0], theta[-2], theta[-1]
        return low + gain * _sigmoid(-_safe(rate) * (z - middle))

    free = () if chance is not None else ("low",)
    names = ("gain", *free, "ln s", "m")
    equation = "accuracy = low + gain / (1 + exp(s (L - m)))"
    return Shape("sigmoid", equation, names, curve, (RATES, PLACES), 1 + len(free))


def power(floor: float | None = None) -> Shape:
    """A metric that comes nearer to `floor` (None: fitted) by a power of compute."""

    def curve(theta: Any, z: Any) -> Any:
        level = floor if floor is not None else theta[1]
        return level + theta[0] * _safe(-_safe(theta[-1]) * z)

    free = () if floor is not None else ("floor",)
    equation = "y = floor + A exp(-g x)"
    return Shape("power", equation, ("A", *free, "ln g"), curve, (RATES,), 1 + len(free))


def broken(floor: float | None = None) -> Shape:
    """As `power`, with another exponent beyond one break."""

    def curve(theta: Any, z: Any) -> Any:
        level = floor if floor is not None else theta[1]
        rate, change, place = theta[-3], theta[-2], theta[-1]
        bend = WIDTH * np.log(1 + _safe((z - place) / WIDTH))
        return level + theta[0] * _safe(-_safe(rate) * z - change * bend)

    free = () if floor is not None else ("floor",)
    names = ("A", *free, "ln g", "c", "b")
    grid = (RATES[::2], (-1.5, -0.5, 0.5, 1.5), (-1.0, -0.5, 0.0, 0.5, 1.0))
    equation = "y = floor + A exp(-g x - c w softplus((x - b) / w))"
    return Shape("broken", equation, names, curve, grid, 1 + len(free))


def logistic(floor: float | None = None) -> Shape:
    """A rate between 0 and `floor` (None: 1), rising or falling with x."""
    top = 1.0 if floor is None else floor

    def curve(theta: Any, z: Any) -> Any:
        slope, middle = theta
        return top * _sigmoid(slope * (z - middle))

    slopes = tuple(s * r for s in (-1.0, 1.0) for r in np.geomspace(0.1, 8, 10).tolist())
    equation = "y = floor / (1 + exp(-s (x - m)))"
    return Shape("logistic", equation, ("s", "m"), curve, (slopes, PLACES), 0)


SHAPES: Mapping[str, Callable[[float | None], Shape]] = {
    "sigmoid": sigmoid,
    "exponential": lambda _: exponential(),
    "power": power,
    "logistic": logistic,
    "broken": broken,
}
