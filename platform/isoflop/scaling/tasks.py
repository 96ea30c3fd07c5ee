"""Which accuracy will a larger model have? Two steps: compute to loss, and loss to accuracy.

Losses follow laws over all scales, accuracies follow the loss (Gadre et al. 2024, section 4; Bhagia
et al. 2024). Both steps are fitted to the same resamples of runs, so that a run that is drawn twice
counts twice in both, and the interval of the chain holds the errors of the law, of the curve, and
of one more run about each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.scaling.interval import LEVEL, Array, Interval, Refusal
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap, fit
from isoflop.scaling.response import Response, Shape, respond


@dataclass(frozen=True, eq=False)
class TwoStep:
    """A law of the loss and a curve of the task, over the same runs."""

    law: Resampled
    curve: Response
    rows: int  # resamples that both steps have

    def predict(
        self, size: float, tokens: float, flops: float | None = None, *, seed: int = 0
    ) -> Interval:
        """The task's value of one more run there."""
        low, high = self.bands([size], [tokens], None if flops is None else [flops], seed=seed)
        value = float(self.value([size], [tokens])[0])
        return Interval(value, min(float(low[0]), value), max(float(high[0]), value))

    def value(self, size: ArrayLike, tokens: ArrayLike, flops: ArrayLike | None = None) -> Array:
        """The point estimate at many points."""
        return self.curve.predict(self.law.fit.predict(size, tokens, flops))

    def bands(
        self,
        size: ArrayLike,
        tokens: ArrayLike,
        flops: ArrayLike | None = None,
        *,
        seed: int = 0,
    ) -> tuple[Array, Array]:
        """Lower and upper 95 % bounds of one more run at each of many points."""
        points = self.law.fit.points_at(size, tokens, flops)
        with np.errstate(over="ignore"):
            loss = np.exp(self.law.log_draws(points, True, seed)[: self.rows])
        value = self.curve.each(self.curve.draws[: self.rows], loss)
        random = np.random.default_rng([seed, 1])
        value = value + random.choice(self.curve.residuals, size=value.shape)
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(value, [tail, 1 - tail], axis=0)
        return low, high


def two_step(
    size: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    value: ArrayLike,
    shape: Shape,
    *,
    flops: ArrayLike | None = None,
    form: str = "chinchilla",
    resamples: int = 1000,
    seed: int = 0,
) -> TwoStep | Refusal:
    """Both steps through runs whose task had `value` (an accuracy or an error, (n,))."""
    law = fit(size, tokens, loss, flops=flops, form=form)
    if isinstance(law, Refusal):
        return law
    curve = respond(loss, value, shape, resamples=resamples, seed=seed)
    if isinstance(curve, Refusal):
        return curve
    drawn = bootstrap(law, resamples=resamples, seed=seed)
    return TwoStep(drawn, curve, min(len(drawn.theta), len(curve.draws)))


@dataclass(frozen=True)
class TaskScore:
    """How far predictions of held-out runs lay from what was measured."""

    points: int
    error: float  # mean of |predicted - measured|
    covered: float  # share within their 95 % intervals
    naive: float  # the error of the mean of the runs that were fitted
    reach: float  # compute of the held-out runs (median) over the most that was fitted


def task_score(
    size: Array,
    tokens: Array,
    flops: Array,
    loss: Array,
    value: Array,
    shape: Shape,
    *,
    share: float = 0.2,
    form: str = "chinchilla",
    resamples: int = 200,
    seed: int = 0,
) -> TaskScore | Refusal:
    """The `share` of runs with the most compute, predicted from the others. Raises ValueError."""
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    test = flops > np.quantile(flops, 1 - share)
    if not test.any():
        why = "no run has more compute than the others"
        return Refusal("too few points", why, "add runs of more compute")
    kept = ~test
    steps = two_step(
        size[kept], tokens[kept], loss[kept], value[kept], shape,
        flops=flops[kept], form=form, resamples=resamples, seed=seed,
    )  # fmt: skip
    if isinstance(steps, Refusal):
        return steps
    at = size[test], tokens[test], flops[test]
    low, high = steps.bands(*at, seed=seed)
    measured = value[test]
    return TaskScore(
        points=int(test.sum()),
        error=float(np.abs(steps.value(*at) - measured).mean()),
        covered=float(((low <= measured) & (measured <= high)).mean()),
        naive=float(np.abs(value[kept].mean() - measured).mean()),
        reach=float(np.median(flops[test]) / flops[kept].max()),
    )


def loss_law(steps: TwoStep) -> ParametricFit:
    """The law of the first step."""
    return steps.law.fit
