"""What is the L-former? A parallel decoder whose residual stream is attenuated by learned factors.

Attention and feed-forward read the same norm of the stream, as in PaLM (Chowdhery et al. 2022,
section 2), so that one product feeds both. Each sub-block then scales the stream that it writes to
by a lambda of its own, learned from 1 on: a layer may forget what earlier layers have written.

    n = norm(x)
    x <- lambda_f (lambda_a x + attention(n)) + feed_forward(n)

With both lambdas fixed at 1 this is PaLM's layer. Letters: B batch, T tokens, D width, H query
heads, G key/value heads, K = D / H head size, F inner width of the feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import attend
from models.decoder import RotaryConfig, RotaryDecoder
from models.interface import Role
from models.layers import Frame, RMSNorm, attention_scale, product, products, rotate


@dataclass(frozen=True, kw_only=True)
class LformerConfig(RotaryConfig):
    """`kv_heads` left out is 1, as in PaLM: all query heads share one head of keys and values."""

    name: ClassVar[str] = "lformer"

    def build(self) -> Lformer:
        """Raises ValueError while the vocabulary is unknown."""
        return Lformer(self)

    @property
    def key_value_heads(self) -> int:
        return 1 if self.kv_heads is None else self.kv_heads

    def layer_matrices(self, layer: int) -> int:
        return self.attention_matrices + 3 * self.width * self.inner

    def layer_vectors(self, layer: int) -> int:
        return self.width + 2  # the norm and the lambdas


class Block(nn.Module):
    """Attention and gated SiLU side by side: one matrix in, one matrix out."""

    def __init__(self, config: LformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.size, inner = layer, config.size, config.inner
        self.scale = attention_scale(config, config.size)
        self.heads = [config.heads, config.key_value_heads, config.key_value_heads]
        self.split = (sum(self.heads) * self.size, inner, inner)
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.input = nn.Linear(config.width, sum(self.split), bias=False)
        self.output = nn.Linear(config.width + inner, config.width, bias=False)
        self.attenuation = nn.Parameter(torch.ones(2))  # lambda_a, lambda_f

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        heads, gate, up = products(self.norm(x), self.input, self.split)
        of_attention, of_feed_forward = self.attenuation.unbind()
        mixed = of_feed_forward * self.attention(heads, frame)
        written = product(self.output, mixed, F.silu(gate) * up)
        y: Tensor = of_feed_forward * of_attention * x + written
        return y

    def attention(self, heads: Tensor, frame: Frame) -> Tensor:
        """Queries, keys and values (B, T, (H + 2 G) K) to (B, T, D)."""
        assert frame.rotation is not None, "a rotary decoder prepares the rotations"
        B, T, _ = heads.shape
        q, k, v = torch.split(heads.view(B, T, -1, self.size), self.heads, dim=2)
        q, k = rotate(q, frame.rotation), rotate(k, frame.rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if frame.cache is not None:
            k, v = frame.cache.append(self.layer, k, v)
        mixed = attend(q, k, v, frame.mask, scale=self.scale)
        return mixed.transpose(1, 2).reshape(B, T, -1)


class Lformer(RotaryDecoder):
    """The model of a `LformerConfig` whose vocabulary is known."""

    def __init__(self, config: LformerConfig) -> None:
        super().__init__(config, lambda layer: Block(config, layer))

    def roles(self) -> dict[str, Role]:
        """The lambdas of all layers multiply, so that their changes add up over the depth."""
        return {
            name: "shift" if name.endswith(".attenuation") else role
            for name, role in super().roles().items()
        }
