"""Which size reaches the lowest loss at each compute, read off the runs' loss curves? (Approach 1)

The lower envelope of all curves over compute (Hoffmann et al. 2022, section 3.1) says at every
compute which run was best, and so its size and the tokens it had read. Where the smallest or the
largest size of all is best, a size beyond might have been better: those stretches are left out. The
bootstrap draws whole runs.

The envelope takes a loss in the middle of a run for what a run of that length would have reached.
That holds for a constant learning rate, not for a decaying one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isoflop.scaling import cures
from isoflop.scaling.interval import Array, Interval, Reason, Refusal, Wanted

CELLS = 400  # of the grid in ln C
SMOOTH = 0.1  # width in ln C of the kernel that takes the batch noise out of a curve
FEWEST_SIZES = 4
BLOCK = 64  # resamples side by side
DECAYED = 0.9  # of its highest learning rate: a run below it has begun to decay


@dataclass(frozen=True, eq=False)
class Curve:
    """One run while it trained, all of shape (k,), tokens ascending."""

    run: str
    size: float  # parameters
    tokens: Array
    flops: Array
    loss: Array
    rate: Array | None = None  # learning rates, where they are known


@dataclass(frozen=True, eq=False)
class Envelope:
    """The best size at each compute; shapes (cells,) of those stretches that count."""

    flops: Array
    size: Array
    tokens: Array
    loss: Array
    runs: int  # that touch the envelope there
    a: Interval  # N* ~ C^a
    b: Interval  # D* ~ C^b
    midway: float  # share of these cells in which a run was best before its end
    caution: Refusal | None  # where losses before the end of a decaying schedule were used
    without: int = 0  # resamples whose envelope has no two sizes


def curves(frame: pd.DataFrame) -> list[Curve]:
    """From a long table of one family with columns run, size, tokens, flops, loss, and rate where
    learning rates are known. Runs of fewer than two rows are no curves."""
    found = []
    for name, rows in frame.sort_values("tokens").groupby("run", sort=True):
        rows = rows.drop_duplicates("tokens", keep="last")
        if len(rows) < 2:
            continue
        tokens, flops, loss = (rows[c].to_numpy(float) for c in ("tokens", "flops", "loss"))
        rate = rows["rate"].to_numpy(float) if "rate" in rows else None
        found.append(Curve(str(name), float(rows["size"].iloc[-1]), tokens, flops, loss, rate))
    return found


def envelope(
    runs: Sequence[Curve], *, resamples: int = 1000, seed: int = 0, smooth: float = SMOOTH
) -> Envelope | Refusal:
    """The exponents of the compute-optimal size and tokens. `smooth`: the kernel's width in ln C
    (0: the curves as they are). Raises ValueError; refused below 4 sizes, or where the envelope is
    made of the smallest and largest sizes alone."""
    if resamples < 1 or smooth < 0:
        raise ValueError(f"resamples {resamples} and smooth {smooth} must be at least 1 and 0")
    refusal = _refuse(runs)
    if refusal:
        return refusal
    grid = _grid(runs)
    loss, tokens = _on(runs, grid, smooth)
    sizes = np.log([run.size for run in runs])
    winner = loss.argmin(axis=0)
    inner = _inside(sizes[winner][None], loss, sizes, np.ones((1, len(runs)), bool))[0]
    if len(np.unique(sizes[winner[inner]])) < 2:
        why = "the envelope is made of the smallest and the largest size alone"
        return Refusal("optimum at the edge", why, "add sizes between and beyond", _between(runs))
    cells = np.flatnonzero(inner)
    best = winner[cells]
    slopes = _slopes(grid, sizes[winner][None], tokens[winner, np.arange(len(grid))][None], inner)
    drawn = _resampled(loss, tokens, sizes, grid, resamples, seed)
    ends = np.array([np.log(run.flops[-1]) for run in runs])
    early = grid[cells] < ends[best] - (grid[1] - grid[0])
    return Envelope(
        flops=np.exp(grid[cells]),
        size=np.exp(sizes[best]),
        tokens=np.exp(tokens[best, cells]),
        loss=np.exp(loss[best, cells]),
        runs=len(np.unique(best)),
        a=Interval.of(float(slopes[0, 0]), drawn[:, 0]),
        b=Interval.of(float(slopes[0, 1]), drawn[:, 1]),
        midway=float(early.mean()),
        caution=_caution(
            runs, best, np.exp([sizes[best], tokens[best, cells], grid[cells]]), early
        ),
        without=resamples - len(drawn),
    )


def _refuse(runs: Sequence[Curve]) -> Refusal | None:
    if not runs:
        why = "no run has a loss curve"
        return Refusal("too few points", why, "log losses while the runs train")
    count = len({run.size for run in runs})
    if count >= FEWEST_SIZES:
        return None
    why = f"curves of {count} size{'s' * (count > 1)} have no envelope to read a trend from"
    x, y, c = _ends(runs)
    missing = FEWEST_SIZES - count
    below = cures.beyond(x, y, c, below=missing // 2, above=missing - missing // 2)
    reason: Reason = "one size only" if count == 1 else "too few points"
    return Refusal(reason, why, f"train at least {FEWEST_SIZES} sizes", below)


def _ends(runs: Sequence[Curve]) -> tuple[Array, Array, Array]:
    last = np.log([[run.size, run.tokens[-1], run.flops[-1]] for run in runs])
    return last[:, 0], last[:, 1], last[:, 2]


def _between(runs: Sequence[Curve]) -> tuple[Wanted, ...]:
    """Twice the compute of the largest size, and sizes halfway between those there are."""
    x, y, c = _ends(runs)
    sizes = np.unique(x)
    log_factor = float((c - x - y).mean())
    places = (sizes[1:] + sizes[:-1]) / 2
    return tuple(cures.run(float(x), float(c.max() - log_factor - x), log_factor) for x in places)


def _grid(runs: Sequence[Curve]) -> Array:
    """ln C at which the envelope is asked: from where a second run begins to where all but one
    have ended."""
    starts = sorted(float(np.log(run.flops[0])) for run in runs)
    ends = sorted(float(np.log(run.flops[-1])) for run in runs)
    return np.linspace(starts[1], max(ends[-2], starts[1] + 1e-6), CELLS)


def _on(runs: Sequence[Curve], grid: Array, smooth: float) -> tuple[Array, Array]:
    """ln L and ln D (runs, cells) of each run at each compute; ln L inf where it has none."""
    loss, tokens = np.full((len(runs), len(grid)), np.inf), np.zeros((len(runs), len(grid)))
    for row, run in enumerate(runs):
        x, y = np.log(run.flops), np.log(run.loss)
        # The last cell of a run is never lost to rounding.
        inside = (grid >= x[0] - 1e-9) & (grid <= x[-1] + 1e-9)
        at = grid[inside]
        loss[row, inside] = _smoothed(x, y, at, smooth) if smooth else np.interp(at, x, y)
        tokens[row] = np.interp(grid, x, np.log(run.tokens))
    return loss, tokens


def _smoothed(x: Array, y: Array, at: Array, width: float) -> Array:
    """Local straight lines with a Gaussian kernel: means would lift the ends of a falling curve.

    Where points lie farther apart than the kernel is wide, straight lines between them.
    """
    near = np.exp(-0.5 * ((at[:, None] - x) / width) ** 2)
    total = near.sum(axis=1)
    sparse = total < 1.5
    total = np.maximum(total, 1e-300)
    mean_x, mean_y = near @ x / total, near @ y / total
    spread = near @ x**2 / total - mean_x**2
    slope = (near @ (x * y) / total - mean_x * mean_y) / np.maximum(spread, 1e-12)
    fitted = mean_y + np.where(spread > 1e-10, slope, 0.0) * (at - mean_x)
    line: Array = np.where(sparse, np.interp(at, x, y), fitted)
    return line


def _inside(best: Array, loss: Array, sizes: Array, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells (R, cells) whose best size (R, cells, as ln N) lies between others that got so far."""
    reached = np.isfinite(loss)
    lowest, highest = (
        np.array([extreme(np.where(reached, sizes[:, None], -sign * np.inf)[row], axis=0)
                  for row in drawn])
        for extreme, sign in ((np.min, -1.0), (np.max, 1.0))
    )  # fmt: skip
    inside: NDArray[np.bool_] = (best > lowest) & (best < highest)
    return inside


