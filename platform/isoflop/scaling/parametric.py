"""Which law L(N, D) do the runs follow, and how sure are its parameters? (Approach 3)

The forms are in `forms`, the objectives in `objective`; without options they are those of Hoffmann
et al. 2022 (section 3.3 and appendix D.3). The bootstrap by run is that of Besiroglu et al. 2024.
Deterministic, numpy alone; the work is done in `starts` and `minimise`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.scaling.bounds import Bounds, patterns, within
from isoflop.scaling.bounds import check as check_bounds
from isoflop.scaling.catalogue import form_of
from isoflop.scaling.edges import boundaries, plain
from isoflop.scaling.forms import CHINCHILLA, Centre, Form, Points
from isoflop.scaling.interval import LEVEL, Array, Interval, Refusal, positive
from isoflop.scaling.minimise import Polished, PowerSum, polish
from isoflop.scaling.objective import Objective
from isoflop.scaling.optimum import Optimum, optimum
from isoflop.scaling.pins import onto, pins_of
from isoflop.scaling.refusals import refuse
from isoflop.scaling.smooth import Smooth, SmoothForm
from isoflop.scaling.starts import MORE, STARTS, starts

PARAMETERS = ("E", "A", "B", "alpha", "beta")  # of the form that is fitted without being asked
BLOCK = 128  # resamples side by side: large enough for numpy, small enough for the cache


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
    bounds: Bounds = field(default_factory=dict)  # that every law keeps to

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
        """The residuals (n,), widened to what the free parameters took from them."""
        residual = self.residuals()
        freedom = max(self.points - self.free, 1)
        widened: Array = residual * np.sqrt(self.points / freedom)
        return widened


@dataclass(frozen=True, eq=False)
class Resampled:
    """A fit and its bootstrap by run: theta (R, P) of the resamples that could be fitted."""

    fit: ParametricFit
    theta: Array
    degenerate: int  # resamples without two sizes and two token counts, left out
    unconverged: int = 0  # of theta, those inside that still fell when their steps ran out
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
        self, size: float, tokens: float, *, noise: bool = False, seed: int = 0, widen: float = 1.0
    ) -> Interval:
        """The law's loss at one point; with `noise` the loss of one more run there, which scatters
        about the law as the fitted runs do. `widen` stretches the interval in ln L, as far as
        predictions of held-out runs asked for (`holdout.Score.widening`)."""
        points = self.fit.points_at(size, tokens)
        value = float(self.fit.form.log_loss(self.fit.theta[None], points)[0, 0])
        drawn = Interval.of(value, self.log_draws(points, noise, seed))
        return drawn.widened(widen).exponential()

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
            draws = self.log_draws(points, noise, seed)
            low, high = np.exp(np.quantile(draws, [tail, 1 - tail], axis=0))
        return low, high

    def log_draws(self, points: Points, noise: bool, seed: int) -> Array:
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
    bounds: Bounds | None = None,
) -> ParametricFit | Refusal:
    """The law through runs of `size` parameters and `tokens` tokens with `loss` nats per token.

    `flops`: what each run cost (None: 6ND); `objective`: None for Huber with `delta`; `weights`:
    how much each run counts (default 1 each); `pinned`: parameters held at a value;
    `unique`: distinct tokens (None: no token was read twice); `bounds`: what parameters must lie
    between. Refused below one run more than free
    parameters, or where sizes and tokens do not vary apart from each other. Raises ValueError for
    values that are not above 0.
    """
    law, points = form_of(form), Points.of(*_same_length(size, tokens, loss), flops, unique)
    target = np.log(positive("loss", loss))
    counts = np.ones(len(target)) if weights is None else positive("weights", weights)
    if counts.shape != target.shape:
        raise ValueError(f"weights {counts.shape} must have the shape of the runs, {target.shape}")
    pins = pins_of(law, pinned or {})
    check_bounds(law, bounds or {}, pins)
    refusal = refuse(points, len(law.coordinates) - len(pins))
    if refusal:
        return refusal
    if not np.ptp(target):
        why = f"all losses are {np.exp(target[0]):.4g}"
        return Refusal("nothing to explain", why, "add runs of more or less compute")
    if law.name == "repetition" and not (points.u < points.y - 1e-9).any():
        why = "no run read a token twice"
        return Refusal("nothing repeated", why, "add runs of several epochs, or give `unique`")
    centre = points.centre()
    chosen = objective or Objective("huber", delta)
    factor = float(np.exp((points.c - points.x - points.y).mean()))
    here = points.less(centre)

    def lay(pinned: Mapping[str, float]) -> ParametricFit:
        return fit_centred(law, here, target, counts, chosen, centre, factor, pinned)

    return _bounded(lay, pins, bounds) if bounds else lay(pins)


def _bounded(
    lay: Callable[[Mapping[str, float]], ParametricFit], pins: Mapping[str, float], bounds: Bounds
) -> ParametricFit:
    """The best law that keeps to the bounds; all parameters at a bound always do."""
    laws = [lay({**pins, **pattern}) for pattern in patterns(bounds)]
    form, centre = laws[0].form, laws[0].centre
    kept = [law for law in laws if within(form, law.theta[None], centre, bounds)[0]]
    best = min(kept, key=lambda law: law.objective)
    directions = laws[0].directions if pins else None
    return replace(best, bounds=bounds, pinned=pins, directions=directions)


def _same_length(size: ArrayLike, tokens: ArrayLike, loss: ArrayLike) -> tuple[Array, Array]:
    n, d = positive("size", size), positive("tokens", tokens)
    if not n.shape == d.shape == np.shape(loss) or n.ndim != 1:
        shapes = f"size {n.shape}, tokens {d.shape}, loss {np.shape(loss)}"
        raise ValueError(f"{shapes} must be one length")
    return n, d


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
        few = len(begin)
    else:
        problem, few = form.problem(points, target, objective), STARTS
        begin = starts(problem, weights, tuple(range(len(form.terms))), form.axes(pins), MORE)
    directions = None
    if pins:
        begin, directions = onto(form, begin, centre, pins)
    found = _searched(problem, weights, begin, directions, few)
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
        starts=len(found.value),
        agreeing=_agreeing(found),
        converged=bool(found.converged[best]),
        problem=problem,
        weights=weights,
        theta=theta,
        centre=centre,
        factor=factor,
        pinned=pins,
        directions=directions,
    )


def _searched(
    problem: PowerSum | Smooth, weights: Array, begin: Array, directions: Array | None, few: int
) -> Polished:
    """From the `few` most promising starts; from all where at most half of those end together,
    since the best of many ends may be missed by a few."""
    found = polish(problem, weights[None], begin[:few], directions)
    if few < len(begin) and 2 * _agreeing(found) <= few:
        return polish(problem, weights[None], begin, directions)
    return found


def _agreeing(found: Polished) -> int:
    return int((found.value <= found.value.min() * (1 + 1e-6)).sum())


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


def bootstrap(
    fit: ParametricFit,
    *,
    resamples: int = 1000,
    seed: int = 0,
    groups: NDArray[np.intp] | None = None,
    noise: Array | None = None,
) -> Resampled:
    """Refits to runs drawn with replacement, each from the point fit's parameters.

    Whole runs are drawn, since the losses within one run are not independent: `groups` (n,) numbers
    the run of each row, from 0, where runs have several. With `noise` (n,), the standard deviation
    of ln L between seeds, the runs stay and each is given another seed instead: its loss is drawn
    about the law. Such intervals know no misfit of the law. The same seed gives the same result to
    the bit.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    random = np.random.default_rng(seed)
    if noise is not None:
        law = fit.problem.predict(fit.theta[None])[0]
        targets = law + noise * random.standard_normal((resamples, fit.points))
        return _resampled(fit, np.broadcast_to(fit.weights, targets.shape), 0, targets)
    owner = np.arange(fit.points) if groups is None else groups
    n = int(owner.max()) + 1
    counts = random.multinomial(n, np.full(n, 1 / n), size=resamples)[:, owner]
    usable = np.array([_varied(fit.problem, row > 0) for row in counts])
    if not usable.any():
        raise ValueError(f"none of {resamples} resamples holds two sizes and two token counts")
    return _resampled(fit, counts[usable] * fit.weights, int(resamples - usable.sum()))


