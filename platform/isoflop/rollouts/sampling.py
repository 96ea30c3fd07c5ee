"""Which token is written next? The settings, the draw, and what is kept of each rollout.

Letters: R rows, V vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.interface import Model


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen, and when a rollout ends.

    The four settings after the stop ids narrow what is drawn, in that order, at the temperature;
    log probabilities and entropies stay those of the model's own distribution.
    """

    temperature: float  # 0 is greedy
    new_tokens: int
    stop_ids: tuple[int, ...]
    repetition: float = 1.0  # logits of tokens seen before are divided by it (Keskar et al. 2019)
    top_k: int = 0  # only the k most likely tokens; 0: all
    top_p: float = 1.0  # only the fewest likely tokens that hold this share (Holtzman et al. 2020)
    min_p: float = 0.0  # only tokens at least this share as likely as the likeliest (Nguyen 2024)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0")
        if self.new_tokens < 1:
            raise ValueError(f"new_tokens is {self.new_tokens}; it must be at least 1")
        if any(token < 0 for token in self.stop_ids):
            raise ValueError(f"stop_ids is {self.stop_ids}; token ids are at least 0")
        if not self.repetition > 0:
            raise ValueError(f"repetition is {self.repetition}; it must be above 0")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0 (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be from 0 to 1")

    @property
    def narrows(self) -> bool:
        """Is any token ruled out?"""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class Ending:
    """Strings that end a rollout, wherever tokens part them. `decode` makes text of ids."""

    strings: tuple[str, ...]
    decode: Callable[[list[int]], str]

    def __post_init__(self) -> None:
        if not all(self.strings):
            raise ValueError(f"stop strings are {self.strings}; none may be empty")

    def count(self, ids: Sequence[int]) -> int | None:
        """The fewest tokens that hold one of the strings; None where none is there yet."""
        if not self._held(ids, len(ids)):
            return None
        return bisect.bisect_left(range(len(ids) + 1), True, key=lambda n: self._held(ids, n))

    def _held(self, ids: Sequence[int], count: int) -> bool:
        text = self.decode([int(token) for token in ids[:count]])
        return any(string in text for string in self.strings)


@dataclass(frozen=True, eq=False)
class Rollout:
    """One continuation of one prompt. The token that stopped it is its last one."""

    prompt_index: int
    sample: int  # which of the prompt's seeds
    prompt_ids: NDArray[np.int32]  # as it was fed: its last tokens, where it was too long
    completion_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]  # of each token, nats, under the model at temperature 1
    entropies: NDArray[np.float32]  # of the distribution it was drawn from, nats, temperature 1
    stop: Literal["stop", "length"]


def draw(
    logits: Tensor, uniform: Tensor, sampling: Sampling, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A token (R,) from logits (R, V) by inverting the distribution function at `uniform` (R,).

    Also its log probability and the entropy, both in nats and of the model's own distribution.
    `seen` (R, V) marks the tokens that a repetition penalty is for.
    """
    logits = logits.float()
    p = logits.softmax(dim=-1)
    wanted = logits if seen is None else penalised(logits, seen, sampling.repetition)
    if sampling.temperature == 0:
        token = wanted.argmax(dim=-1)
    else:
        weights = p
        if sampling.temperature != 1 or wanted is not logits:
            weights = (wanted / sampling.temperature).softmax(dim=-1)
        if sampling.narrows:
            weights = narrowed(weights, sampling)
        token = invert(weights, uniform)
    lowest = torch.finfo(logits.dtype).min  # 0 log 0 is 0, where a model masks a token
    # The log sum exp of the logits, (R,), without a pass more, from the likeliest token: its share
    # is at least 1 / V, and so its logarithm exact.
    own = logits.gather(1, token.unsqueeze(1)).squeeze(1)
    if sampling.temperature == 0 and wanted is logits:
        total = own - p.gather(1, token.unsqueeze(1)).squeeze(1).log()
    else:
        total = logits.amax(dim=-1) - p.amax(dim=-1).log()
    return token, own - total, total - torch.linalg.vecdot(p, logits.clamp(min=lowest))


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token (R,) at which the sum of weights (R, V) passes the share `uniform` (R,)."""
    below = weights.cumsum(dim=-1)
    target = uniform.unsqueeze(1) * below[:, -1:]  # rounding may leave the sum beside 1
    token = torch.searchsorted(below, target, right=True).squeeze(1)
    return token.clamp(max=weights.shape[-1] - 1)  # a diverged model's NaN lies past the end


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Tokens seen before become less likely (Keskar et al. 2019, section 4.1): their logits are
    divided by the penalty, or multiplied where they are negative.
    """
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def narrowed(weights: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities (R, V) with 0 for every token that is ruled out; they sum to less than 1.

    The likeliest token always stays.
    """
    least = weights.amax(dim=-1, keepdim=True) * sampling.min_p
    if 0 < sampling.top_k < weights.shape[-1]:
        kth = weights.topk(sampling.top_k, dim=-1).values[:, -1:]
        least = torch.maximum(least, kth)
    kept = weights.where(weights >= least, 0.0)
    if sampling.top_p < 1:
        ordered, places = kept.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # what likelier tokens hold
        share = sampling.top_p * kept.sum(dim=-1, keepdim=True)
        inside = torch.zeros_like(kept, dtype=torch.bool).scatter(1, places, before < share)
        kept = kept.where(inside, 0.0)
    return kept


def ended(
    ids: NDArray[np.int32], stop_ids: tuple[int, ...]
) -> tuple[int, Literal["stop", "length"]]:
    """How many of a row's tokens (N,) count, and why it ends there."""
    hits = np.flatnonzero(np.isin(ids, stop_ids))
    return (int(hits[0]) + 1, "stop") if len(hits) else (len(ids), "length")


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """No gradients, no dropout, attention by sdpa (others gain nothing in steps of one token, and
    know no float32); afterwards every module is back in the mode it had.

    Not `inference_mode`: a table that a model fills on first use could then not be trained with.
    Steps of one token, by which time it is filled, are taken in it (`rollouts.steps`).
    """
    modes = [(module, module.training) for module in model.modules()]
    backend = model.backend
    model.eval()
    model.backend = "sdpa"
    try:
        with torch.no_grad():
            yield
    finally:
        model.backend = backend
        for module, training in modes:
            module.training = training
