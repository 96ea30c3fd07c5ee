"""Which model size reaches the lowest loss for each budget, and how does it grow? (Approach 2)

For each family and budget a parabola is laid through loss against ln N (Hoffmann et al. 2022,
section 3.2). Its uncertainty comes from a residual bootstrap: with the 5 to 7 sizes of a budget,
drawing runs with replacement would mostly draw designs that no longer bracket the minimum, while
residuals keep the design. Every resample draws its noise level anew (nu / chi2_nu, nu the runs less
3), since so few residuals do not know it: without that, intervals from 5 runs would be half as wide
as they should be. A resampled minimum is sought within the measured sizes, so an interval that
reaches the smallest or largest size is open on that side.

What the intervals know is the scatter of the runs about the curve. With one seed per size that is
seed noise and misfit together; a bias that all runs share is invisible to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isoflop.scaling import cures
from isoflop.scaling.curves import akima, unbias
from isoflop.scaling.interval import Array, Interval, Refusal, Wanted, compact, positive
from isoflop.scaling.residuals import residual_draws

FLOPS = "FLOPs"
Curve = Literal["parabola", "corrected", "spline"]
Bottoms = tuple[Array, Array, NDArray[np.bool_]]  # ln N, loss, whether inside the sizes
FEWEST_SIZES = 4  # a parabola takes three; the fourth says how far to trust it
FEWEST_BUDGETS = 2
EVERYTHING = "all runs"  # the family where a study compares none


@dataclass(frozen=True, eq=False)
class Resamples:
    """The minimum in each of R resamples, all of shape (R,)."""

    size: Array
    tokens: Array
    loss: Array


@dataclass(frozen=True, eq=False)
class Minimum:
    """The loss minimum of one family at one budget, or why there is none.

    `size`, `tokens` and `loss` are None exactly when `status` is a refusal.
    """

    family: str
    budget: float  # as the study asked for it
    flops: float  # exact training FLOPs, the mean over the points
    points: int
    status: Literal["interior"] | Refusal
    size: Interval | None = None
    tokens: Interval | None = None
    loss: Interval | None = None  # nats per token
    interior: float = 0.0  # share of resamples whose parabola has its minimum inside the sizes
    parabola: tuple[float, float, float] | None = None  # of ln N, highest power first
    resamples: Resamples | None = None
    measured: float | None = None  # the lowest loss of any of the points, where there is no minimum

    @property
    def flops_6nd(self) -> float | None:
        """6 N D at the minimum, beside the exact count."""
        return 6.0 * self.size.value * self.tokens.value if self.size and self.tokens else None


@dataclass(frozen=True)
class Exponents:
    """N* ~ C^a and D* ~ C^b of one family, or why they are not known."""

    family: str
    compute: Literal["exact", "6ND"]
    budgets: int
    a: Interval | None
    b: Interval | None
    status: Literal["fitted"] | Refusal


def minima(
    table: pd.DataFrame,
    *,
    family: str | None = "axis.arch",
    budget: str = "axis.flops",
    size: str = "params_without_input_embedding",
    resamples: int = 1000,
    seed: int = 0,
    curve: Curve = "parabola",
    lopsided: Mapping[str, tuple[float, float]] | None = None,
) -> list[Minimum]:
    """One minimum per family and budget among the finished runs, families and budgets sorted.

    `curve`: a parabola, a parabola corrected for a curve that is `lopsided` (alpha and beta of each
    family, as approach 3 finds them), or Akima's spline (Porian et al. 2024), which knows no shape
    and takes every run at its word.

    `family`, `budget` and `size` are columns of the run table (`family` None: all runs are one).
    Raises ValueError that names a column the table lacks.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    needed = [budget, size, "tokens", "flops", "loss", "status", *([family] if family else [])]
    missing = [name for name in needed if name not in table]
    if missing:
        have = ", ".join(map(str, table.columns))
        raise ValueError(f"the run table has no column {missing[0]!r}; it has {have}")
    runs = finished(table).assign(family=families(table, family))
    found = []
    for (name, asked), group in runs.groupby(["family", budget], sort=True):
        amount = float(str(asked))
        # A stream of its own for each minimum: adding a family changes no other family's interval.
        key = [seed, *f"{name}/{amount:.6e}".encode()]
        random = np.random.default_rng(key)
        shape = _shape(curve, str(name), lopsided)
        found.append(_minimum(str(name), amount, group, size, resamples, random, shape))
    return found


def counted(budget: str | None) -> str:
    """What a column of budgets counts, in words."""
    name = (budget or "").removeprefix("axis.")
    return FLOPS if name in ("", "flops") else name.replace("_", " ")


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The runs that count: finished, with a finite loss."""
    return table[(table["status"] == "finished") & np.isfinite(table["loss"].astype(float))]


def families(table: pd.DataFrame, family: str | None) -> pd.Series:
    """Each run's family as text."""
    if family is None:
        return pd.Series(EVERYTHING, index=table.index, dtype=object)
    return table[family].astype(str)


