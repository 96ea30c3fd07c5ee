"""How much does a law pay for missing a run? The objectives of a fit, all of one family.

Every objective is a Huber loss of the residual r = ln L(law) - ln L(run), with the distance `delta`
beyond which a run counts by its distance instead of its square, times `over` where the law lies
above the run. Least squares has no such distance, least absolute deviations a tiny one.

    huber       Hoffmann et al. 2022, appendix D.3 (delta 1e-3)
    l2          half the sum of squares
    l1          the sum of absolute residuals
    asymmetric  huber in which a law above a run costs `over` times as much: a lower envelope
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from isoflop.scaling.interval import Array

Name = Literal["huber", "l1", "l2", "asymmetric"]
NAMES: tuple[str, ...] = get_args(Name)
DELTA = 1e-3
OVER = 10.0
POINT = 2e-7  # the distance that stands for none in least absolute deviations


@dataclass(frozen=True)
class Objective:
    """A Huber loss of residuals in ln L; see the module."""

    name: Name = "huber"
    delta: float = DELTA
    over: float = 1.0

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta is {self.delta}; it must be above 0")
        if not (self.over > 0 and math.isfinite(self.over)):
            raise ValueError(f"over is {self.over}; it must be above 0")

    @property
    def scale(self) -> float:
        return 1 / self.delta if self.name == "l1" else 1.0

    def value(self, residual: Array) -> Array:
        """What each run costs; `residual` of any shape."""
        size: Array = np.abs(residual)
        if self.delta <= POINT:
            exact: Array = self._side(residual) * self.delta * size
            return exact
        inner: Array = np.minimum(size, self.delta)
        cost: Array = self._side(residual) * inner * (size - 0.5 * inner)
        return cost

    def slope(self, residual: Array) -> Array:
        pull: Array = self._side(residual) * np.clip(residual, -self.delta, self.delta)
        return pull

    def bend(self, residual: Array) -> Array:
        """The second derivative: none in the linear zone."""
        inside = (np.abs(residual) <= self.delta).astype(np.float64)
        curve: Array = self._side(residual) * inside
        return curve

    def robust_bend(self, residual: Array) -> Array:
        """The curvature of reweighted least squares, which is above 0 everywhere."""
        if math.isinf(self.delta):
            return self.bend(residual)
        size: Array = np.abs(residual)
        curve: Array = self._side(residual) * self.delta / np.maximum(size, self.delta)
        return curve

    def path(self) -> tuple[Objective, ...]:
        """Smoother objectives that lead to this one: a tiny delta is not reached in one go."""
        if self.name != "l1":
            return (self,)
        deltas = [d for d in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6) if d > self.delta]
        return (*(Objective("l1", d, self.over) for d in deltas), self)

    def _side(self, residual: Array) -> Array | float:
        if self.over == 1.0:
            return self.scale
        side: Array = self.scale * np.where(residual > 0, self.over, 1.0)
        return side


def named(name: str, *, delta: float = DELTA, over: float | None = None) -> Objective:
    """The objective of that name; `delta` and `over` where it has them. Raises ValueError."""
    if name not in NAMES:
        raise ValueError(f"objective is {name!r}; it must be one of {', '.join(NAMES)}")
    if over is not None and name != "asymmetric":
        raise ValueError(f"over is {over}; only the asymmetric objective has it")
    if name == "asymmetric":
        return Objective("asymmetric", delta, OVER if over is None else over)
    return Objective(cast(Name, name), {"l1": POINT, "l2": math.inf}.get(name, delta))
