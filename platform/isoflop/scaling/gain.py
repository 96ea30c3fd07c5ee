"""Which run would tell most about the target for what it costs?

Near its most probable parameters a law is linear in them, and no law is exact. So a run's loss is
taken as

    ln L = law(theta) + misfit + noise

with a wide normal prior on theta, a misfit that runs share the more the nearer they are (a normal
process of variance MISFIT^2 whose correlation falls within a decade of size or data), and noise of
standard deviation s of its own for each run. The misfit is what keeps fifty tiny runs from seeming
to settle a question about a large one. All of it is normal, so the variance of ln L at a target
after a further run is known before the run: it falls by cov(run, target)^2 / (s^2 + var(run)).
That is V-optimal design (Atkinson & Donev 1992; for laws of scaling, arXiv 2604.22753).

Runs are taken greedily, each in the knowledge of those before it, by gain per cost or by gain
alone, whichever leaves less variance for the money: either alone can be arbitrarily bad (Khuller et
al. 1999). The slopes depend on theta, so gains are means over draws of it.

Letters: S draws of theta, P parameters, n runs done, m candidates, t targets, k any points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isoflop.scaling.forms import CHINCHILLA, Centre, Form, Points
from isoflop.scaling.interval import LEVEL, Array, Refusal
from isoflop.scaling.objective import Objective
from isoflop.scaling.parametric import ParametricFit, fit_centred
from isoflop.scaling.refusals import refuse

DRAWS = 16
STEPS = 60  # of the search for the most probable law
USUAL_EXPONENT = 0.35  # of size and of data, published laws lie between 0.2 and 0.6
USUAL_NOISE = 0.005  # of ln L: what two seeds of a small model differ by
NOISE_WEIGHT = 1.0  # as many runs' worth of belief in that: more would hide what the runs show
MISFIT = 0.005  # of ln L: what a good law misses by where it is asked far from its runs
REACH = float(np.log(10.0))  # how far apart in size or data two runs still share a misfit
WIDTH_EXPONENT, WIDTH_LOG = 0.2, 2.0  # of the prior: exponents, and logarithms of coefficients
FLATTEST, STEEPEST = 0.03, 1.5  # what a drawn law may have as exponents


@dataclass(frozen=True, eq=False)
class Belief:
    """What the runs done say of a law: draws theta (S, P), the first the most probable one."""

    form: Form
    centre: Centre
    theta: Array
    done: Points  # not centred
    noise: float  # s, the scatter of one run's ln L about the law

    def covariance(self, points: Points) -> Array:
        """Of ln L at k points, (S, k, k), given the runs done, without their own noise."""
        count = len(points.x)
        prior = _prior(self.form, self.theta, joined([points, self.done]).less(self.centre))
        here, across, there = (
            prior[:, :count, :count], prior[:, :count, count:], prior[:, count:, count:]
        )  # fmt: skip
        seen = there + self.noise**2 * np.eye(there.shape[1])
        given: Array = here - across @ np.linalg.solve(seen, across.transpose(0, 2, 1))
        return given

    def predict(self, points: Points) -> tuple[Array, Array]:
        """ln L by the most probable law, and how far off it may be (a standard deviation), (k,)."""
        variance = np.diagonal(self.covariance(points), axis1=1, axis2=2).mean(axis=0)
        law = self.form.log_loss(self.theta[:1], points.less(self.centre))[0]
        return law, np.sqrt(variance)

    def half_width(self, points: Points) -> Array:
        """Half the 95 % prediction interval of ln L of one run at each point (k,). By Student's t:
        its noise is known from as many runs as the law leaves over, and the usual ones."""
        from scipy.special import stdtrit

        freedom = NOISE_WEIGHT + max(len(self.done.x) - self.theta.shape[1], 0)
        quantile = float(stdtrit(freedom, (1 + LEVEL) / 2))
        width: Array = quantile * np.hypot(self.predict(points)[1], self.noise)
        return width

    def after(self, points: Points) -> Belief:
        """What would be believed once runs at `points` were done, the same law most probable."""
        return replace(self, done=joined([self.done, points]))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run of a plan: which candidate, and what it does to the target's ln L."""

    candidate: int
    cost: float
    before: float  # standard deviation of ln L at the target, without this run
    after: float

    @property
    def worth(self) -> float:
        """Variance removed per unit of cost."""
        return (self.before**2 - self.after**2) / self.cost