def _minimum(
    name: str,
    budget: float,
    group: pd.DataFrame,
    size: str,
    resamples: int,
    random: np.random.Generator,
    shape: tuple[float, float] | Literal["parabola", "spline"],
) -> Minimum:
    n, tokens = positive(size, group[size]), positive("tokens", group["tokens"])
    loss = positive("loss", group["loss"])
    flops = float(positive("flops", group["flops"]).mean())
    order = np.argsort(n, kind="stable")
    x, log_tokens, loss = np.log(n[order]), np.log(tokens[order]), loss[order]
    near = _near(x, loss)
    x, log_tokens, loss = x[near], log_tokens[near], loss[near]
    compute = np.log(flops)
    refusal = _refuse(x, log_tokens, np.full(len(x), compute), loss)
    if refusal:
        return Minimum(name, budget, flops, len(x), refusal, measured=float(loss.min()))
    centre = x.mean()
    design = np.vander(x - centre, 3)
    curve: Array = np.linalg.pinv(design) @ loss
    noise = residual_draws(design, loss, curve, resamples, random)
    (best, lowest, _), (at, values, inside) = _bottoms(
        x - centre, design, loss, curve, noise, shape
    )
    if not np.isfinite(best[0]):
        why = "no lopsided curve within the sizes explains the vertex of the parabola"
        runs = cures.beyond(x, log_tokens, np.full(len(x), compute), below=1, above=1)
        refusal = Refusal("no interior minimum", why, "add sizes on both sides", runs)
        return Minimum(name, budget, flops, len(x), refusal, measured=float(loss.min()))
    # At a fixed budget ln D is a smooth function of ln N, and known at every size.
    known, first = np.unique(x - centre, return_index=True)
    split = [np.exp(np.interp(where, known, log_tokens[first])) for where in (best, at)]
    drawn = Resamples(np.exp(at + centre), split[1], values)
    second, slope, level = (float(c) for c in curve)
    return Minimum(
        family=name,
        budget=budget,
        flops=flops,
        points=len(x),
        status="interior",
        size=Interval.of(float(np.exp(best[0] + centre)), drawn.size),
        tokens=Interval.of(float(split[0][0]), drawn.tokens),
        loss=Interval.of(float(lowest[0]), drawn.loss),
        interior=float(inside.mean()),
        parabola=(second, slope - 2 * second * centre, level - (slope - second * centre) * centre),
        resamples=drawn,
    )


def _near(x: Array, loss: Array) -> NDArray[np.bool_]:
    """The runs (n,) that a parabola is laid through, sorted by x = ln N: all of them, unless far
    sizes pull its vertex out of the range in spite of a best size inside. Then the end with the
    higher loss is left out, since a parabola is the curve's shape near its minimum only."""
    kept = np.ones(len(x), dtype=bool)
    while len(sizes := np.unique(x[kept])) > FEWEST_SIZES:
        means = [float(loss[kept & (x == size)].mean()) for size in sizes]
        second, slope, _ = np.polyfit(x[kept] - sizes[0], loss[kept], 2)
        edge = int(np.argmin(means)) in (0, len(sizes) - 1)
        if edge or second <= 0 or 0 <= -slope / (2 * second) <= np.ptp(sizes):
            break
        kept &= x != (sizes[0] if means[0] > means[-1] else sizes[-1])
    return kept