def _slopes(grid: Array, size: Array, tokens: Array, keep: NDArray[np.bool_]) -> Array:
    """Least-squares slopes (R, 2) of ln N* and ln D* (R, cells) against ln C, over `keep`."""
    weight = np.broadcast_to(keep, size.shape).astype(float)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1.0)
    x = grid - (weight * grid).sum(axis=1, keepdims=True) / total
    square = np.maximum((weight * x**2).sum(axis=1), 1e-300)
    slopes: Array = np.stack([(weight * x * y).sum(axis=1) / square for y in (size, tokens)], 1)
    return slopes


def _resampled(
    loss: Array, tokens: Array, sizes: Array, grid: Array, resamples: int, seed: int
) -> Array:
    """The slopes (R', 2) of the envelopes of runs drawn with replacement."""
    random, n = np.random.default_rng(seed), len(loss)
    slopes = []
    for first in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - first)
        drawn = random.multinomial(n, np.full(n, 1 / n), size=rows) > 0
        winner = np.where(drawn[:, :, None], loss, np.inf).argmin(axis=1)
        best = sizes[winner]
        keep = _inside(best, loss, sizes, drawn)
        found = _slopes(grid, best, tokens[winner, np.arange(len(grid))], keep)
        several = [len(np.unique(b[k])) > 1 for b, k in zip(best, keep, strict=True)]
        slopes.append(found[np.array(several, dtype=bool)])
    kept = np.concatenate(slopes)
    return kept if len(kept) else np.zeros((0, 2))


def _caution(
    runs: Sequence[Curve], best: NDArray[np.intp], at: Array, early: NDArray[np.bool_]
) -> Refusal | None:
    """That losses before the end of a schedule were used, unless the rates say it was constant.
    `at` (3, cells): size, tokens and FLOPs where run `best` touches the envelope."""
    touching = np.unique(best)
    rates = [runs[i].rate for i in touching]
    flat = [rate is not None and bool(rate[-1] >= DECAYED * rate.max()) for rate in rates]
    if not early.any() or all(flat):
        return None
    known = all(rate is not None for rate in rates)
    because = "their learning rate decays" if known else "their learning rates are not known"
    why = (
        f"{100 * early.mean():.0f} % of the envelope are losses in the middle of runs, and "
        f"{because}: shorter runs of their own would have reached less"
    )
    cure = "train with a constant learning rate, or end runs where the envelope touches them"
    middles = (at[:, best == i] for i in touching)
    named = tuple(Wanted(*map(float, cells[:, cells.shape[1] // 2])) for cells in middles)
    return Refusal("mid-schedule losses", why, cure, named)