def believe(
    points: Points,
    log_loss: Array,
    *,
    form: Form = CHINCHILLA,
    noise: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Belief:
    """The law that the runs at `points` (n,) with `log_loss` (n,) make most probable.

    Works from no run at all: what they leave open is filled by a wide prior about the exponents
    that published laws have. `noise`: s where it is known, as from repeated seeds.
    """
    assert len(points.x) == len(log_loss)
    if not len(log_loss):
        raise ValueError("no run is done; a belief needs at least one")
    centre = points.centre()
    centred = points.less(centre)
    middle = _reference(form, float(log_loss.mean()))
    law = _fitted(form, points, log_loss)
    theta = _probable(form, centred, log_loss, middle) if law is None else law
    residual = form.log_loss(theta[None], centred)[0] - log_loss
    scatter = _scatter(residual, len(theta)) if noise is None else noise
    drawn = _drawn(form, theta, centred, scatter, draws, seed)
    return Belief(form, centre, drawn, points, scatter)


def choose(
    belief: Belief,
    candidates: Points,
    targets: Points,
    cost: Array,
    *,
    budget: float,
    most: int | None = None,
    repeat: bool = False,
) -> list[Step]:
    """The runs worth their cost, in order, until `budget` or `most` runs are spent.

    Of two orders, by gain per cost and by gain alone, the one that leaves less variance at the
    targets (their mean). `repeat`: a candidate may be taken again, as another seed.
    """
    asked = [Asked(belief, candidates, targets)]
    return choose_together(asked, cost, budget=budget, most=most, repeat=repeat)


@dataclass(frozen=True, eq=False)
class Asked:
    """One family: what is believed of it, what could be run of it, where its loss is wanted."""

    belief: Belief
    candidates: Points
    targets: Points


def choose_together(
    families: Sequence[Asked],
    cost: Array,
    *,
    budget: float,
    most: int | None = None,
    repeat: bool = False,
) -> list[Step]:
    """As `choose` for families that have a law each and share the money. Candidates are numbered
    through the families in order, and `cost` (m,) with them."""
    if not (cost > 0).all():
        raise ValueError(f"a candidate costs {cost.min():g}; every cost must be above 0")
    joint, noise = _blocks(families)
    assert len(noise) == len(cost)
    count = len(cost) if most is None else most
    plans = [
        _greedy(joint, noise, cost, budget, count, repeat, per_cost) for per_cost in (True, False)
    ]
    return min(plans, key=lambda plan: plan[-1].after if plan else np.inf)


def _blocks(families: Sequence[Asked]) -> tuple[Array, Array]:
    """The covariance (S, m + t, m + t) of all candidates, then all targets, and noise (m,)."""
    parts = [f.belief.covariance(joined([f.candidates, f.targets])) for f in families]
    counts = [len(f.candidates.x) for f in families]
    goals = [len(f.targets.x) for f in families]
    joint = np.zeros((len(parts[0]), sum(counts) + sum(goals), sum(counts) + sum(goals)))
    for index, part in enumerate(parts):
        first, goal = sum(counts[:index]), sum(counts) + sum(goals[:index])
        place = np.r_[first : first + counts[index], goal : goal + goals[index]]
        joint[:, place[:, None], place] = part
    return joint, np.repeat([f.belief.noise for f in families], counts)


def gains(belief: Belief, candidates: Points, targets: Points) -> Array:
    """By how much each candidate alone would cut the targets' mean variance of ln L, (m,)."""
    joint = belief.covariance(joined([candidates, targets]))
    return _gains(joint, np.full(len(candidates.x), belief.noise))


def best_points(belief: Belief, flops: float, factor: float) -> Points | Refusal:
    """Where the most probable law spends `flops` = factor N D best: one point."""
    budget = float(np.log(flops / factor)) - belief.centre[0] - belief.centre[1]
    x = belief.form.split(belief.theta[:1], budget)
    if not np.isfinite(x[0]):
        why = "no size is best: the terms of the law do not oppose each other"
        return Refusal("law at its boundary", why, "add sizes and lengths")
    log_size = x + belief.centre[0]
    return Points.of(np.exp(log_size), flops / factor / np.exp(log_size), np.array([flops]))


def joined(parts: Sequence[Points]) -> Points:
    return Points(*(np.concatenate([getattr(p, name) for p in parts]) for name in "xycu"))


def _greedy(
    joint: Array,
    noise: Array,
    cost: Array,
    budget: float,
    most: int,
    repeat: bool,
    per_cost: bool,
) -> list[Step]:
    left, steps = budget, list[Step]()
    free: NDArray[np.bool_] = np.ones(len(cost), bool)
    while len(steps) < most:
        affordable = free & (cost <= left * (1 + 1e-9))
        if not affordable.any():
            break
        gain = _gains(joint, noise)
        best = int(np.where(affordable, gain / cost if per_cost else gain, -np.inf).argmax())
        before = _spread(joint, len(cost))
        joint = _updated(joint, best, float(noise[best]))
        after = _spread(joint, len(cost))
        steps.append(Step(candidate=best, cost=float(cost[best]), before=before, after=after))
        left -= cost[best]
        free[best] = repeat
    return steps


def _prior(form: Form, theta: Array, centred: Points) -> Array:
    """The covariance of ln L (S, k, k) before any run: of the parameters, and of the misfit."""
    problem = form.problem(centred, np.zeros(len(centred.x)), Objective())
    rows = problem.jacobian(theta).transpose(0, 2, 1) * _width(form)
    places = np.stack([centred.x, centred.y])
    apart = ((places[:, :, None] - places[:, None, :]) ** 2).sum(axis=0)
    covariance: Array = rows @ rows.transpose(0, 2, 1)
    covariance += MISFIT**2 * np.exp(-apart / (2 * REACH**2))
    return covariance


def _gains(joint: Array, noise: Array) -> Array:
    """(m,): the fall of the targets' mean variance, a mean over the draws."""
    candidates = len(noise)
    own = np.diagonal(joint, axis1=1, axis2=2)[:, :candidates]
    fall: Array = (joint[:, :candidates, candidates:] ** 2).mean(axis=2) / (noise**2 + own)
    mean: Array = fall.mean(axis=0)
    return mean


def _updated(joint: Array, candidate: int, noise: float) -> Array:
    column = joint[:, :, candidate]
    total = noise**2 + column[:, candidate]
    lower: Array = joint - column[:, :, None] * column[:, None, :] / total[:, None, None]
    return lower


def _spread(joint: Array, candidates: int) -> float:
    variance = np.diagonal(joint, axis1=1, axis2=2)[:, candidates:]
    return float(np.sqrt(variance.mean()))


def _width(form: Form) -> Array:
    """The standard deviations of the prior on theta (P,)."""
    names = form.coordinates
    return np.where([name in form.exponents for name in names], WIDTH_EXPONENT, WIDTH_LOG)


def _reference(form: Form, level: float) -> Array:
    """A law whose terms share the loss equally at the centre, with the usual exponents."""
    named = dict.fromkeys(form.exponents, USUAL_EXPONENT)
    coefficient = level - np.log(len(form.terms))
    return np.array([named.get(name, coefficient) for name in form.coordinates])


def _fitted(form: Form, points: Points, log_loss: Array) -> Array | None:
    """The fit's own theta, where the runs fix a law that may be extrapolated."""
    if refuse(points, len(form.coordinates)):
        return None
    centre = points.centre()
    centred, ones = points.less(centre), np.ones(len(log_loss))
    law: ParametricFit = fit_centred(form, centred, log_loss, ones, Objective(), centre, 6.0)
    return None if law.boundary else law.theta


def _probable(form: Form, centred: Points, log_loss: Array, middle: Array) -> Array:
    """Damped Gauss-Newton for the most probable law under the prior."""
    theta, damping, width = middle.copy(), 1e-3, _width(form)
    problem = form.problem(centred, log_loss, Objective())

    def misses(at: Array) -> Array:
        told = (problem.predict(at[None])[0] - log_loss) / USUAL_NOISE
        return np.concatenate([told, (at - middle) / width])

    here = misses(theta)
    for _ in range(STEPS):
        slopes = problem.jacobian(theta[None])[0].T / USUAL_NOISE
        slopes = np.concatenate([slopes, np.diag(1 / width)])
        normal = slopes.T @ slopes
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ here)
        ahead = misses(theta + step)
        if ahead @ ahead < here @ here:
            theta, here, damping = theta + step, ahead, damping / 5
        else:
            damping *= 8
    return theta


