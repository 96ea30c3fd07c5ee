"""Which laws can be laid through runs, and what are their parameters called?

    chinchilla  L = E + A N^-alpha + B D^-beta             Hoffmann et al. 2022, section 3.3
    tied        the same with alpha = beta                 as in Gadre et al. 2024
    kaplan      L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D   Kaplan et al. 2020, eq. 1.5
    gadre       L = E + a C^-eta M^eta + b C^-eta M^-eta, M = D/N    Gadre et al. 2024, equation 4

All are sums of powers (`minimise`). `gadre` equals `tied` with alpha = 2 eta where C = 6ND; it
differs where C was counted exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from isoflop.scaling.interval import Array, positive
from isoflop.scaling.minimise import Part, PowerSum
from isoflop.scaling.objective import Objective
from isoflop.scaling.starts import GRID

Centre = tuple[float, float, float]  # means of ln N, ln D, ln C

# How each covariate is made of ln N, ln D, ln C.
COVARIATES: Mapping[str, tuple[float, float, float]] = {
    "N": (1.0, 0.0, 0.0),
    "D": (0.0, 1.0, 0.0),
    "C/M": (1.0, -1.0, 1.0),
    "C M": (-1.0, 1.0, 1.0),
}


@dataclass(frozen=True, eq=False)
class Points:
    """Where a law is asked: logarithms, all of shape (n,)."""

    x: Array  # ln N
    y: Array  # ln D
    c: Array  # ln C
    u: Array  # ln of distinct tokens; y where none was read again

    @staticmethod
    def of(
        size: ArrayLike,
        tokens: ArrayLike,
        flops: ArrayLike | None = None,
        unique: ArrayLike | None = None,
    ) -> Points:
        """`flops` None: 6ND; `unique` None: every token was read once. Raises ValueError for values
        that have no logarithm."""
        x, y = np.log(positive("size", size)), np.log(positive("tokens", tokens))
        c = np.log(6) + x + y if flops is None else np.log(positive("flops", flops))
        u = y if unique is None else np.minimum(np.log(positive("unique", unique)), y)
        return Points(*(np.ascontiguousarray(a) for a in np.broadcast_arrays(x, y, c, u)))

    def centre(self) -> Centre:
        return float(self.x.mean()), float(self.y.mean()), float(self.c.mean())

    def less(self, centre: Centre) -> Points:
        x, y, u = self.x - centre[0], self.y - centre[1], self.u - centre[1]
        return Points(x, y, self.c - centre[2], u)

    def covariate(self, name: str) -> Array:
        p, q, r = COVARIATES[name]
        return p * self.x + q * self.y + r * self.c


@dataclass(frozen=True)
class Term:
    """coefficient * covariate^-exponent; exponent None is exactly 1; no covariate: a constant."""

    coefficient: str
    covariate: str | None = None
    exponent: str | None = None


@dataclass(frozen=True)
class Form:
    """A law. Its theta holds the logarithms of its terms' coefficients, then its exponents, then
    ln s where it has an outer exponent."""

    name: str
    equation: str
    terms: tuple[Term, ...]
    exponents: tuple[str, ...]
    parameters: tuple[str, ...]  # as reported
    power: str | None = None  # the outer exponent s
    ranges: tuple[tuple[float, float], ...] = field(default=((0.03, 3.0), (0.03, 3.0)))

    @property
    def coordinates(self) -> tuple[str, ...]:
        """The names of theta's columns."""
        names = [*(term.coefficient for term in self.terms), *self.exponents]
        return (*names, *([self.power] if self.power else []))

    @property
    def logarithmic(self) -> frozenset[str]:
        """Parameters whose logarithm is estimated."""
        return frozenset(self.parameters) - set(self.exponents) - {"beta", "alpha_N"}

    @property
    def pinnable(self) -> tuple[str, ...]:
        """Parameters that can be held at a value: those that theta holds as they are reported."""
        return tuple(name for name in self.parameters if name in self.coordinates)

    def problem(self, points: Points, target: Array, objective: Objective) -> PowerSum:
        """The law at centred `points`; target is ln L (n,)."""
        ones, parts, offsets = (
            np.ones(len(points.x)),
            [],
            np.zeros((len(self.terms), len(points.x))),
        )
        for index, term in enumerate(self.terms):
            parts.append(Part(index, index, ones))
            if term.covariate is None:
                continue
            slope = -points.covariate(term.covariate)
            if term.exponent is None:
                offsets[index] = slope
            else:
                parts.append(Part(index, self.coordinates.index(term.exponent), slope))
        size, power = (
            len(self.coordinates),
            self.coordinates.index(self.power) if self.power else None,
        )
        return PowerSum(points.x, points.y, target, objective, offsets, tuple(parts), size, power)

    def log_loss(self, theta: Array, points: Points) -> Array:
        """ln L (S, n) at centred points."""
        return self.problem(points, np.zeros(len(points.x)), Objective()).predict(theta)

    def uncentred(self, centre: Centre) -> tuple[Array, Array]:
        """Matrix (P, P) and shift (P,) that undo the centring: logarithms of coefficients, and the
        exponents as they are."""
        names = self.coordinates
        matrix, shift = np.eye(len(names)), np.zeros(len(names))
        for index, term in enumerate(self.terms):
            if term.covariate is None:
                continue
            level = float(np.dot(COVARIATES[term.covariate], centre))
            if term.exponent is None:
                shift[index] = level
            else:
                matrix[index, names.index(term.exponent)] = level
        return matrix, shift

    def natural(self, theta: Array, centre: Centre) -> dict[str, Array]:
        """The reported parameters (S,) by name, `logarithmic` ones as logarithms."""
        matrix, shift = self.uncentred(centre)
        plain = dict(zip(self.coordinates, (theta @ matrix.T + shift).T, strict=True))
        if self.name == "tied":
            plain["beta"] = plain["alpha"]
        if self.name == "kaplan":
            plain |= {"N_c": plain["A"] / plain["ratio"], "D_c": plain["B"]}
            plain["alpha_N"] = plain["ratio"] * np.exp(np.clip(plain["alpha_D"], -50, 50))
        return {name: plain[name] for name in self.parameters}

    def axes(self, pinned: Mapping[str, float]) -> dict[int, Array]:
        """The values of each exponent to start from; those pinned have one."""
        names = [*self.exponents, *([self.power] if self.power else [])]
        cells = GRID if len(names) > 1 else 4 * GRID
        found = {}
        for name, (low, high) in zip(names, self.ranges, strict=False):
            values = np.geomspace(low, high, cells)
            if name in pinned:
                values = np.array([pinned[name]])
            found[self.coordinates.index(name)] = np.log(values) if name == self.power else values
        return found

    def affine(self, theta: Array) -> tuple[Array, Array, Array, Array]:
        """Every term as level + x by_x + y by_y + c by_c, each (S, K), in centred logarithms."""
        x, y, c = np.eye(4)[:3]  # one point along each axis, and the centre
        units = Points(x, y, c, y)
        found = self.problem(units, np.zeros(4), Objective()).terms(theta)
        level = found[:, :, 3]
        return level, found[:, :, 0] - level, found[:, :, 1] - level, found[:, :, 2] - level

    def split(self, theta: Array, budget: Array | float) -> Array:
        """Centred ln N (S,) of the lowest loss where ln N + ln D = budget and C grows with ND.

        Two terms change along that line, one falls and one rises: the minimum is where their slopes
        cancel. nan where they do not oppose each other.
        """
        level, by_x, by_y, _ = self.affine(theta)
        start = level[:, :2] + np.reshape(budget, (-1, 1)) * by_y[:, :2]
        slope = by_x[:, :2] - by_y[:, :2]
        good = (slope[:, 0] < 0) & (slope[:, 1] > 0)
        falls, rises = np.where(good, -slope[:, 0], 1.0), np.where(good, slope[:, 1], 1.0)
        best = (np.log(falls / rises) + start[:, 0] - start[:, 1]) / (falls + rises)
        return np.where(good, best, np.nan)

    def along(self, theta: Array, x: Array, y: Array, c: Array) -> Array:
        """ln L (S,) of each law in theta (S, P) at a point of its own, in centred logarithms."""
        parts = self.affine(theta)
        terms = parts[0] + sum(
            at[:, None] * by for at, by in zip((x, y, c), parts[1:], strict=True)
        )
        with np.errstate(invalid="ignore"):
            inner: Array = np.logaddexp.reduce(terms, axis=1)
        if self.power is None:
            return inner
        outer = theta[:, self.coordinates.index(self.power)]
        return inner * np.exp(np.clip(outer, -50, 50))


