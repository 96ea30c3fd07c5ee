"""Which law L(N, D) do the runs follow, and how sure are its parameters? (Approach 3)

The forms are in `forms`, the objectives in `objective`; without options they are those of Hoffmann
et al. 2022 (section 3.3 and appendix D.3). The bootstrap by run is that of Besiroglu et al. 2024.
Deterministic, numpy alone; the work is done in `starts` and `minimise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from isoflop.scaling.catalogue import form_of
from isoflop.scaling.forms import CHINCHILLA, Centre, Form, Points
from isoflop.scaling.interval import LEVEL, Array, Interval, Refusal, positive
from isoflop.scaling.minimise import PowerSum, polish
from isoflop.scaling.objective import Objective
from isoflop.scaling.optimum import FLATTEST, Optimum, optimum
from isoflop.scaling.smooth import Smooth, SmoothForm
from isoflop.scaling.starts import starts

PARAMETERS = ("E", "A", "B", "alpha", "beta")  # of the form that is fitted without being asked
BLOCK = 128  # resamples side by side: large enough for numpy, small enough for the cache
VANISHING = 1e-4  # share of the loss below which a term counts as zero
STEEPEST = 3.0  # above, the end of the start grid, its term explains only the smallest runs
NOTHING = -80.0  # the logarithm that stands for a floor pinned at 0


@dataclass(frozen=True, eq=False)
class ParametricFit:
    """The law that fits best. `boundary` names the terms that vanished or exponents that left
    their range: such a law describes the runs but must not be extrapolated."""

    form: Form
    values: Mapping[str, float]  # the form's parameters by name; inf where one overflows
    objective: float  # the weighted sum over runs
    loss: Objective  # what it is a sum of
    points: int
    boundary: tuple[str, ...]
    starts: int  # polished cells of the grid
    agreeing: int  # of them, those that ended within 1e-6 (relative) of the best objective
    converged: bool
    problem: PowerSum | Smooth
    weights: Array
    theta: Array  # (P,) in the problem's centred covariates
    centre: Centre  # means of ln N, ln D, ln C
    factor: float  # FLOPs per parameter and token, the runs' geometric mean: 6 where C = 6ND
    pinned: Mapping[str, float] = field(default_factory=dict)
    directions: Array | None = None  # (P, Q) that leave what is pinned as it is
    shared: tuple[str, ...] = ()  # parameters that other families helped to fix (`joint`)

    @property
    def E(self) -> float:
        """Nats per token that no size and no data remove."""
        return self._value("E")

    @property
    def A(self) -> float:
        return self._value("A")

    @property
    def B(self) -> float:
        return self._value("B")

    @property
    def alpha(self) -> float:
        return self._value("alpha")

    @property
    def beta(self) -> float:
        return self._value("beta")

    @property
    def delta(self) -> float:
        return self.loss.delta

    @property
    def free(self) -> int:
        """Parameters that the runs decided."""
        return len(self.theta) if self.directions is None else self.directions.shape[1]

    def _value(self, name: str) -> float:
        if name not in self.values:
            raise ValueError(f"the form {self.form.name} has no {name}; it has {list(self.values)}")
        return self.values[name]

    def predict(self, size: ArrayLike, tokens: ArrayLike, flops: ArrayLike | None = None) -> Array:
        """Loss in nats per token; all broadcast. `flops` None: as many per ND as the runs had."""
        points = self.points_at(size, tokens, flops)
        with np.errstate(over="ignore", under="ignore"):
            loss: Array = np.exp(self.form.log_loss(self.theta[None], points)[0])
        return loss.reshape(np.broadcast_shapes(np.shape(size), np.shape(tokens)))

    def points_at(
        self, size: ArrayLike, tokens: ArrayLike, flops: ArrayLike | None = None
    ) -> Points:
        """The points (flattened) in the fit's centred covariates."""
        n, d = np.broadcast_arrays(np.asarray(size, float), np.asarray(tokens, float))
        n, d = n.ravel(), d.ravel()
        return Points.of(n, d, self.factor * n * d if flops is None else flops).less(self.centre)

    def optimum(self, flops: float, *, factor: float | None = None) -> Optimum | Refusal:
        """The lowest loss for `flops` = factor N D (None: the runs' own), without an interval."""
        return optimum(self, self.theta[None], flops, factor)

    def residuals(self) -> Array:
        """ln L predicted less ln L measured, per run."""
        residual: Array = self.problem.predict(self.theta[None])[0] - self.problem.target
        return residual

    def noise(self) -> Array:
        """The residuals (n,), widened to what the free parameters took from them, without mean."""
        residual = self.residuals()
        freedom = max(self.points - self.free, 1)
        widened: Array = (residual - residual.mean()) * np.sqrt(self.points / freedom)
        return widened


