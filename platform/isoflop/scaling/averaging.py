"""What do several forms say together, each weighed by how well it predicted larger runs?

Stacking (Breiman 1996): weights of at least 0 that sum to 1 and make the mean of the forms' ln L
closest to the runs held out. Forms that cannot be told apart share the weight, and the interval
holds what they disagree about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.scaling.holdout import Outcome, Score, summary
from isoflop.scaling.interval import Array, Interval
from isoflop.scaling.parametric import Resampled

RIDGE = 1e-3  # of the mean square, towards equal weights: forms alike share theirs


@dataclass(frozen=True, eq=False)
class Average:
    """The forms with their weights, and how well the average predicted the runs held out.

    The weights were chosen on those runs: `score` flatters, the more so the fewer they are.
    """

    weights: Mapping[str, float]
    score: Score


def average(held: Mapping[str, Sequence[Outcome]]) -> Average | None:
    """From the outcomes of each form at the same origins; None where fewer than two forms have
    them all."""
    longest = max((len(outcomes) for outcomes in held.values()), default=0)
    whole = {form: outcomes for form, outcomes in held.items() if len(outcomes) == longest}
    if len(whole) < 2 or not longest:
        return None
    misses = np.array([
        np.concatenate([np.log(o.predicted / o.measured) for o in outcomes])
        for outcomes in whole.values()
    ])  # fmt: skip
    weights = _simplex(misses)
    mixed = [_mix(weights, origin) for origin in zip(*whole.values(), strict=True)]
    return Average(dict(zip(whole, weights.tolist(), strict=True)), summary(mixed))


def _simplex(misses: Array) -> Array:
    """Weights (F,) of misses (F, n) by non-negative least squares with a heavy row for the sum."""
    from scipy.optimize import nnls

    count, scale = len(misses), float(np.sqrt((misses**2).mean())) or 1.0
    heavy = 1e3 * scale * np.sqrt(misses.shape[1])
    ridge = np.sqrt(RIDGE * misses.shape[1]) * scale * np.eye(count)
    design = np.vstack([misses.T, ridge, np.full((1, count), heavy)])
    goal = np.concatenate([np.zeros(misses.shape[1]), ridge.sum(axis=1) / count, [heavy]])
    found = nnls(design, goal)[0]
    weights: Array = found / found.sum()
    return weights


def _mix(weights: Array, origin: Sequence[Outcome]) -> Outcome:
    logs = np.log([outcome.predicted for outcome in origin])
    return Outcome(np.exp(weights @ logs), origin[0].measured, origin[0].reach)


def predict(
    laws: Mapping[str, Resampled],
    weights: Mapping[str, float],
    size: float,
    tokens: float,
    *,
    widen: float = 1.0,
    seed: int = 0,
) -> Interval:
    """The loss of one more run at one point: the weighted mean of ln L, and the interval of the
    mixture of the forms' resamples with their noise, its arms `widen` times as long."""
    kept = {form: law for form, law in laws.items() if weights.get(form, 0.0) > 0}
    share = np.array([weights[form] for form in kept])
    share = share / share.sum()
    points = {form: law.predict(size, tokens) for form, law in kept.items()}
    value = float(share @ np.log([point.value for point in points.values()]))
    rows = max(len(law.theta) for law in kept.values())
    counts = np.round(share * rows).astype(int)
    draws = [
        law.log_draws(law.fit.points_at(size, tokens), True, seed)[:count, 0]
        for law, count in zip(kept.values(), counts, strict=True)
    ]
    return Interval.of(value, np.concatenate(draws)).widened(widen).exponential()
