"""How much does the loss scatter between seeds, and which difference can be told from that?

Runs that differ in their seed alone give the scatter at their cell; cells give its course. The
model is ln sd = level + slope * (covariate - mean), fitted by maximum likelihood to the cells'
sample variances, each a chi2 variable with one degree of freedom less than its seeds (Porian et al.
2024 let the noise depend on the loss likewise). Scatter is that of ln L: a share of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from isoflop.scaling.interval import LEVEL, Array, Interval, Refusal, Wanted, positive

Covariate = Literal["loss", "flops"]
FEWEST_CELLS = 3  # with a slope of their own; below, one scatter for all
SEEDS = 3  # per cell that a cure asks for
CHI2 = 3.841458820694124  # 95 % of chi2 with one degree of freedom
POWER = 0.8
STEPS = 50
REPEATED = ("family", "size", "tokens")


@dataclass(frozen=True, eq=False)
class SeedNoise:
    """The standard deviation of ln L between seeds as a function of the loss or the compute."""

    covariate: Covariate
    level: float  # ln sd where the covariate has its mean
    slope: float  # per unit of the covariate's logarithm; 0 where the cells do not prove one
    centre: float
    freedom: int  # degrees of freedom: runs less cells
    cells: int
    value: Interval  # sd at the centre

    def sd(self, at: ArrayLike) -> Array:
        """The standard deviation of ln L where the covariate is `at` (nats, or FLOPs)."""
        x = np.log(positive(self.covariate, at)) - self.centre
        found: Array = np.exp(self.level + self.slope * x)
        return found

    def detectable(self, at: float, seeds: int = 1, power: float = POWER) -> float:
        """The smallest difference in ln L of two settings with so many seeds each at `at` that a
        two-sided 5 % test finds with `power` (by Student's t, since sd itself is estimated)."""
        from scipy.special import stdtrit

        if seeds < 1 or not 0 < power < 1:
            raise ValueError(f"seeds {seeds} must be at least 1, power {power} in (0, 1)")
        bounds = float(stdtrit(self.freedom, [(1 + LEVEL) / 2, power]).sum())
        return bounds * float(self.sd(at)) * float(np.sqrt(2 / seeds))


def seed_noise(frame: pd.DataFrame, covariate: Covariate = "loss") -> SeedNoise | Refusal:
    """From a table with columns size, tokens, flops, loss (and family): rows that agree in size,
    tokens and family are seeds of one another. Raises ValueError for another covariate."""
    if covariate not in ("loss", "flops"):
        raise ValueError(f"covariate is {covariate!r}; it must be loss or flops")
    keys = [name for name in REPEATED if name in frame]
    logs = frame.assign(y=np.log(frame["loss"]), x=np.log(frame[covariate]))
    cells = logs.groupby(keys).agg(n=("y", "size"), variance=("y", "var"), x=("x", "mean"))
    cells = cells[(cells["n"] > 1) & (cells["variance"] > 0)]
    if not len(cells):
        why = "no two runs differ in their seed alone, so seed noise is not known"
        cure = f"repeat these runs with {SEEDS - 1} more seeds each"
        return Refusal("no repeats", why, cure, _ends(frame))
    freedom = cells["n"].to_numpy(float) - 1
    variance, x = cells["variance"].to_numpy(float), cells["x"].to_numpy(float)
    centre = float(np.average(x, weights=freedom))
    level, slope = _course(variance, freedom, x - centre)
    total = int(freedom.sum())
    interval = _spread(level, total)
    return SeedNoise(covariate, level, slope, centre, total, len(cells), interval)


def _ends(frame: pd.DataFrame) -> tuple[Wanted, ...]:
    """The cheapest run and the dearest one that costs at most a tenth of all."""
    rows = frame.sort_values("flops")
    afford = rows[rows["flops"] <= max(rows["flops"].iloc[0], rows["flops"].sum() / 10)]
    chosen = pd.concat([rows.iloc[:1], afford.iloc[-1:]]).drop_duplicates(["size", "tokens"])
    values: Sequence[tuple[float, float, float]] = [
        (float(n), float(d), float(c)) for n, d, c in chosen[["size", "tokens", "flops"]].to_numpy()
    ]
    return tuple(Wanted(*value) for value in values)


def _course(variance: Array, freedom: Array, x: Array) -> tuple[float, float]:
    """Level and slope of ln sd; the slope is kept where the likelihood proves it."""
    flat = float(np.log(np.average(variance, weights=freedom)) / 2)
    if len(x) < FEWEST_CELLS or np.ptp(x) < 1e-9:
        return flat, 0.0
    design = np.column_stack([np.ones(len(x)), x])
    theta = np.array([flat, 0.0])
    for _ in range(STEPS):  # Fisher scoring: the information of ln sd is 2 per degree of freedom
        ratio = variance / np.exp(2 * design @ theta)
        information = (design.T * 2 * freedom) @ design
        step = np.linalg.solve(information, design.T @ (freedom * (ratio - 1)))
        theta = theta + np.clip(step, -1.0, 1.0)
    gain = _deviance(variance, freedom, np.full(len(x), flat)) - _deviance(
        variance, freedom, design @ theta
    )
    return (float(theta[0]), float(theta[1])) if gain > CHI2 else (flat, 0.0)


def _deviance(variance: Array, freedom: Array, log_sd: Array) -> float:
    return float((freedom * (2 * log_sd + variance / np.exp(2 * log_sd))).sum())


def _spread(level: float, freedom: int) -> Interval:
    """The interval of a standard deviation with so many degrees of freedom."""
    from scipy.special import gammaincinv

    tails = 2 * gammaincinv(freedom / 2, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])  # of chi2
    low, high = np.exp(level) * np.sqrt(freedom / tails)
    return Interval(float(np.exp(level)), float(low), float(high))
