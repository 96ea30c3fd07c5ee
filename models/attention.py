"""Which tokens does a token read from, and how is that computed? A mask, and one function.

    Mask      which keys each query may read: causal, prefix, sliding window, documents
    attend    softmax(q k' / sqrt K) v under a mask, by one of three backends:
              sdpa    torch's fused kernels; the default, exact everywhere
              flex    torch's flex attention: skips what the mask hides, once compiled
              flash   the flash-attn package (optional): documents without any mask, CUDA only

Letters: B batch, T new tokens (queries), S all tokens (keys), H query heads, G key/value heads,
K head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.kernels import by_hand

Backend = Literal["sdpa", "flex", "flash"]
BACKENDS: tuple[Backend, ...] = ("sdpa", "flex", "flash")


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """Which keys a query may read, and which backend computes it. All conditions hold together.

    The T queries are the last T of the S keys, unless `held` says where they stand. Make one mask
    for each forward pass: what a backend needs of it is built once and shared by the layers.
    """

    causal: bool = True  # no token reads a later one
    prefix: int | Tensor | None = None  # but all read these first keys; one number, or (B,)
    window: int | None = None  # a token reads itself and the window - 1 tokens beside it
    documents: Tensor | None = None  # (B, S) ids; a token reads its own run of equal ids only
    held: Tensor | None = None  # (1,): the queries follow so many keys, and are not the last of all
    backend: Backend = "sdpa"
    _built: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; it must be at least 1 token")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is {self.backend!r}; it must be one of {BACKENDS}")

    def within(self, window: int | None) -> Mask:
        """The same mask for a layer that reads no farther than `window` tokens."""
        if window == self.window:
            return self
        key = f"within {window}"
        if key not in self._built:
            self._built[key] = replace(self, window=window)
        narrower: Mask = self._built[key]
        return narrower

    @property
    def apart(self) -> bool:
        """Does what is hidden follow from more than distances?"""
        return not (self.prefix is None and self.documents is None and self.held is None)

    def hides(self, total: int) -> bool:
        """Does it hide more of `total` keys than the triangle of a causal kernel?"""
        return self.apart or (self.window is not None and self.window < total)

    def rule(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """(row, query, key), index tensors of shapes that broadcast, to whether it is read.

        Every backend that needs a mask builds it from this one function.
        """
        seen, prefix = runs(self.documents), self.prefix

        def reads(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            allowed = (query >= key) if self.causal else (query >= 0) & (key >= 0)
            if prefix is not None:
                known = prefix[row] if isinstance(prefix, Tensor) else prefix
                allowed = allowed | (key < known)
            if self.window is not None:
                allowed = allowed & ((query - key).abs() < self.window)
            if seen is not None:
                allowed = allowed & (seen[row, query] == seen[row, key])
            return allowed

        return reads

    def dense(self, new: int, total: int, like: Tensor) -> Tensor:
        """(B or 1, 1, T, S) of truth values on the device of `like`."""
        key = f"dense {new} {total}"
        if key not in self._built:
            index = torch.arange(total, device=like.device)
            varies = self.documents is not None or isinstance(self.prefix, Tensor)
            row = torch.arange(like.shape[0] if varies else 1, device=like.device)
            query = index[total - new :] if self.held is None else index[:new] + self.held
            built = self.rule()(row[:, None, None], query[:, None], index[None, :])
            self._built[key] = built.expand(len(row), new, total).unsqueeze(1)
        held: Tensor = self._built[key]
        return held

    def blocks(self, new: int, total: int, like: Tensor) -> Any:
        """The block mask of flex attention, which skips blocks that no query reads."""
        from torch.nn.attention.flex_attention import create_block_mask

        key = f"blocks {new} {total}"
        if key not in self._built:
            rule, past = self.rule(), total - new

            def reads(row: Tensor, head: Tensor, query: Tensor, other: Tensor) -> Tensor:
                return rule(row, query + past, other)

            self._built[key] = create_block_mask(
                reads, like.shape[0], None, new, total, device=str(like.device)
            )
        return self._built[key]


def starts(documents: Tensor) -> Tensor:
    """Where a run of equal ids begins, in each row of (B, S): truth values (B, S)."""
    first = torch.ones_like(documents[:, :1], dtype=torch.bool)
    return torch.cat((first, documents[:, 1:] != documents[:, :-1]), dim=1)


def runs(documents: Tensor | None) -> Tensor | None:
    """Each token's number of its run of equal ids, counted within its row: (B, S) from 1."""
    return None if documents is None else starts(documents).cumsum(dim=1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | None = None,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention: q (B, H, T, K) with k, v (B, G, S, K) gives (B, H, T, K).

    softmax(q k' scale + bias) v, Vaswani et al. 2017, eq. 1; the scale is 1 / sqrt K if left out,
    the bias broadcasts to (B, H, T, S). With G < H, each run of H / G query heads shares one
    key/value head (grouped queries, Ainslie et al. 2023), which is never copied out. Without a mask
    given: causal. The result is laid out as (B, T, H, K) in memory: merging the heads again costs
    no copy.

    Backends agree within 1e-5 (relative and absolute) in float32, and within 2e-2 in bfloat16.
    """
    mask = mask or Mask()
    new, total = q.shape[2], k.shape[2]
    assert new <= total or not mask.causal, "causal queries are among the tokens they attend to"
    if mask.window and mask.causal and bias is None and not mask.apart:
        reach = new - 1 + mask.window  # what no query can read need not be masked either
        k, v = k[:, :, -reach:], v[:, :, -reach:]
        total = k.shape[2]
    if mask.held is not None and mask.backend != "sdpa":
        raise ValueError(f"backend {mask.backend!r} has no step of fixed shapes; use 'sdpa'")
    if mask.backend == "flex":
        return _flex(q, k, v, mask, bias, scale)
    if mask.backend == "flash":
        return _flash(q, k, v, mask, bias, scale)
    hides = mask.hides(total)
    if bias is None and not hides:
        return _plain(q, k, v, mask.causal, scale)
    allowed = mask.dense(new, total, q) if hides or (mask.causal and new > 1) else None
    if bias is not None:
        allowed = bias if allowed is None else bias.masked_fill(~allowed, -torch.inf)
    shared = k.shape[1] != q.shape[1]
    if bias is not None and bias.requires_grad and not shared and by_hand(q):
        assert allowed is not None
        return _with_trained_bias(q, k, v, allowed, scale)
    return F.scaled_dot_product_attention(q, k, v, allowed, scale=scale, enable_gqa=shared)


def _plain(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """Causal over all, or everything: no mask is built where the kernel knows a faster way."""
    new, total = q.shape[2], k.shape[2]
    # One token may see everything; without a past, the kernel's own triangle skips half the work.
    triangle = causal and 1 < new == total
    mask = None
    if causal and 1 < new < total:  # the kernel's triangle is anchored top left, ours bottom right
        mask = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
    shared = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=triangle, scale=scale, enable_gqa=shared
    )


def _with_trained_bias(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None
) -> Tensor:
    """Torch has no fused kernel for it on a CPU, and its own way looks for queries that may read
    nothing, which takes as long as the softmax. Here such a query, which no model of the zoo asks
    for the sake of its result, reads everything alike. Its heads are merged with a copy."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    lowest = torch.finfo(bias.dtype).min / 2
    scaled = q if scale == 1 else q * scale
    scores = torch.matmul(scaled, k.transpose(-2, -1)).add_(bias.clamp_min(lowest))
    return torch.matmul(scores.softmax(dim=-1), v)


def _flex(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None, scale: float | None
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    new, total = q.shape[2], k.shape[2]
    hides = mask.causal or mask.hides(total)
    blocks = mask.blocks(new, total, q) if hides else None
    change = None
    if bias is not None:
        whole = bias.expand(q.shape[0], q.shape[1], new, total)

        def change(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + whole[row, head, query, key]

    shared = k.shape[1] != q.shape[1]
    result = flex_attention(q, k, v, change, blocks, scale=scale, enable_gqa=shared)
    assert isinstance(result, Tensor)
    return result


def _flash(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None, scale: float | None
) -> Tensor:
    """Documents become sequences of their own in one long row, as flash-attn's varlen wants."""
    kernel = _flash_kernel()
    if bias is not None or mask.prefix is not None:
        raise ValueError("backend 'flash' knows no bias and no prefix; use 'sdpa' or 'flex'")
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"backend 'flash' is for float16 or bfloat16 on CUDA, not {q.dtype} on {q.device.type}"
        )
    rows, new, total = q.shape[0], q.shape[2], k.shape[2]
    if mask.documents is not None and new != total:
        raise ValueError("backend 'flash' takes documents only where all tokens are new")
    of_q, longest_q = _bounds(mask.documents, rows, new, q)
    of_k, longest_k = _bounds(mask.documents, rows, total, q)
    reach = -1 if mask.window is None else mask.window - 1
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B T, H, K), (B S, G, K) twice
    mixed: Tensor = kernel(
        *flat,
        of_q,
        of_k,
        longest_q,
        longest_k,
        softmax_scale=scale,
        causal=mask.causal,
        window_size=(reach, 0 if mask.causal else reach),
    )
    result: Tensor = mixed.view(rows, new, *q.shape[1::2]).transpose(1, 2)
    return result


def _bounds(documents: Tensor | None, rows: int, length: int, like: Tensor) -> tuple[Tensor, int]:
    """Where the sequences of the flattened rows begin and end (N + 1,), and the longest's bound."""
    if documents is None:
        edges = torch.arange(0, (rows + 1) * length, length, device=like.device)
    else:
        first = starts(documents).flatten().nonzero().squeeze(1)
        edges = F.pad(first, (0, 1), value=rows * length)
    return edges.int(), length


def _flash_kernel() -> Callable[..., Any]:
    try:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            "backend 'flash' needs the flash-attn package and a CUDA machine: "
            "install isoflop[flash], or use backend 'sdpa' or 'flex'"
        ) from error
    kernel: Callable[..., Any] = flash_attn_varlen_func
    return kernel
