"""What is GPT-2? The decoder of Radford et al. 2019: pre-norm, learned positions, biases, GELU.

Letters: B batch, T tokens, D width, H heads, K = D / H head size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import attend
from models.cache import KeyValueCache
from models.interface import Config, FlopCount, Model, ParameterCount
from models.layers import INITIAL_STD, check_shape, gelu, require, span


@dataclass(frozen=True, kw_only=True)
class GPT2Config(Config):
    """The input embedding is always the output head too (tied), as published."""

    name: ClassVar[str] = "gpt2"

    width: int  # D, a multiple of the heads
    depth: int  # layers
    heads: int

    def __post_init__(self) -> None:
        check_shape(self, self.width, self.depth, self.heads)

    def build(self) -> GPT2:
        """Raises ValueError while the vocabulary is unknown."""
        require(self.vocab > 0, "vocab", self.vocab, "known (the tokenizer's size) to build GPT-2")
        return GPT2(self)

    def parameters(self) -> ParameterCount:
        D = self.width
        norm, attention, feed_forward = 2 * D, 4 * D * D + 4 * D, 8 * D * D + 5 * D
        body = self.depth * (2 * norm + attention + feed_forward) + norm
        head = self.vocab * D
        return ParameterCount(
            all=body + head + self.context * D,
            without_input_embedding=body + head,
            without_embeddings=body,
        )

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        D, T = self.width, self.context if context is None else context
        require(T > 0, "context", T, "at least 1 token")
        return FlopCount(
            body=self.depth * 2 * 12 * D * D,
            attention=self.depth * 4 * T * D,
            head=2 * D * self.vocab,
        )


class Attention(nn.Module):
    """Multi-head causal self-attention; queries, keys and values come from one product."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = config.heads
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, cache: KeyValueCache | None) -> Tensor:
        B, T, D = x.shape
        heads = self.query_key_value(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = (part.transpose(1, 2) for part in heads.unbind(2))  # each (B, H, T, K)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mixed = attend(q, k, v, causal=True)
        y: Tensor = self.output(mixed.transpose(1, 2).reshape(B, T, D))
        return y


class FeedForward(nn.Module):
    """Four times as wide inside, with the tanh form of GELU that GPT-2 was trained with."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.input = nn.Linear(config.width, 4 * config.width)
        self.output = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(gelu(self.input(x)))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cache: KeyValueCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cache)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class GPT2(Model):
    """The model of a `GPT2Config` whose vocabulary is known."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config: GPT2Config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
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

    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D); see `Model.hidden`.

        Raises ValueError where the sequence would be longer than the context or the cache.
        """
        where = span(tokens, cache, self.config.context)
        x = self.embedding(tokens) + self.positions.weight[where]
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        y: Tensor = self.norm(x)
        return y

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V), by the transposed embedding."""
        return F.linear(hidden, self.embedding.weight)

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """Raises ValueError for no rows, no tokens, or more tokens than the context."""
        config = self.config
        require(length <= config.context, "length", length, f"at most the context {config.context}")
        return KeyValueCache.allocate(
            layers=config.depth,
            batch=batch,
            heads=config.heads,
            capacity=length,
            size=config.width // config.heads,
            like=self.embedding.weight,
        )
