"""Does each setting rule out the tokens that it says, and no others?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoflop.rollouts.generate import generate
from isoflop.rollouts.sampling import Sampling, draw, narrowed, penalised
from models import GPT2Config

PLAIN: dict[str, Any] = {"temperature": 1.0, "new_tokens": 8, "stop_ids": ()}


def weights(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(30) * 0.3, size=4))


@given(st.integers(0, 999), st.integers(1, 40))
def test_top_k_keeps_the_k_likeliest(seed: int, k: int) -> None:
    p = weights(seed)
    kept = narrowed(p, Sampling(**PLAIN, top_k=k)) > 0
    for row, inside in zip(p, kept, strict=True):
        assert set(inside.nonzero()[:, 0].tolist()) == set(row.topk(min(k, 30)).indices.tolist())


@given(st.integers(0, 999), st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_hold_the_share(seed: int, share: float) -> None:
    p = weights(seed)
    for row, left in zip(p, narrowed(p, Sampling(**PLAIN, top_p=share)), strict=True):
        kept = sorted(left[left > 0].tolist())
        assert sum(kept) >= share - 1e-9
        assert sum(kept[1:]) < share + 1e-9, "without the least of them it is too little"
        assert max(row.tolist()) in kept


@given(st.integers(0, 999), st.floats(0, 1))
def test_min_p_keeps_what_is_likely_beside_the_likeliest(seed: int, share: float) -> None:
    p = weights(seed)
    kept = narrowed(p, Sampling(**PLAIN, min_p=share)) > 0
    assert torch.equal(kept, (p >= share * p.amax(dim=1, keepdim=True)) & (p > 0))


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(0.3, 3), st.integers(0, 9), st.floats(0.1, 1), st.floats(0, 1))
def test_all_together_still_leave_the_likeliest(
    seed: int, temperature: float, k: int, share: float, least: float
) -> None:
    sampling = Sampling(temperature, 1, (), top_k=k, top_p=share, min_p=least)
    logits = weights(seed).clamp(min=1e-12).log()
    token, logprob, entropy = draw(logits, torch.zeros(4), sampling)
    log_p = logits.float().log_softmax(-1)
    torch.testing.assert_close(logprob, log_p.gather(1, token[:, None])[:, 0])
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(1))
    assert narrowed(log_p.exp(), sampling).amax(1).gt(0).all()


def test_a_penalty_lowers_what_was_seen() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalised(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_nothing_is_repeated_under_a_heavy_penalty() -> None:
    torch.manual_seed(0)
    model = GPT2Config(vocab=40, context=24, width=16, depth=1, heads=2).build()
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    prompts = [np.array([1, 2, 3]), np.array([7])]
    greedy: dict[str, Any] = {"temperature": 0.0, "new_tokens": 16, "stop_ids": ()}
    free = generate(model, prompts, [[0, 1], [0, 1]], Sampling(**greedy))
    held = generate(model, prompts, [[0, 1], [0, 1]], Sampling(**greedy, repetition=1e6))
    assert any(len(set(row.completion_ids.tolist())) < 16 for row in free)
    for row in held:
        whole = [*row.prompt_ids.tolist(), *row.completion_ids.tolist()]
        assert len(set(whole)) == len(whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.1}, r"top_p is 1\.1"),
        ({"min_p": -0.1}, r"min_p is -0\.1"),
        ({"repetition": 0.0}, r"repetition is 0\.0"),
    ],
)
def test_impossible_values_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(**PLAIN, **change)
