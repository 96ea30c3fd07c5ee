"""How sure was the model of what it wrote, and was it right to be?

At temperature 1, and with nothing ruled out, the negative log probability of a drawn token is the
entropy on average: a gap tells of other settings, or of an engine that draws from the wrong
distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.measured import Missing, Sample, average, finite

CERTAIN = 0.99  # probability from which on a token is as good as copied


def entropy(sample: Sample) -> float | Missing:
    """Mean entropy in nats of the distributions the tokens were drawn from, at temperature 1."""
    return average(sample.entropies, "entropies")


def surprise(sample: Sample) -> float | Missing:
    """Mean negative log probability in nats; about the mean entropy if drawn at temperature 1."""
    value = average(sample.logprobs, "log probabilities")
    return value if isinstance(value, Missing) else -value


def calibration(sample: Sample) -> float | Missing:
    """Surprise less entropy, in nats."""
    own, expected = surprise(sample), entropy(sample)
    if isinstance(own, Missing):
        return own
    return expected if isinstance(expected, Missing) else own - expected


def entropy_slope(sample: Sample) -> float | Missing:
    """How the entropy moves along the text: nats per 100 tokens, by least squares."""
    known = finite(sample.entropies, "entropies")
    if isinstance(known, Missing):
        return known
    if len(known) < 8:
        return Missing("fewer than 8 tokens")
    place = np.arange(len(known)) - (len(known) - 1) / 2
    return float(100 * (place @ (known - known.mean())) / (place @ place))


def certain_run(sample: Sample) -> float | Missing:
    """The longest run of tokens that the model gave 99 % or more: a sign of a loop or a copy."""
    known = finite(sample.logprobs, "log probabilities")
    if isinstance(known, Missing):
        return known
    edges = np.diff(np.concatenate([[0], known >= np.log(CERTAIN), [0]]).astype(np.int8))
    runs = np.flatnonzero(edges < 0) - np.flatnonzero(edges > 0)
    return float(runs.max(initial=0))


def judged(sample: Sample) -> float | Missing:
    """Mean negative log probability in nats under a frozen model of the same study."""
    if isinstance(sample.judged, Missing):
        return sample.judged
    value = average(sample.judged, "log probabilities of the reference model")
    return value if isinstance(value, Missing) else -value


def course(values: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """The mean at each position (T,) of the rollouts that reach it; NaN where none is finite."""
    longest = max((len(item) for item in values), default=0)
    table = np.full((len(values), longest), np.nan)
    for row, item in zip(table, values, strict=True):
        row[: len(item)] = item
    known = np.isfinite(table)
    count = known.sum(axis=0)
    total = np.where(known, table, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
