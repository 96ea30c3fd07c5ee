"""Which learning rate and batch are best for each size and length, and how do they scale?

In each cell of size and tokens a quadratic in the logarithms of the hyper-parameters is laid
through the losses of its sweep; its minimum is the cell's optimum, refused where the sweep does not
bracket it. The law is then log-linear, as Step Law's (Li et al. 2025) ln h* = k + a ln N + b ln D,
by weighted least squares with the variance within cells and, where they scatter more than that,
between them (random effects; DerSimonian & Laird 1986). Losses are taken as logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from isoflop.scaling.interval import Array, Interval, Refusal
from isoflop.scaling.residuals import residual_draws

NEAR = 0.05  # ln L above the cell's best beyond which a loss is no longer part of the bowl
SPARE = 1  # points beyond the coefficients of a quadratic, without which its error is not known
FLAT = 0.02  # spread across the line of sizes and tokens below which they are one variable


@dataclass(frozen=True, eq=False)
class Cell:
    """One size and length: its best hyper-parameters, or why they are not known."""

    family: str
    size: float
    tokens: float
    flops: float
    points: int
    status: Literal["interior"] | Refusal
    best: Mapping[str, Interval]  # by hyper-parameter
    spread: Mapping[str, float]  # the standard deviation of ln(best)
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class HyperLaw:
    """h* = exp(k) N^a D^b, or in the one variable that the cells let one tell."""

    family: str
    name: str  # the hyper-parameter
    exponents: Mapping[str, Interval]  # of N and D, or of one of N, D and C alone
    coefficient: Interval  # exp(k)
    between: float  # sd of ln h* between cells beyond what their own sweeps explain
    cells: int
    left_out: tuple[Cell, ...]  # cells without an optimum
    coefficients: Array  # (P,): k, then the exponents
    draws: Array  # (R, P)

    def predict(self, size: float, tokens: float, flops: float | None = None) -> Interval:
        """The best value there; `flops` None: 6ND. The interval is that of the law, not of a cell
        that scatters about it."""
        known = {"N": size, "D": tokens, "C": 6.0 * size * tokens if flops is None else flops}
        at = np.array([1.0, *(np.log(known[name]) for name in self.exponents)])
        return Interval.of(float(at @ self.coefficients), self.draws @ at).exponential()


def optima(
    frame: pd.DataFrame, names: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> list[Cell]:
    """The best `names` (columns of values above 0) in each cell of family, size and tokens.

    `frame` has columns family, size, tokens, flops, loss. Raises ValueError for a column that is
    not there or a value that has no logarithm.
    """
    for name in names:
        if name not in frame or not (frame[name] > 0).all():
            raise ValueError(f"hyper-parameter {name!r} must be a column of values above 0")
    if resamples < 1 or not names:
        raise ValueError(f"resamples {resamples} and hyper-parameters {len(names)}: at least 1")
    cells = []
    for key, rows in frame.groupby(["family", "size", "tokens"], sort=True):
        family, size, tokens = str(key[0]), float(str(key[1])), float(str(key[2]))
        stream = [seed, *f"{family}/{size:.6e}/{tokens:.6e}".encode()]
        random = np.random.default_rng(stream)
        place = family, size, tokens, float(rows["flops"].mean()), len(rows)
        cells.append(_cell(place, rows, names, resamples, random))
    return cells


def _cell(
    place: tuple[str, float, float, float, int],
    rows: pd.DataFrame,
    names: Sequence[str],
    resamples: int,
    random: np.random.Generator,
) -> Cell:
    logs, loss = np.log(rows[list(names)].to_numpy(float)), np.log(rows["loss"].to_numpy(float))
    # Far from the best the loss is no quadratic: it rises steeply until runs diverge.
    needed = _coefficients(len(names)) + SPARE
    limit = max(loss.min() + NEAR, np.sort(loss)[min(needed, len(loss)) - 1])
    logs, loss = logs[loss <= limit], loss[loss <= limit]
    refusal = _refuse(logs, loss, names, needed)
    if refusal:
        return Cell(*place, refusal, {}, {})
    centre = logs.mean(axis=0)
    design = _design(logs - centre)
    curve = np.linalg.pinv(design) @ loss
    noise = residual_draws(design, loss, curve, resamples, random)
    low, high = logs.min(axis=0) - centre, logs.max(axis=0) - centre
    best, level = _bottom(curve[None], len(names))
    outside = _outside(best[0], low, high, names, logs, loss)
    if outside:
        return Cell(*place, outside, {}, {})
    drawn, _ = _bottom(curve + noise @ np.linalg.pinv(design).T, len(names))
    # A resample that does not bracket its optimum knows no more than that it lies at the edge.
    drawn = np.clip(np.where(np.isnan(drawn), (low + high) / 2, drawn), low, high)
    found = {
        name: Interval.of(float(best[0, i] + centre[i]), drawn[:, i] + centre[i]).exponential()
        for i, name in enumerate(names)
    }
    spread = {name: float(drawn[:, i].std()) for i, name in enumerate(names)}
    return Cell(*place, "interior", found, spread, float(np.exp(level[0])))


def _coefficients(names: int) -> int:
    return 1 + names + names * (names + 1) // 2


def _design(x: Array) -> Array:
    """1, x_i, x_i x_j (n, P)."""
    count = x.shape[1]
    squares = [x[:, i] * x[:, j] for i in range(count) for j in range(i, count)]
    return np.column_stack([np.ones(len(x)), x, *squares])


def _bottom(curves: Array, count: int) -> tuple[Array, Array]:
    """Minimum (R, count) and its value (R,) of each quadratic (R, P); nan without one."""
    slope = curves[:, 1 : 1 + count]
    bend = np.zeros((len(curves), count, count))
    place = 1 + count
    for i in range(count):
        for j in range(i, count):
            bend[:, i, j] += curves[:, place]
            bend[:, j, i] += curves[:, place]
            place += 1
    good = np.linalg.eigvalsh(bend)[:, 0] > 0
    safe = np.where(good[:, None, None], bend, np.eye(count))
    best = -np.linalg.solve(safe, slope[:, :, None])[:, :, 0]
    level = curves[:, 0] + 0.5 * (slope * best).sum(axis=1)
    return np.where(good[:, None], best, np.nan), np.where(good, level, np.nan)


def _refuse(logs: Array, loss: Array, names: Sequence[str], needed: int) -> Refusal | None:
    for i, name in enumerate(names):
        if len(np.unique(logs[:, i])) < 3:
            why = f"fewer than 3 values of {name} were tried near the best"
            step = np.log(2.0)
            return Refusal("too few points", why, f"try {name} {_values(logs, loss, i, step)}")
    if len(loss) < needed:
        why = f"{len(loss)} runs cannot fix the {needed - SPARE} coefficients of the bowl"
        return Refusal("too few points", why, f"finish at least {needed} runs of this cell")
    return None


def _values(logs: Array, loss: Array, column: int, step: float) -> str:
    """Half and twice the best value."""
    best = logs[int(loss.argmin()), column]
    return " and ".join(f"{float(np.exp(best + sign * step)):.3g}" for sign in (-1, 1))


def _outside(
    best: Array, low: Array, high: Array, names: Sequence[str], logs: Array, loss: Array
) -> Refusal | None:
    """Why a bowl's minimum is not an optimum of the sweep; `best` relative to the centre."""
    if np.isnan(best).any():
        why = "the losses do not curve upwards on all sides"
        cure = " and ".join(f"{n} {_values(logs, loss, i, np.log(4.0))}"
                            for i, n in enumerate(names))  # fmt: skip
        return Refusal("no interior minimum", why, f"try {cure}")
    for i, name in enumerate(names):
        if low[i] <= best[i] <= high[i]:
            continue
        sizes = np.unique(logs[:, i])
        step = float(np.median(np.diff(sizes)))
        side, edge = ("smaller", sizes[0] - step) if best[i] < low[i] else (
            "larger", sizes[-1] + step)  # fmt: skip
        beyond = edge + (step if side == "larger" else -step)
        why = f"the best {name} lies at the edge of its sweep, or beyond"
        values = f"{float(np.exp(edge)):.3g} and {float(np.exp(beyond)):.3g}"
        return Refusal("optimum at the edge", why, f"try {side} {name}: {values}")
    return None