@dataclass(frozen=True, eq=False)
class Resampled:
    """A fit and its bootstrap by run: theta (R, P) of the resamples that could be fitted."""

    fit: ParametricFit
    theta: Array
    degenerate: int  # resamples without two sizes and two token counts, left out
    unconverged: int = 0  # of theta, those still falling when their steps ran out
    at_boundary: int = 0  # of theta, those in which a term vanished or an exponent left its range

    def draws(self, parameter: str) -> Array:
        """The parameter in each resample (R,), as a logarithm where the form estimates that."""
        if parameter not in self.fit.form.parameters:
            allowed = ", ".join(self.fit.form.parameters)
            raise ValueError(f"parameter is {parameter!r}; it must be one of {allowed}")
        return self.fit.form.natural(self.theta, self.fit.centre)[parameter]

    def interval(self, parameter: str) -> Interval:
        """Of one of the form's parameters."""
        draws = self.draws(parameter)
        value = self.fit.form.natural(self.fit.theta[None], self.fit.centre)[parameter]
        interval = Interval.of(float(value[0]), draws)
        logarithmic = parameter in self.fit.form.logarithmic
        return interval.exponential() if logarithmic else interval

    def standard_error(self, parameter: str) -> float:
        """The standard deviation over resamples; inf where one of them overflows."""
        draws = self.draws(parameter)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            plain = np.exp(draws) if parameter in self.fit.form.logarithmic else draws
            error = float(np.std(plain, ddof=1)) if len(plain) > 1 else np.inf
        return error if np.isfinite(error) else np.inf

    def predict(
        self, size: float, tokens: float, *, noise: bool = False, seed: int = 0
    ) -> Interval:
        """The law's loss at one point; with `noise` the loss of one more run there, which scatters
        about the law as the fitted runs do."""
        points = self.fit.points_at(size, tokens)
        value = float(self.fit.form.log_loss(self.fit.theta[None], points)[0, 0])
        return Interval.of(value, self._log_draws(points, noise, seed)).exponential()

    def bands(
        self,
        size: ArrayLike,
        tokens: ArrayLike,
        flops: ArrayLike | None = None,
        *,
        noise: bool = False,
        seed: int = 0,
    ) -> tuple[Array, Array]:
        """Lower and upper 95 % bounds of the loss at many points, as `predict` has for one."""
        points = self.fit.points_at(size, tokens, flops)
        tail = (1 - LEVEL) / 2
        with np.errstate(over="ignore", under="ignore"):
            draws = self._log_draws(points, noise, seed)
            low, high = np.exp(np.quantile(draws, [tail, 1 - tail], axis=0))
        return low, high

    def _log_draws(self, points: Points, noise: bool, seed: int) -> Array:
        """ln L (R, n) of each resample's law, less a residual drawn for each where `noise`."""
        draws = self.fit.form.log_loss(self.theta, points)
        if noise:
            random = np.random.default_rng([seed, len(draws)])
            draws = draws - random.choice(self.fit.noise(), size=draws.shape)
        return draws

    def optimum(self, flops: float, *, factor: float | None = None) -> Optimum | Refusal:
        """As the fit's, with intervals from the resamples whose own law has an optimum."""
        return optimum(self.fit, self.theta, flops, factor)


