"""Does `attend` equal attention written out by hand?"""

import math

import pytest
import torch
from torch import Tensor

from models.attention import attend


def by_hand(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """One query at a time, one head at a time."""
    result = torch.empty_like(q)
    past = k.shape[2] - q.shape[2]
    shared = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = past + t + 1 if causal else k.shape[2]
                keys, values = k[row, head // shared, :seen], v[row, head // shared, :seen]
                weights = (keys @ q[row, head, t] / math.sqrt(q.shape[3])).exp()
                result[row, head, t] = (weights / weights.sum()) @ values
    return result


def heads(count: int, tokens: int, seed: int) -> Tensor:
    return torch.randn(2, count, tokens, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (9, 0), (1, 6), (5, 4), (2, 1)])
def test_equals_attention_by_hand(new: int, past: int, shared: int, causal: bool) -> None:
    q = heads(4, new, 0)
    k, v = heads(4 // shared, past + new, 1), heads(4 // shared, past + new, 2)
    expected = by_hand(q, k, v, causal)
    torch.testing.assert_close(attend(q, k, v, causal), expected, rtol=1e-5, atol=1e-6)


def test_gradients_equal_those_by_hand() -> None:
    q, k, v = inputs = [heads(n, 7, seed).requires_grad_() for seed, n in enumerate((4, 2, 2))]
    weights = heads(4, 7, 3)
    ours = torch.autograd.grad((attend(q, k, v) * weights).sum(), inputs)
    theirs = torch.autograd.grad((by_hand(q, k, v, causal=True) * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_merging_the_heads_of_a_training_batch_is_a_view() -> None:
    q = torch.randn(2, 16, 4, 8).transpose(1, 2)
    mixed = attend(q, q, q)
    assert mixed.transpose(1, 2).is_contiguous()


def test_causal_queries_cannot_outnumber_the_tokens() -> None:
    with pytest.raises(AssertionError, match="among the tokens"):
        attend(heads(2, 5, 0), heads(2, 4, 1), heads(2, 4, 2))