def _refuse(x: Array, y: Array, c: Array, loss: Array) -> Refusal | None:
    """Why these runs of one budget have no minimum to report; x is ln N, sorted; y ln D, c ln C."""
    sizes, place = np.unique(x, return_inverse=True)
    if len(sizes) < FEWEST_SIZES:
        why = f"only {len(sizes)} size{'' if len(sizes) == 1 else 's'} finished"
        missing = FEWEST_SIZES - len(sizes)
        runs = cures.beyond(x, y, c, below=missing // 2, above=missing - missing // 2)
        return Refusal("too few points", why, f"finish at least {FEWEST_SIZES} sizes", runs)
    mean = np.bincount(place, weights=loss) / np.bincount(place)
    best = int(mean.argmin())
    if best in (0, len(sizes) - 1):
        side, cure = ("smallest", "smaller") if best == 0 else ("largest", "larger")
        why = f"the {side} size has the lowest loss"
        # A minimum takes two sizes on either side of it.
        runs = cures.beyond(x, y, c, **{"below" if best == 0 else "above": 2})
        return Refusal("optimum at the edge", why, f"add {cure} sizes", runs)
    second, slope, _ = np.polyfit(x - x.mean(), loss, 2)
    if second <= 0:
        why = "the losses do not curve upwards on both sides"
        cure = "add sizes farther out on both sides, or seeds"
        return Refusal("no interior minimum", why, cure, cures.beyond(x, y, c, below=1, above=1))
    vertex = x.mean() - slope / (2 * second)
    if not x[0] <= vertex <= x[-1]:
        why = (
            f"{compact(np.exp(sizes[best]))} parameters have the lowest loss, but the parabola "
            "through all sizes has its minimum outside them: some lie too far off"
        )
        runs = cures.between(x, y, c, float(sizes[best]))
        return Refusal("no interior minimum", why, "add sizes about the best one", runs)
    return None


def _vertex(curves: Array, x: Array) -> Bottoms:
    """Where each parabola (R, 3) is lowest within the range of x, its value, and whether inside."""
    second, slope, _ = curves.T
    bottom = np.divide(-slope, 2 * second, out=np.full(len(curves), np.inf), where=second > 0)
    inside = (bottom >= x[0]) & (bottom <= x[-1])
    edges = np.array([_values(curves, np.full(len(curves), edge)) for edge in (x[0], x[-1])])
    edge = np.where(edges[0] < edges[1], x[0], x[-1])
    at = np.where(inside, bottom, edge)
    return at, _values(curves, at), inside


def _values(curves: Array, x: Array) -> Array:
    values: Array = (curves[:, 0] * x + curves[:, 1]) * x + curves[:, 2]
    return values


def _shape(
    curve: Curve, family: str, lopsided: Mapping[str, tuple[float, float]] | None
) -> tuple[float, float] | Literal["parabola", "spline"]:
    """The exponents of a corrected parabola, or the name of the curve."""
    if curve not in ("parabola", "corrected", "spline"):
        raise ValueError(f"curve is {curve!r}; it must be parabola, corrected or spline")
    if curve != "corrected":
        return curve
    if lopsided is None or family not in lopsided:
        raise ValueError(f"a corrected parabola takes alpha and beta of {family!r}")
    return lopsided[family]


def _bottoms(
    x: Array,
    design: Array,
    loss: Array,
    curve: Array,
    noise: Array,
    shape: tuple[float, float] | Literal["parabola", "spline"],
) -> tuple[Bottoms, Bottoms]:
    """Place, loss and whether inside, of the minimum of the runs (1,) and of each resample (R,)."""
    if shape == "spline":
        return akima(x, loss[None]), akima(x, loss + noise)
    curves = curve + noise @ np.linalg.pinv(design).T
    plain = _vertex(curve[None], x), _vertex(curves, x)
    if shape == "parabola":
        return plain
    return _corrected(x, curve[None], plain[0], shape), _corrected(x, curves, plain[1], shape)


def _corrected(x: Array, curves: Array, plain: Bottoms, shape: tuple[float, float]) -> Bottoms:
    """Resamples without an explanation stay where the parabola has them, at the edge or near it."""
    best, lowest = unbias(x, curves, *shape)
    known = np.isfinite(best)
    if len(curves) == 1:
        return best, lowest, known
    return np.where(known, best, plain[0]), np.where(known, lowest, plain[1]), plain[2] & known


def exponents(
    minima: Sequence[Minimum], *, compute: Literal["exact", "6ND"] = "exact"
) -> list[Exponents]:
    """N* ~ C^a and D* ~ C^b per family, over its budgets with an interior minimum.

    `compute`: the exact FLOPs of the runs, or 6 N D at each minimum (with which a + b = 1).
    """
    if compute not in ("exact", "6ND"):
        raise ValueError(f"compute is {compute!r}; it must be 'exact' or '6ND'")
    names = sorted({minimum.family for minimum in minima})
    return [_exponents(name, [m for m in minima if m.family == name], compute) for name in names]


def _exponents(name: str, minima: Sequence[Minimum], compute: Literal["exact", "6ND"]) -> Exponents:
    points, draws, flops = [], [], []
    for minimum in minima:
        if minimum.size and minimum.tokens and minimum.resamples:
            points.append(np.log([[minimum.size.value], [minimum.tokens.value]]))
            draws.append(np.log([minimum.resamples.size, minimum.resamples.tokens]))
            flops.append(np.log(minimum.flops))
    if len(points) < FEWEST_BUDGETS:
        why = f"{len(points)} of {len(minima)} budgets have an interior minimum"
        cure, runs = f"at least {FEWEST_BUDGETS} are needed", _another_budget(points, flops)
        status = Refusal("too few budgets", why, cure, runs)
        return Exponents(name, compute, len(points), None, None, status)
    slopes = [_slopes(np.array(flops), np.array(logs), compute) for logs in (points, draws)]
    a, b = (Interval.of(float(slopes[0][i, 0]), slopes[1][i]) for i in (0, 1))
    return Exponents(name, compute, len(points), a, b, "fitted")


def _another_budget(points: Sequence[Array], log_flops: Sequence[float]) -> tuple[Wanted, ...]:
    """Sizes about the optimum of less compute, where one budget's minimum is known."""
    if not points:
        return ()
    log_size, log_tokens = points[-1][:, 0]
    log_factor = log_flops[-1] - log_size - log_tokens
    return cures.another_budget(float(log_size), log_flops[-1], float(log_factor))


def _slopes(log_flops: Array, logs: Array, compute: str) -> Array:
    """Least-squares slopes (2, R) of ln N* and ln D*, given as (budgets, 2, R), against ln C."""
    x = np.broadcast_to(log_flops[:, None, None], logs.shape)
    if compute == "6ND":
        x = np.broadcast_to(logs.sum(axis=1, keepdims=True), logs.shape)
    x = x - x.mean(axis=0)
    slopes: Array = (x * logs).sum(axis=0) / (x**2).sum(axis=0)
    return slopes
