"""Which earlier tokens does a token read from, and how is that computed? One function.

Letters: B batch, T new tokens (queries), S all tokens (keys), H query heads, G key/value heads,
K head size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Scaled dot-product attention: q (B, H, T, K) with k, v (B, G, S, K) gives (B, H, T, K).

    softmax(q k' / sqrt K) v, Vaswani et al. 2017, eq. 1. With G < H, each run of H / G query heads
    shares one key/value head (grouped queries, Ainslie et al. 2023), which is never copied out.
    Causal: the T queries are the last T of the S tokens, and none sees a token after itself.

    The result is laid out as (B, T, H, K) in memory: merging the heads again costs no copy.
    """
    new, total = q.shape[2], k.shape[2]
    assert new <= total or not causal, "causal queries are among the tokens they attend to"
    # One token may see everything; without a past, the kernel's own triangle skips half the work.
    triangle = causal and 1 < new == total
    mask = None
    if causal and 1 < new < total:  # the kernel's triangle is anchored top left, ours bottom right
        mask = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=triangle, enable_gqa=k.shape[1] != q.shape[1]
    )
