"""What is GPT-2? The decoder of Radford et al. 2019: pre-norm, learned positions, biases, GELU.

Letters: B batch, T tokens, D width, H heads, K = D / H head size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from models.attention import attend
from models.decoder import Decoder, DecoderConfig
from models.layers import INITIAL_STD, Frame, at, attention_scale, gelu


@dataclass(frozen=True, kw_only=True)
class GPT2Config(DecoderConfig):
    """The input embedding is always the output head too (tied), as published."""

    name: ClassVar[str] = "gpt2"

    def build(self) -> GPT2:
        """Raises ValueError while the vocabulary is unknown."""
        return GPT2(self)

    @property
    def position_table(self) -> int:
        return self.context * self.width

    def layer_matrices(self, layer: int) -> int:
        return 12 * self.width * self.width  # 4 of the attention, 8 of the feed-forward

    def layer_vectors(self, layer: int) -> int:
        return 13 * self.width  # two norms of 2; biases: 4 of the attention, 5 of the feed-forward

    @property
    def final_vectors(self) -> int:
        return 2 * self.width


class Attention(nn.Module):
    """Multi-head causal self-attention; queries, keys and values come from one product."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = config.heads
        self.scale = attention_scale(config, config.size)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        B, T, D = x.shape
        heads = self.query_key_value(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = (part.transpose(1, 2) for part in heads.unbind(2))  # each (B, H, T, K)
        if frame.cache is not None:
            k, v = frame.cache.append(self.layer, k, v)
        mixed = attend(q, k, v, frame.mask, scale=self.scale)
        y: Tensor = self.output(mixed.transpose(1, 2).reshape(B, T, D))
        return y


class FeedForward(nn.Module):
    """Four times as wide inside, with the tanh form of GELU that GPT-2 was trained with."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.input = nn.Linear(config.width, 4 * config.width)
        self.output = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(gelu(self.input(x), spent=True))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        x = x + self.attention(self.attention_norm(x), frame)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class GPT2(Decoder):
    """The model of a `GPT2Config` whose vocabulary is known."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config, lambda layer: Block(config, layer), nn.LayerNorm)
        self.positions = nn.Embedding(config.context, config.width)
        self.initialise()

    def initialise(self) -> None:
        """Draws every weight anew, by role (Radford et al. 2019, section 2.3).

        embeddings, positions and matrices   normal, std 0.02
        the two matrices of each layer that  normal, std 0.02 / sqrt(2 depth): the residual stream
        write into the residual stream       then grows no larger with depth
        biases                               0
        norms                                1 (weights), 0 (biases), as torch sets them
        """
        residual_std = INITIAL_STD / math.sqrt(2 * self.config.depth)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = residual_std if name.endswith(".output") else INITIAL_STD
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def embed(self, tokens: Tensor, where: Frame) -> Tensor:
        x: Tensor = self.embedding(tokens) + at(self.positions.weight, where.positions)
        return x
