"""A rubric to begin with: what makes a few lines look like Python?

`isoflop reward CHECKPOINT` uses it unless it is given another file like this one: functions marked
with `@reward(weight)` or `@metric`, in either convention of `verifiers` (see `rewards`).
"""

from __future__ import annotations

import numpy as np

from isoflop.rollouts.measured import Missing, Sample
from isoflop.rollouts.rubric import metric, reward
from isoflop.rollouts.syntax import brackets as matched

GRAM = 4  # characters
NONE = np.empty(0, np.int32)


@reward(1.0)
def brackets(prompt: str, completion: str) -> float:
    """The share of brackets that match; a text without any matches as well as half of them do, so
    that leaving them out is no way to win."""
    found = matched(Sample(NONE, completion, prompt))
    return 0.5 if isinstance(found, Missing) else found


@reward(0.5)
def varied(completion: str) -> float:
    """The share of its 4-character spans that differ: or it would learn to repeat what pays."""
    grams = [completion[i : i + GRAM] for i in range(len(completion) - GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@metric
def characters(completion: str) -> float:
    return float(len(completion))
