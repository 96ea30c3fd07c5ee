"""What is measured on a text that a model wrote, and what is a measurement?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.novelty import Copies

# Of what a metric is a number: the model's distribution at each token (then their mean over the
# rollout), one rollout, one among those of its prompt, or a whole set.
Level = Literal["token", "rollout", "group", "corpus"]


@dataclass(frozen=True)
class Missing:
    """Why a metric has no value here."""

    reason: str


@dataclass(frozen=True, eq=False)
class Sample:
    """One text to be measured: a rollout, or a window of held-out text (`logprobs` None)."""

    ids: NDArray[np.integer]  # of the completion
    text: str  # of the completion, without the token that stopped it
    prompt: str = ""
    logprobs: NDArray[np.floating] | None = None  # nats
    entropies: NDArray[np.floating] | None = None  # nats
    stopped: bool = False  # by the model's own end of text
    truth: NDArray[np.integer] | Missing = Missing("the prompt is no prefix of a known text")
    copies: Copies | Missing = Missing("no index of the text that the run has read")
    judged: NDArray[np.floating] | Missing = Missing("no reference model")  # its logprobs


@dataclass(frozen=True)
class Metric:
    """A number for each rollout, or one for a whole set of them."""

    name: str
    level: Level
    direction: Literal["up", "down", "band"]  # "band": neither end is good, see `reference`
    unit: str
    # Of a Sample; at level "group" of those of one prompt, a value for each; of a Corpus.
    function: Callable[[Any], Any]
    description: str
    least: int = 0  # rollouts below which its mean is a guess: more than 5 % standard error

    @property
    def share(self) -> bool:
        """Whether values lie in [0, 1]."""
        return self.unit.startswith("share")


def finite(values: NDArray[np.floating] | None, name: str) -> NDArray[np.float64] | Missing:
    """The values (n >= 1,), or why they are none."""
    if values is None or not len(values):
        return Missing(f"no {name}")
    if not np.isfinite(values).all():
        return Missing(f"{name} that are not finite")
    return values.astype(np.float64)


def average(values: NDArray[np.floating] | None, name: str) -> float | Missing:
    """Their mean, if there are any and all are finite."""
    known = finite(values, name)
    return known if isinstance(known, Missing) else float(known.mean())


def number(value: float | Missing) -> float | None:
    """The value, if there is one."""
    return None if isinstance(value, Missing) or not math.isfinite(value) else value