def hyper_laws(
    cells: Sequence[Cell], names: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> dict[tuple[str, str], HyperLaw | Refusal]:
    """The law of each family and hyper-parameter, by (family, name)."""
    found: dict[tuple[str, str], HyperLaw | Refusal] = {}
    for family in sorted({cell.family for cell in cells}):
        own = [cell for cell in cells if cell.family == family]
        for name in names:
            random = np.random.default_rng([seed, *f"{family}/{name}".encode()])
            found[family, name] = _law(own, name, resamples, random)
    return found


def _law(
    cells: Sequence[Cell], name: str, resamples: int, random: np.random.Generator
) -> HyperLaw | Refusal:
    kept = [cell for cell in cells if cell.status == "interior"]
    axes = _axes(kept)
    if not axes or len(kept) < len(axes) + 2:
        why = f"{len(kept)} of {len(cells)} cells have an optimum of {name}"
        at_least = max(len(axes), 1) + 2
        cure = f"sweep at least {at_least} cells of different sizes and lengths, or mend these"
        return Refusal("too few points", why, f"{cure}: {_mend(cells)}")
    design = np.column_stack([np.ones(len(kept)), *axes.values()])
    best = np.log([cell.best[name].value for cell in kept])
    within = np.square([max(cell.spread[name], 1e-6) for cell in kept])
    between = _between(design, best, within)
    solve = _weighted(design, 1 / (within + between))
    coefficients: Array = (solve @ best).astype(float)
    freedom = len(kept) - design.shape[1]
    level = np.sqrt(freedom / random.chisquare(freedom, size=(resamples, 1)))
    noise = random.standard_normal((resamples, len(kept))) * np.sqrt(within + between) * level
    draws = coefficients + noise @ solve.T
    return HyperLaw(
        family=cells[0].family,
        name=name,
        exponents={
            axis: Interval.of(float(coefficients[1 + i]), draws[:, 1 + i])
            for i, axis in enumerate(axes)
        },
        coefficient=Interval.of(float(coefficients[0]), draws[:, 0]).exponential(),
        between=float(np.sqrt(between)),
        cells=len(kept),
        left_out=tuple(cell for cell in cells if cell.status != "interior"),
        coefficients=coefficients,
        draws=draws,
    )


def _mend(cells: Sequence[Cell]) -> str:
    refused = [cell for cell in cells if isinstance(cell.status, Refusal)]
    return "; ".join(f"N {c.size:.3g} D {c.tokens:.3g}: {c.status}" for c in refused[:3]) or "none"


def _axes(cells: Sequence[Cell]) -> dict[str, Array]:
    """ln N and ln D where both are told apart; else the one that varies, or ln C."""
    logs = np.log([[c.size, c.tokens, c.flops] for c in cells]) if cells else np.zeros((0, 3))
    varied = [len(np.unique(logs[:, i])) > 1 for i in (0, 1)]
    if varied == [True, True]:
        centred = logs[:, :2] - logs[:, :2].mean(axis=0)
        spread = np.linalg.svd(centred, compute_uv=False)
        if spread[1] >= FLAT * spread[0] and len(cells) > 3:
            return {"N": logs[:, 0], "D": logs[:, 1]}
        return {"C": logs[:, 2]}
    return {name: logs[:, i] for i, name in enumerate("ND") if varied[i]}


def _weighted(design: Array, weight: Array) -> Array:
    """The matrix (P, n) that takes optima to the coefficients of weighted least squares."""
    root = np.sqrt(weight)
    solve: Array = np.asarray(np.linalg.pinv(design * root[:, None]) * root, dtype=np.float64)
    return solve


def _between(design: Array, best: Array, within: Array) -> float:
    """The variance between cells by the method of moments, at least 0."""
    weight = 1 / within
    solve = _weighted(design, weight)
    miss = best - design @ (solve @ best)
    freedom = len(best) - design.shape[1]
    excess = float((weight * miss**2).sum()) - freedom
    scale = float(weight.sum() - np.trace(solve @ (weight[:, None] * design)))
    return max(excess / scale, 0.0) if scale > 0 else 0.0