def _resampled(
    fit: ParametricFit, weights: Array, degenerate: int, targets: Array | None = None
) -> Resampled:
    theta, converged = refit(fit, weights, targets)
    named = boundaries(fit.form, fit.problem, theta, fit.centre)
    touched = np.array([bool(set(names) - set(fit.pinned)) for names in named])
    # A term that vanishes falls without end: that it is at its boundary says all of it.
    lost = int((~converged & ~touched).sum())
    return Resampled(fit, theta, degenerate, lost, int(touched.sum()))


def refit(
    fit: ParametricFit, weights: Array, targets: Array | None = None
) -> tuple[Array, NDArray[np.bool_]]:
    """theta (R, P) for weights and targets (R, n), each from the point fit, and which of them
    converged."""
    tried = [_refit(fit, weights, targets, pattern) for pattern in patterns(fit.bounds)]
    if len(tried) == 1:
        return tried[0].theta, tried[0].converged
    value = np.array([
        np.where(within(fit.form, each.theta, fit.centre, fit.bounds), each.value, np.inf)
        for each in tried
    ])  # fmt: skip
    best, rows = value.argmin(axis=0), np.arange(len(weights))
    theta = np.array([each.theta for each in tried])[best, rows]
    return theta, np.array([each.converged for each in tried])[best, rows]


def _refit(
    fit: ParametricFit, weights: Array, targets: Array | None, pattern: Mapping[str, float]
) -> Polished:
    """With the parameters of `pattern` held at a bound."""
    theta, directions = fit.theta, fit.directions
    if pattern:
        moved, directions = onto(fit.form, theta[None], fit.centre, {**fit.pinned, **pattern})
        theta = moved[0]
    blocks = []
    for first in range(0, len(weights), BLOCK):
        rows = slice(first, first + BLOCK)
        start = np.repeat(theta[None], len(weights[rows]), axis=0)
        own = None if targets is None else targets[rows]
        blocks.append(polish(fit.problem, weights[rows], start, directions, own))
    parts = ([getattr(block, k) for block in blocks] for k in ("theta", "value", "converged"))
    return Polished(*(np.concatenate(part) for part in parts))


def _varied(problem: PowerSum | Smooth, drawn: Array) -> bool:
    return bool(np.ptp(problem.x[drawn]) > 0 and np.ptp(problem.y[drawn]) > 0)