CHINCHILLA = Form(
    "chinchilla",
    "L = E + A N^-alpha + B D^-beta",
    (Term("A", "N", "alpha"), Term("B", "D", "beta"), Term("E")),
    ("alpha", "beta"),
    ("E", "A", "B", "alpha", "beta"),
)
TIED = Form(
    "tied",
    "L = E + A N^-alpha + B D^-alpha",
    (Term("A", "N", "alpha"), Term("B", "D", "alpha"), Term("E")),
    ("alpha",),
    ("E", "A", "B", "alpha", "beta"),
)
KAPLAN = Form(
    "kaplan",
    "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
    (Term("A", "N", "ratio"), Term("B", "D")),
    ("ratio",),
    ("N_c", "D_c", "alpha_N", "alpha_D"),
    power="alpha_D",
    ranges=((0.1, 10.0), (0.01, 2.0)),
)
GADRE = Form(
    "gadre",
    "L = E + a C^-eta M^eta + b C^-eta M^-eta, M = D/N",
    (Term("a", "C/M", "eta"), Term("b", "C M", "eta"), Term("E")),
    ("eta",),
    ("E", "a", "b", "eta"),
    ranges=((0.015, 1.5),),
)
FORMS: Mapping[str, Form] = {form.name: form for form in (CHINCHILLA, TIED, KAPLAN, GADRE)}
