"""What would this run's loss be under another learning-rate schedule, or at the end of this one?

    L(s) = L0 + A S1(s)^-alpha - C S2(s)

S1 is the sum of the learning rates up to step s, the ground covered; S2 the annealed ground, what
a falling rate has gained: the sum over steps of a momentum that collects the rate's decreases and
forgets them with `memory` per step (Tissue et al. 2024, "Scaling law with learning rate
annealing", equations 1-4). One curve fixes the law of its size; then any schedule is predicted.

Given alpha and the memory the law is linear, so a grid over those two with a weighted least-squares
fit in each cell is exact, deterministic and quick.

Letters: s steps, n recorded points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from isoflop.scaling.interval import Array, Refusal

MEMORIES = (0.9, 0.98, 0.99, 0.995, 0.998, 0.999)
ALPHAS = np.linspace(0.05, 1.5, 59)
FEWEST_POINTS = 12


@dataclass(frozen=True, eq=False)
class AnnealingLaw:
    """The loss of one size as a function of its learning rates."""

    floor: float  # L0, nats per token
    scale: float  # A
    alpha: float
    gain: float  # C: nats per unit of annealed ground
    memory: float  # per step
    error: float  # root mean square of (predicted / measured - 1) at the fitted points
    start: int  # the first step after the warm-up

    def predict(self, rates: ArrayLike) -> Array:
        """The loss after each step (s,) of a schedule given as its learning rates (s,)."""
        ground, annealed = grounds(rates, self.memory)
        loss: Array = self.floor + self.scale * ground**-self.alpha - self.gain * annealed
        return loss


def grounds(rates: ArrayLike, memory: float) -> tuple[Array, Array]:
    """S1 and S2 (s,) after each step of a schedule. A rising rate takes annealing back."""
    eta = np.asarray(rates, dtype=float)
    if eta.ndim != 1 or not len(eta) or not (eta >= 0).all() or eta.max() <= 0:
        raise ValueError("rates must be learning rates, one per step, at least 0 and not all 0")
    from scipy.signal import lfilter

    falls = np.concatenate([[0.0], eta[:-1] - eta[1:]])
    momentum = lfilter([1.0], [1.0, -memory], falls)
    return np.cumsum(eta), np.cumsum(momentum)


def fit_curve(
    steps: ArrayLike, loss: ArrayLike, rates: ArrayLike, *, until: int | None = None
) -> AnnealingLaw | Refusal:
    """The law of one recorded curve: `loss` (n,) after `steps` (n,), `rates` (s,) for every step.

    `until`: only points up to this step are fitted, so that the rest can be predicted. Refused
    with fewer than 12 points after the warm-up.
    """
    at, losses, eta = np.asarray(steps, int), np.asarray(loss, float), np.asarray(rates, float)
    if at.shape != losses.shape or at.min(initial=1) < 1 or at.max(initial=0) > len(eta):
        raise ValueError(
            f"{len(at)} steps with {len(losses)} losses do not fit a schedule of {len(eta)} steps"
        )
    start = int(np.argmax(eta)) + 1
    last = int(at.max(initial=0)) if until is None else until
    kept = (at >= start) & (at <= last) & np.isfinite(losses)
    if kept.sum() < FEWEST_POINTS:
        return Refusal(
            "too few points",
            f"{int(kept.sum())} losses were recorded after the warm-up, and a curve needs "
            f"{FEWEST_POINTS}",
            "record the training loss more often",
        )
    at, losses = at[kept], losses[kept]
    cells = (_cell(at, losses, eta, memory, start) for memory in MEMORIES)
    return min(cells, key=lambda law: law.error)


def _cell(at: Array, loss: Array, eta: Array, memory: float, start: int) -> AnnealingLaw:
    """The best law with this memory: non-negative least squares of relative errors per alpha."""
    ground, annealed = grounds(eta, memory)
    s1, s2 = ground[at - 1], annealed[at - 1]
    unit = s1[-1]
    best: AnnealingLaw | None = None
    for alpha in ALPHAS:
        columns = np.stack([np.ones_like(s1), (s1 / unit) ** -alpha, -s2], axis=1)
        scale = np.abs(columns).max(axis=0)
        scale[scale == 0] = 1.0  # a constant rate anneals nothing
        parts, residual = nnls(columns / scale / loss[:, None], np.ones_like(loss))
        error = float(residual / np.sqrt(len(loss)))
        if best is None or error < best.error:
            floor, level, gain = parts / scale
            amount = float(level * unit**alpha)
            best = AnnealingLaw(
                float(floor), amount, float(alpha), float(gain), memory, error, start
            )
    assert best is not None
    return best
