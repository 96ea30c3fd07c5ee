"""How do the rollouts of one prompt differ, and does one of them succeed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.measured import Missing, Sample
from isoflop.rollouts.repetition import grams
from isoflop.rollouts.statistics import Aggregate, mean

ORDER = 2


def unshared(samples: Sequence[Sample]) -> list[float | Missing]:
    """Of each rollout of a prompt: the share of its different 2-grams that no other one has.

    1 where every seed goes its own way, 0 where all write the same. Falls with the number of seeds,
    so only sets of equally many are compared.
    """
    if len(samples) < 2:
        return [Missing("the only rollout of its prompt")] * len(samples)
    found = [np.unique(grams(sample.ids, ORDER)) for sample in samples]
    kinds, count = np.unique(np.concatenate(found), return_counts=True)
    return [
        float((count[np.searchsorted(kinds, own)] == 1).mean())
        if len(own)
        else Missing(f"fewer than {ORDER} tokens")
        for own in found
    ]


def chance_of_success(n: int, c: int, k: int) -> float:
    """pass@k: the probability that one of k rollouts succeeds, where c of n did.

    Unbiased (Chen et al. 2021, equation 1): 1 - C(n - c, k) / C(n, k). Raises ValueError unless
    0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n is {n}, c is {c}, k is {k}; they must be 0 <= c <= n and 1 <= k <= n")
    if n - c < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


def pass_at(
    k: int,
    passed: Sequence[bool | None] | NDArray[np.bool_],
    prompts: Sequence[int] | NDArray[np.integer],
) -> Aggregate:
    """The mean over prompts of pass@k with its interval; `passed`: None where it is not known.

    Prompts with fewer than k known rollouts are left out, and counted as missing.
    """
    groups: dict[int, list[bool]] = {}
    for outcome, prompt in zip(passed, np.asarray(prompts).tolist(), strict=True):
        own = groups.setdefault(prompt, [])
        if outcome is not None:
            own.append(bool(outcome))
    known = [
        chance_of_success(len(own), sum(own), k) if len(own) >= k else None
        for own in groups.values()
    ]
    found = mean(known, range(len(known)), share=True)
    rollouts = sum(len(own) for own in groups.values())
    return replace(found, rollouts=rollouts, estimator=f"pass@{k}, {found.estimator}")