def _scatter(residual: Array, free: int) -> float:
    """s: the usual noise, corrected by what the runs show beyond what their parameters explain.

    By the median, so that one failed run does not hide what the others say; a robust fit passes
    through about as many runs as it has parameters, whose residuals of nothing say nothing.
    """
    freedom = max(len(residual) - free, 0)
    known = np.sort(np.abs(residual))[free:] if freedom else np.zeros(1)
    shown = freedom * (1.4826 * float(np.median(known))) ** 2
    return float(np.sqrt((NOISE_WEIGHT * USUAL_NOISE**2 + shown) / (NOISE_WEIGHT + freedom)))


def _drawn(form: Form, theta: Array, centred: Points, noise: float, draws: int, seed: int) -> Array:
    """theta itself, then draws about it (S, P), with exponents that a law can have."""
    problem = form.problem(centred, np.zeros(len(centred.x)), Objective())
    rows, width = problem.jacobian(theta[None])[0].T, _width(form)
    # What runs share beside the parameters is no knowledge of these.
    blind = _prior(form, theta[None], centred)[0] - (rows * width) @ (rows * width).T
    blind += noise**2 * np.eye(len(rows))
    precision = np.diag(width**-2.0) + rows.T @ np.linalg.solve(blind, rows)
    root = np.linalg.cholesky(np.linalg.inv(precision))
    about = np.random.default_rng(seed).normal(size=(draws - 1, len(theta))) @ root.T
    drawn = theta + np.concatenate([np.zeros((1, len(theta))), about])
    places = [form.coordinates.index(name) for name in form.exponents]
    drawn[1:, places] = np.clip(drawn[1:, places], FLATTEST, STEEPEST)
    found: Array = drawn
    return found
