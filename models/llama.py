"""What is LLaMA? The decoder of Touvron et al. 2023: RMS norm, rotary positions, gated SiLU.

Letters: B batch, T tokens, D width, H query heads, G key/value heads, K = D / H head size, F inner
width of the feed-forward, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import attend
from models.decoder import RotaryConfig, RotaryDecoder
from models.layers import Frame, RMSNorm, attention_scale, products, rotate


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(RotaryConfig):
    """The head is a matrix of its own, as published, unless `tied`."""

    name: ClassVar[str] = "llama"

    def build(self) -> Llama:
        """Raises ValueError while the vocabulary is unknown."""
        return Llama(self)

    def layer_matrices(self, layer: int) -> int:
        return self.attention_matrices + 3 * self.width * self.inner

    def layer_vectors(self, layer: int) -> int:
        return 2 * self.width


class Attention(nn.Module):
    """Causal self-attention, grouped queries; queries and keys are turned by their positions."""

    window: int | None = None  # how far it reads; None: everything
    plain = True  # `normed` does nothing

    def __init__(self, config: RotaryConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.size = config.size
        self.scale = attention_scale(config, config.size)
        groups = config.key_value_heads
        self.heads, self.turning = (config.heads, groups), (config.heads + groups, groups)
        self.split = (config.width, groups * self.size, groups * self.size)
        self.query_key_value = nn.Linear(config.width, sum(self.split), bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, T, H or G, K) before they are turned: as they are."""
        return q, k

    def turned(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, turned, and values, (B, T, H or G, K), of x (B, T, D)."""
        B, T, _ = x.shape
        if self.plain and not torch.is_grad_enabled():  # both are turned by one call
            heads = self.query_key_value(x).view(B, T, -1, self.size)
            turning, v = heads.split_with_sizes(self.turning, dim=2)
            q, k = rotate(turning, rotation).split_with_sizes(self.heads, dim=2)
            return q, k, v
        parts = products(x, self.query_key_value, self.split)
        q, k, v = (part.view(B, T, -1, self.size) for part in parts)
        q, k = self.normed(q, k)
        return rotate(q, rotation), rotate(k, rotation), v

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        assert frame.rotation is not None, "a rotary decoder prepares the rotations"
        B, T, D = x.shape
        q, k, v = self.turned(x, frame.rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if frame.cache is not None:
            k, v = frame.cache.append(self.layer, k, v)
        mixed = attend(q, k, v, frame.mask.within(self.window), scale=self.scale)
        y: Tensor = self.output(mixed.transpose(1, 2).reshape(B, T, D))
        return y


class FeedForward(nn.Module):
    """output(silu(gate(x)) * up(x)), Shazeer 2020; one matrix gives the gate, then up."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.split = (inner, inner)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = products(x, self.gate_up, self.split)
        y: Tensor = self.output(F.silu(gate) * up)
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward = FeedForward(config.width, config.inner)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        x = x + self.attention(self.attention_norm(x), frame)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class Llama(RotaryDecoder):
    """The model of a `LlamaConfig` whose vocabulary is known."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config, lambda layer: Block(config, layer))
