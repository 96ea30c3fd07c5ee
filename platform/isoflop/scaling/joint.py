"""What if several families obey one law in part: one E for one corpus, one exponent for all?

The families' laws are fitted together, with the shared parameters as one. Each family keeps its own
view, a `ParametricFit` with the resamples of the joint fit, so that everything that can be asked of
a law can be asked of it. Runs are drawn with replacement within each family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isoflop.scaling.catalogue import form_of
from isoflop.scaling.edges import boundaries, plain
from isoflop.scaling.forms import Form, Points
from isoflop.scaling.interval import Array, Refusal, positive
from isoflop.scaling.minimise import Part, PowerSum, polish
from isoflop.scaling.objective import Objective
from isoflop.scaling.parametric import (
    BLOCK,
    ParametricFit,
    Resampled,
    fit_centred,
)
from isoflop.scaling.refusals import refuse
from isoflop.scaling.smooth import SmoothForm

FLOORS = np.linspace(0.2, 0.95, 6)  # shares of the lowest loss to start a shared E from


@dataclass(frozen=True, eq=False)
class Family:
    """One family's runs, all of shape (n,)."""

    size: Array
    tokens: Array
    loss: Array
    flops: Array | None = None
    weights: Array | None = None

    def points(self) -> Points:
        return Points.of(self.size, self.tokens, self.flops)


@dataclass(frozen=True, eq=False)
class Joint:
    """The fit of all families together."""

    families: tuple[str, ...]
    fits: Mapping[str, ParametricFit]  # each family's view
    shared: tuple[str, ...]
    objective: float
    problem: PowerSum
    weights: Array
    theta: Array  # (P,)
    places: Mapping[str, Array]  # where each family's coordinates stand in theta
    rows: Mapping[str, Array]  # which runs are the family's


def fit_together(
    families: Mapping[str, Family],
    *,
    shared: Sequence[str] = ("E",),
    form: str = "chinchilla",
    objective: Objective | None = None,
) -> Joint | Refusal:
    """Laws of all families with the `shared` parameters in common.

    A coefficient can be shared only with its exponent. Raises ValueError; refused where a family
    alone would be, but for the parameters that others help to fix.
    """
    law, loss = form_of(form), objective or Objective()
    _check(law, shared, families)
    points = {name: family.points() for name, family in families.items()}
    for name, each in points.items():
        refusal = refuse(each, len(law.coordinates) - len(shared))
        if refusal:
            return replace(refusal, explanation=f"{name}: {refusal.explanation}")
    everything = Points(*(np.concatenate([getattr(p, k) for p in points.values()]) for k in "xycu"))
    centre = everything.centre()
    target = np.log(np.concatenate([positive("loss", f.loss) for f in families.values()]))
    places, size = _places(law, list(families), shared)
    rows = _rows(points)
    problem = _together(law, everything.less(centre), target, loss, places, rows, size)
    weights = np.concatenate(
        [np.ones(len(f.loss)) if f.weights is None else f.weights for f in families.values()]
    )
    alone = {
        name: fit_centred(law, each.less(centre), target[rows[name]], weights[rows[name]], loss,
                          centre, _factor(each))
        for name, each in points.items()
    }  # fmt: skip
    begin = _starts(law, alone, shared, places, size)
    found = polish(problem, weights[None], begin)
    best = int(found.value.argmin())
    theta, level = found.theta[best], float(found.value[best])
    agreeing = int((found.value <= level * (1 + 1e-6)).sum())
    fits = {
        name: _view(
            replace(one, starts=len(begin), agreeing=agreeing, shared=tuple(shared),
                    converged=bool(found.converged[best])),
            theta[places[name]],
        )
        for name, one in alone.items()
    }  # fmt: skip
    return Joint(tuple(families), fits, tuple(shared), level, problem, weights, theta, places, rows)


def _check(form: Form, shared: Sequence[str], families: Mapping[str, Family]) -> None:
    for name in shared:
        if name not in form.pinnable or name == form.power:
            allowed = ", ".join(form.pinnable)
            raise ValueError(f"{form.name} cannot share {name!r}; it can share {allowed}")
        for term in form.terms:
            if term.coefficient == name and term.exponent and term.exponent not in shared:
                raise ValueError(f"{name} can be shared only together with {term.exponent}")
    if isinstance(form, SmoothForm):
        raise ValueError(f"{form.name} cannot share parameters; sums of powers can")
    if len(families) < 2:
        raise ValueError(f"sharing {', '.join(shared)} takes two families or more")


