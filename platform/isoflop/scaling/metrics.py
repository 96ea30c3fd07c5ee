"""How does a metric of what the models write change with compute or loss, and where does it end?

Values come nearer to a floor, such as the metric of human text, by a power of compute; rates follow
a logistic. One break of the power is allowed where it predicts budgets held out better than none
does, and not because it fits the runs at hand better, which it always does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from isoflop.scaling.holdout import budgets
from isoflop.scaling.interval import Array, Interval, Refusal, positive
from isoflop.scaling.response import Response, Shape, broken, logistic, power, respond

Kind = Literal["value", "rate"]
Against = Literal["flops", "loss"]
CLEARLY = 0.9  # a break must lower the held-out error at least to this share


@dataclass(frozen=True, eq=False)
class MetricLaw:
    """The curve of a metric, and how well each shape predicted budgets held out."""

    against: Against
    floor: float | None
    curve: Response
    held_out: Mapping[str, float]  # root mean square error by shape; empty where none can be

    def predict(self, at: float, *, noise: bool = False, seed: int = 0) -> Interval:
        """The metric at so many FLOPs, or at that loss; with `noise` that of one more run."""
        if not at > 0:
            raise ValueError(f"{self.against} is {at}; it must be above 0")
        x = float(np.log(at)) if self.against == "flops" else -at
        return self.curve.interval(x, noise=noise, seed=seed)

    def needed(self, value: float) -> float | None:
        """The FLOPs (or the loss) at which the curve reaches `value`, within what was measured and
        100 times (half the measured range) beyond; None where it does not."""
        low, high = self.curve.span
        reach = np.log(100) if self.against == "flops" else (high - low) / 2
        x = np.linspace(low, high + reach, 600)
        y = self.curve.predict(x) - value
        place = np.flatnonzero(np.sign(y[1:]) != np.sign(y[:-1]))
        if not len(place):
            return None
        i = int(place[0])
        found = float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))
        return float(np.exp(found)) if self.against == "flops" else -found


def metric_law(
    value: ArrayLike,
    flops: ArrayLike,
    *,
    loss: ArrayLike | None = None,
    floor: float | None = None,
    kind: Kind = "value",
    breaks: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> MetricLaw | Refusal:
    """The law of a metric over runs (n,): against compute, or against `loss` where it is given.

    `floor`: what it tends to (None: fitted, for rates 1); `kind` rate: a logistic between 0 and the
    floor; `breaks`: whether a power may have one, which some dozen runs can fit to their noise.
    Raises ValueError for a rate outside [0, 1].
    """
    y, c = np.asarray(value, float), positive("flops", flops)
    if kind not in ("value", "rate"):
        raise ValueError(f"kind is {kind!r}; it must be value or rate")
    if kind == "rate" and ((y < 0) | (y > 1)).any():
        raise ValueError(f"a rate lies in [0, 1]; these reach from {y.min():g} to {y.max():g}")
    x = np.log(c) if loss is None else -positive("loss", loss)
    values = [power(floor), broken(floor)] if breaks else [power(floor)]
    shapes = [logistic(floor)] if kind == "rate" else values
    errors = {shape.name: _apart(x, y, c, shape) for shape in shapes}
    known = {name: error for name, error in errors.items() if error is not None}
    chosen = _chosen(shapes, known)
    curve = respond(x, y, chosen, resamples=resamples, seed=seed)
    if isinstance(curve, Refusal):
        return curve
    return MetricLaw("flops" if loss is None else "loss", floor, curve, known)


def _chosen(shapes: list[Shape], errors: Mapping[str, float]) -> Shape:
    """The first shape, unless another one is clearly better at them."""
    best = shapes[0]
    for shape in shapes[1:]:
        if best.name in errors and shape.name in errors:
            best = shape if errors[shape.name] < CLEARLY * errors[best.name] else best
    return best


def _apart(x: Array, y: Array, flops: Array, shape: Shape) -> float | None:
    """The root mean square error of the runs of each budget, predicted from all other budgets;
    None where those are too few. The least and the most compute are predictions beyond the rest."""
    misses = []
    groups = budgets(flops)
    for group in range(int(groups.max()) + 1):
        test = groups == group
        curve = None if test.all() else respond(x[~test], y[~test], shape, resamples=1)
        if isinstance(curve, Response):
            misses.append(curve.predict(x[test]) - y[test])
    if not misses:
        return None
    return float(np.sqrt(np.square(np.concatenate(misses)).mean()))