def fit(
    size: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    flops: ArrayLike | None = None,
    form: str = "chinchilla",
    objective: Objective | None = None,
    delta: float = 1e-3,
    weights: ArrayLike | None = None,
    pinned: Mapping[str, float] | None = None,
    unique: ArrayLike | None = None,
) -> ParametricFit | Refusal:
    """The law through runs of `size` parameters and `tokens` tokens with `loss` nats per token.

    `flops`: what each run cost (None: 6ND); `objective`: None for Huber with `delta`; `weights`:
    how much each run counts (default 1 each); `pinned`: parameters held at a value;
    `unique`: distinct tokens (None: no token was read twice). Refused below one run more than free
    parameters, or where sizes and tokens do not vary apart from each other. Raises ValueError for
    values that are not above 0.
    """
    law, points = form_of(form), Points.of(*_same_length(size, tokens, loss), flops, unique)
    target = np.log(positive("loss", loss))
    counts = np.ones(len(target)) if weights is None else positive("weights", weights)
    if counts.shape != target.shape:
        raise ValueError(f"weights {counts.shape} must have the shape of the runs, {target.shape}")
    pins = _pins(law, pinned or {})
    refusal = refuse(points, len(law.coordinates) - len(pins))
    if refusal:
        return refusal
    if law.name == "repetition" and not (points.u < points.y - 1e-9).any():
        why = "no run read a token twice"
        return Refusal("nothing repeated", why, "add runs of several epochs, or give `unique`")
    centre = points.centre()
    chosen = objective or Objective("huber", delta)
    factor = float(np.exp((points.c - points.x - points.y).mean()))
    return fit_centred(law, points.less(centre), target, counts, chosen, centre, factor, pins)


def _same_length(size: ArrayLike, tokens: ArrayLike, loss: ArrayLike) -> tuple[Array, Array]:
    n, d = positive("size", size), positive("tokens", tokens)
    if not n.shape == d.shape == np.shape(loss) or n.ndim != 1:
        shapes = f"size {n.shape}, tokens {d.shape}, loss {np.shape(loss)}"
        raise ValueError(f"{shapes} must be one length")
    return n, d


def _pins(form: Form, pinned: Mapping[str, float]) -> dict[str, float]:
    for name, value in pinned.items():
        if name not in form.pinnable:
            allowed = ", ".join(form.pinnable)
            raise ValueError(f"{form.name} cannot pin {name!r}; it can pin {allowed}")
        if not (value > 0 or (value == 0 and name == "E")) or not np.isfinite(value):
            raise ValueError(f"{name} is pinned at {value}; it must be above 0 (E: at least 0)")
    return {name: float(value) for name, value in pinned.items()}


def fit_centred(
    form: Form,
    points: Points,
    target: Array,
    weights: Array,
    objective: Objective,
    centre: Centre,
    factor: float,
    pins: Mapping[str, float] | None = None,
) -> ParametricFit:
    """The law through runs whose covariates were centred on `centre`; see `fit`."""
    pins = pins or {}
    problem: PowerSum | Smooth
    if isinstance(form, SmoothForm):
        problem, begin = _extended(form, points, target, weights, objective)
    else:
        problem = form.problem(points, target, objective)
        begin = starts(problem, weights, tuple(range(len(form.terms))), form.axes(pins))
    directions = None
    if pins:
        begin, directions = _onto(form, begin, centre, pins)
    found = polish(problem, weights[None], begin, directions)
    best = int(found.value.argmin())
    theta = found.theta[best]
    level = found.value[best]
    return ParametricFit(
        form=form,
        values=plain(form, theta, centre),
        objective=float(level),
        loss=problem.objective,
        points=len(problem.target),
        boundary=tuple(
            name for name in boundaries(form, problem, theta[None], centre)[0] if name not in pins
        ),
        starts=len(begin),
        agreeing=int((found.value <= level * (1 + 1e-6)).sum()),
        converged=bool(found.converged[best]),
        problem=problem,
        weights=weights,
        theta=theta,
        centre=centre,
        factor=factor,
        pinned=pins,
        directions=directions,
    )


def plain(form: Form, theta: Array, centre: Centre) -> dict[str, float]:
    """The reported parameters by name at theta (P,); inf where one overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return {
            name: float(np.exp(value[0]) if name in form.logarithmic else value[0])
            for name, value in form.natural(theta[None], centre).items()
        }


def _extended(
    form: SmoothForm, points: Points, target: Array, weights: Array, objective: Objective
) -> tuple[Smooth, Array]:
    """The problem of a law that extends a sum of powers, and starts near the latter's best fits."""
    simple = CHINCHILLA.problem(points, target, objective)
    begin = starts(simple, weights, (0, 1, 2), CHINCHILLA.axes({}))
    found = polish(simple, weights[None], begin)
    # Starts that ended in the same place would begin the same search.
    order = np.argsort(found.value)
    fresh = np.diff(found.value[order], prepend=-1.0) > 1e-9 * found.value[order]
    return form.smooth(points, target, objective), form.begin(found.theta[order[fresh][:2]])


