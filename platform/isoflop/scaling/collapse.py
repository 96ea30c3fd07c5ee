"""Do the loss curves of all sizes fall onto one, as they do when the hyper-parameters scale well?

With x the share of a run's tokens, the normalised curve (L(x) - E) / (L(1) - E) of runs that are
each the best of their budget is nearly the same for every size, to within less than the noise of
seeds (Qiu et al. 2025, "Scaling collapse"). A run that leaves the common curve has been trained
otherwise than the rest: a learning rate that did not scale, a warm-up that ate it, data that ran
out. So this is a health check of a ladder of runs, and needs no run beyond them.

Letters: R runs, G points of the grid in x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincinv

from isoflop.scaling.interval import Array, Refusal

GRID = np.linspace(0.2, 1.0, 41)  # before, warm-up and initialisation still show
FEWEST_RUNS = 3
FEWEST_POINTS = 8  # of a curve
LEAST = 0.005  # of the reducible loss: curves that differ by less are alike to anybody
STRICT = 2.0  # a run this many tolerances from the others' median curve has left it


@dataclass(frozen=True, eq=False)
class LossCurve:
    """One run's training losses over its own length."""

    run: str
    share: Array  # (n,) of its tokens, rising to 1
    loss: Array  # (n,) nats per token


@dataclass(frozen=True, eq=False)
class Collapse:
    """How well one ladder of runs collapses."""

    runs: tuple[str, ...]
    floor: float  # E, nats per token
    x: Array  # (G,)
    curves: Array  # (R, G): normalised, 1 at the end
    distance: Array  # (R,): root mean square of ln(curve / median curve)
    tolerance: float  # the largest distance that seeds alone are likely to make
    measured: (
        bool  # whether repeats gave the tolerance; else it is twice the runs' typical distance
    )

    @property
    def outliers(self) -> tuple[str, ...]:
        """The runs that left the common curve."""
        far = self.distance > STRICT * self.tolerance
        return tuple(run for run, out in zip(self.runs, far, strict=True) if out)

    @property
    def spread(self) -> float:
        """The typical distance of a run from the common curve, as a share of the reducible loss."""
        return float(np.median(self.distance))


def curve(run: str, tokens: ArrayLike, loss: ArrayLike) -> LossCurve | None:
    """A run's curve from its records; None where it has too few, or one that is not finite."""
    x, y = np.asarray(tokens, dtype=float), np.asarray(loss, dtype=float)
    kept = np.isfinite(y) & (x > 0)
    x, y = x[kept], y[kept]
    if len(x) < FEWEST_POINTS or not np.all(np.diff(x) > 0):
        return None
    return LossCurve(run, x / x[-1], y)


def collapse(
    ladder: Sequence[LossCurve],
    *,
    floor: float | None = None,
    repeats: Sequence[Sequence[LossCurve]] = (),
) -> Collapse | Refusal:
    """How well the runs of `ladder` (one per size, each the best of its budget) collapse.

    `floor`: E of the fitted law; None, or a floor above a run's last loss, chooses the value that
    collapses them best. `repeats`: groups of runs that differ in the seed alone, which give the
    tolerance.
    """
    if len(ladder) < FEWEST_RUNS:
        return Refusal(
            "too few points",
            f"a collapse needs at least {FEWEST_RUNS} sizes with a curve each, and has "
            f"{len(ladder)}",
            "train the best size of more budgets",
        )
    smooth = np.stack([_smooth(run) for run in ladder])
    lowest = float(smooth[:, -1].min())
    if floor is None or not 0 <= floor < lowest:
        floor = _best_floor(smooth, lowest)
    curves = _normalised(smooth, floor)
    distance = _distance(curves)
    groups = [np.stack([_smooth(run) for run in group]) for group in repeats if len(group) > 1]
    apart = [_variance(_normalised(group, floor)) for group in groups if group[:, -1].min() > floor]
    freedom = sum(len(group) - 1 for group in groups)
    tolerance = _upper(apart, freedom) if apart else 2 * float(np.median(distance))
    names = tuple(run.run for run in ladder)
    return Collapse(names, floor, GRID, curves, distance, max(tolerance, LEAST), bool(apart))


def ladder_of(
    sizes: Mapping[str, tuple[float, float]], curves: Mapping[str, LossCurve]
) -> list[LossCurve]:
    """The best run of every budget, by budget. `sizes`: (budget, final loss) of each run."""
    best: dict[float, tuple[float, str]] = {}
    for run, (budget, loss) in sizes.items():
        if run in curves and (budget not in best or loss < best[budget][0]):
            best[budget] = (loss, run)
    return [curves[run] for _, (_, run) in sorted(best.items())]


def _smooth(run: LossCurve) -> Array:
    """ln L on the grid by local lines: a batch's loss is noisy, and a curve's end has one side.

    The window grows with the curve's own spacing, so that each line sees several points.
    """
    width = max(0.06, 4.0 / len(run.share))
    logs = np.log(run.loss)
    offset = run.share[None, :] - GRID[:, None]  # (G, n)
    weight = np.clip(1 - (offset / width) ** 2, 0, None)
    total = weight.sum(axis=1)
    mean_x, mean_y = (weight * offset).sum(axis=1) / total, (weight @ logs) / total
    spread = (weight * offset**2).sum(axis=1) / total - mean_x**2
    cross = (weight * offset) @ logs / total - mean_x * mean_y
    slope = np.where(spread > 0, cross / np.where(spread > 0, spread, 1), 0.0)
    smooth: Array = np.exp(mean_y - slope * mean_x)
    return smooth


def _normalised(loss: Array, floor: float) -> Array:
    reducible = np.clip(loss - floor, 1e-9, None)
    curves: Array = reducible / reducible[:, -1:]
    return curves


def _distance(curves: Array) -> Array:
    logs = np.log(curves)
    apart: Array = np.sqrt(((logs - np.median(logs, axis=0)) ** 2).mean(axis=1))
    return apart


def _variance(curves: Array) -> float:
    """Of ln(curve) between runs that differ in their seed alone."""
    return float(np.log(curves).var(axis=0, ddof=1).mean())


def _upper(variances: Sequence[float], freedom: int) -> float:
    """The standard deviation that seeds exceed in one case of ten, by so few repeats: three of them
    may lie together by luck, and no healthy run shall be called an outlier for that."""
    tenth = 2 * gammaincinv(freedom / 2, 0.1)  # of chi2; scipy.stats takes 0.7 s to import
    return float(np.sqrt(np.mean(variances) * freedom / tenth))


def _best_floor(loss: Array, lowest: float) -> float:
    """The floor with the smallest distance between the curves, on a grid below the lowest loss.

    As a share of how far the curves fall: a low floor flattens all of them, and they would then lie
    close together whatever they do.
    """

    def apart(floor: float) -> float:
        curves = _normalised(loss, floor)
        return float(_distance(curves).mean() / np.log(np.median(curves, axis=0)).std())

    return float(min(lowest * (1 - np.geomspace(0.02, 1.0, 60)), key=apart))