def _factor(points: Points) -> float:
    return float(np.exp((points.c - points.x - points.y).mean()))


def _rows(points: Mapping[str, Points]) -> dict[str, Array]:
    edges = np.cumsum([0, *(len(p.x) for p in points.values())])
    return {
        name: np.arange(low, high)
        for name, low, high in zip(points, edges[:-1], edges[1:], strict=True)
    }


def _places(
    form: Form, families: Sequence[str], shared: Sequence[str]
) -> tuple[dict[str, Array], int]:
    """For each family where its coordinates stand in the joint theta, and how long that is."""
    common = {name: index for index, name in enumerate(shared)}
    size, places = len(shared), {}
    for family in families:
        place = []
        for name in form.coordinates:
            if name in common:
                place.append(common[name])
            else:
                place.append(size)
                size += 1
        places[family] = np.array(place)
    return places, size


def _together(
    form: Form,
    points: Points,
    target: Array,
    objective: Objective,
    places: Mapping[str, Array],
    rows: Mapping[str, Array],
    size: int,
) -> PowerSum:
    """One problem: the slopes of a family's own parameters are 0 in the runs of the others."""
    whole = form.problem(points, target, objective)
    if whole.power is not None:
        raise ValueError(f"{form.name} has an outer exponent and cannot share parameters")
    slopes: dict[tuple[int, int], Array] = {}
    for family, place in places.items():
        inside = np.zeros(len(target))
        inside[rows[family]] = 1.0
        for part in whole.parts:
            key = (part.term, int(place[part.parameter]))
            slopes[key] = slopes.get(key, np.zeros(len(target))) + part.slope * inside
    parts = tuple(Part(term, parameter, slope) for (term, parameter), slope in slopes.items())
    return replace(whole, parts=parts, size=size)


def _starts(
    form: Form,
    alone: Mapping[str, ParametricFit],
    shared: Sequence[str],
    places: Mapping[str, Array],
    size: int,
) -> Array:
    """From each family's own law, with one's shared values, their mean, and a ladder of floors."""
    columns = [form.coordinates.index(name) for name in shared]
    own = np.array([fit.theta[columns] for fit in alone.values()])
    values = [own.mean(axis=0), np.median(own, axis=0), *own]
    if "E" in shared:
        lowest = min(float(fit.problem.target.min()) for fit in alone.values())
        for share in FLOORS:
            value = own.mean(axis=0)
            value[list(shared).index("E")] = np.log(share) + lowest
            values.append(value)
    begin = np.zeros((len(values), size))
    for name, fit in alone.items():
        begin[:, places[name]] = fit.theta
    begin[:, : len(shared)] = values
    return begin


def _view(fit: ParametricFit, theta: Array) -> ParametricFit:
    """The family's fit with the joint law's parameters."""
    cost = fit.loss.value(fit.problem.predict(theta[None])[0] - fit.problem.target)
    return replace(
        fit,
        theta=theta,
        values=plain(fit.form, theta, fit.centre),
        objective=float((fit.weights * cost).sum()),
        boundary=boundaries(fit.form, fit.problem, theta[None], fit.centre)[0],
    )


def bootstrap_together(
    joint: Joint, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Resampled]:
    """Each family's view of the joint resamples: row r of every family is one draw."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    random = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(joint.weights)))
    for rows in joint.rows.values():
        counts[:, rows] = random.multinomial(
            len(rows), np.full(len(rows), 1 / len(rows)), resamples
        )
    blocks, settled = [], []
    for first in range(0, resamples, BLOCK):
        weights = counts[first : first + BLOCK] * joint.weights
        found = polish(joint.problem, weights, np.repeat(joint.theta[None], len(weights), axis=0))
        blocks.append(found.theta)
        settled.append(found.converged)
    theta, converged, views = np.concatenate(blocks), np.concatenate(settled), {}
    for name, fit in joint.fits.items():
        own = theta[:, joint.places[name]]
        named = boundaries(fit.form, fit.problem, own, fit.centre)
        touched = np.array([bool(each) for each in named])
        lost = int((~converged & ~touched).sum())
        views[name] = Resampled(fit, own, 0, lost, int(touched.sum()))
    return views