def _onto(
    form: Form, theta: Array, centre: Centre, pins: Mapping[str, float]
) -> tuple[Array, Array]:
    """theta (S, P) moved the shortest way to where the pinned parameters have their values, and
    the directions (P, Q) along which they keep them: every pin is one linear equation."""
    matrix, shift = form.uncentred(centre)
    rows = [form.coordinates.index(name) for name in pins]
    wanted = [_coordinate(form, name, value) for name, value in pins.items()]
    equations, values = matrix[rows], np.array(wanted) - shift[rows]
    moved = theta + (values - theta @ equations.T) @ np.linalg.pinv(equations).T
    _, _, right = np.linalg.svd(equations)
    return moved, right[len(rows) :].T


def _coordinate(form: Form, name: str, value: float) -> float:
    if name in form.exponents:
        return value
    return float(np.log(value)) if value > 0 else NOTHING


def refuse(points: Points, free: int) -> Refusal | None:
    """Why a law with `free` parameters cannot be laid through these runs."""
    size, tokens = np.exp(points.x), np.exp(points.y)
    if len(size) < free + 1:
        why = f"{len(size)} runs cannot fix a law of {free} parameters"
        return Refusal("too few points", why, f"finish at least {free + 1} runs")
    if len(np.unique(size)) < 2:
        why = f"all runs have {size[0]:.4g} parameters"
        return Refusal("one size only", why, "add runs of another size")
    if len(np.unique(tokens)) < 2:
        why = f"all runs read {tokens[0]:.4g} tokens"
        return Refusal("one token count only", why, "add runs of another length")
    logs = np.column_stack([points.x, points.y])
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
    theta, unconverged = refit(fit, weights)
    named = boundaries(fit.form, fit.problem, theta, fit.centre)
    touched = sum(bool(set(names) - set(fit.pinned)) for names in named)
    return Resampled(fit, theta, int(resamples - usable.sum()), unconverged, touched)


def refit(fit: ParametricFit, weights: Array) -> tuple[Array, int]:
    """theta (R, P) for weights (R, n), each from the point fit, and how many did not converge."""
    blocks, unconverged = [], 0
    for first in range(0, len(weights), BLOCK):
        block = weights[first : first + BLOCK]
        start = np.repeat(fit.theta[None], len(block), axis=0)
        found = polish(fit.problem, block, start, fit.directions)
        blocks.append(found.theta)
        unconverged += int((~found.converged).sum())
    return np.concatenate(blocks), unconverged


def _varied(problem: PowerSum | Smooth, drawn: Array) -> bool:
    return bool(np.ptp(problem.x[drawn]) > 0 and np.ptp(problem.y[drawn]) > 0)


def boundaries(
    form: Form, problem: PowerSum | Smooth, theta: Array, centre: Centre
) -> list[tuple[str, ...]]:
    """What vanished or left its range in each law of theta (S, P)."""
    if isinstance(problem, Smooth):
        if not form.exponents:
            return [()] * len(theta)
        simple = CHINCHILLA.problem(problem.points, problem.target, problem.objective)
        return boundaries(CHINCHILLA, simple, theta[:, :5], centre)
    largest = np.concatenate(
        [problem.shares(theta[i : i + BLOCK]).max(axis=2) for i in range(0, len(theta), BLOCK)]
    )
    exponents = {n: theta[:, form.coordinates.index(n)] for n in form.exponents}
    steepest = STEEPEST if form.power is None else form.ranges[0][1]
    flags = {
        term.coefficient: largest[:, index] < VANISHING for index, term in enumerate(form.terms)
    } | {n: ~((k >= FLATTEST) & (k <= steepest)) for n, k in exponents.items()}
    return [tuple(name for name, flag in flags.items() if flag[s]) for s in range(len(theta))]
