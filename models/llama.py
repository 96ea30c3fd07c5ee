"""What is LLaMA? The decoder of Touvron et al. 2023: RMS norm, rotary positions, gated SiLU.

Letters: B batch, T tokens, D width, H query heads, G key/value heads, K = D / H head size, F inner
width of the feed-forward, V vocabulary.
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
from models.layers import (
    INITIAL_STD,
    RMSNorm,
    check_shape,
    require,
    rotary_table,
    rotate,
    span,
)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Config):
    """The head is a matrix of its own, as published, unless `tied`.

    Small models spend much of their size on the vocabulary: a study that compares architectures
    there ties all of them or none. `kv_heads` and `ffn` left out follow the width and the heads, so
    that `replace(config, width=...)` stays in proportion; the properties say what they came to.
    """

    name: ClassVar[str] = "llama"

    width: int  # D, an even multiple of the heads
    depth: int  # layers
    heads: int
    kv_heads: int | None = None  # a divisor of the heads; None: as many (no grouping)
    ffn: int | None = None  # inner width; None: 8/3 width, rounded up to a multiple of 8
    rope_theta: float = 10_000.0
    tied: bool = False  # is the input embedding the output head too?

    def __post_init__(self) -> None:
        check_shape(self, self.width, self.depth, self.heads)
        groups = self.key_value_heads
        require(self.size % 2 == 0, "width / heads", self.size, "even, for rotary positions")
        fits = groups > 0 and self.heads % groups == 0
        require(fits, "kv_heads", groups, f"a divisor of the {self.heads} heads")
        require(self.inner > 0, "ffn", self.ffn, "at least 1")
        require(self.rope_theta > 0, "rope_theta", self.rope_theta, "above 0")

    @property
    def size(self) -> int:
        """K: the numbers in one head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """G: the heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def inner(self) -> int:
        """F: with three matrices of 8/3 width, the gated layer is as big as a plain one of 4."""
        return -(-self.width // 3) * 8 if self.ffn is None else self.ffn

    def build(self) -> Llama:
        """Raises ValueError while the vocabulary is unknown."""
        require(self.vocab > 0, "vocab", self.vocab, "known (the tokenizer's size) to build LLaMA")
        return Llama(self)

    def parameters(self) -> ParameterCount:
        body = self.depth * (self._layer_matrices() + 2 * self.width) + self.width
        table = self.vocab * self.width
        return ParameterCount(
            all=body + (table if self.tied else 2 * table),
            without_input_embedding=body + table,
            without_embeddings=body,
        )

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        T = self.context if context is None else context
        require(T > 0, "context", T, "at least 1 token")
        return FlopCount(
            body=self.depth * 2 * self._layer_matrices(),
            attention=self.depth * 4 * T * self.width,
            head=2 * self.width * self.vocab,
        )

    def _layer_matrices(self) -> int:
        """Numbers in one layer's matrices: queries and output, keys and values, feed-forward."""
        shared = self.key_value_heads * self.size
        return self.width * (2 * self.width + 2 * shared + 3 * self.inner)


class Attention(nn.Module):
    """Causal self-attention, grouped queries; queries and keys are turned by their positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.size = config.size
        self.split = (config.heads, config.key_value_heads, config.key_value_heads)
        self.query_key_value = nn.Linear(config.width, sum(self.split) * self.size, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, cache: KeyValueCache | None) -> Tensor:
        B, T, D = x.shape
        heads = self.query_key_value(x).view(B, T, -1, self.size)
        q, k, v = heads.split(self.split, dim=2)  # (B, T, H, K), (B, T, G, K), (B, T, G, K)
        q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mixed = attend(q, k, v, causal=True)
        y: Tensor = self.output(mixed.transpose(1, 2).reshape(B, T, D))
        return y


class FeedForward(nn.Module):
    """output(silu(gate(x)) * up(x)), Shazeer 2020; one product gives the gate, then up."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.inner, bias=False)
        self.output = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.output(F.silu(gate) * up)
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rotation: Tensor, cache: KeyValueCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, cache)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class Llama(Model):
    """The model of a `LlamaConfig` whose vocabulary is known."""

    rotation: Tensor  # cosines and sines of all positions, see `layers.rotary_table`

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config: LlamaConfig = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.unembedding = (
            None if config.tied else nn.Linear(config.width, config.vocab, bias=False)
        )
        table = rotary_table(config.context, config.size, config.rope_theta)
        self.register_buffer("rotation", table, persistent=False)  # follows from the config
        self.initialise()

    def initialise(self) -> None:
        """Draws every weight anew, by role: GPT-2's scheme, so that a comparison is of shapes only.

        embedding, unembedding, matrices     normal, std 0.02
        the two matrices of each layer that  normal, std 0.02 / sqrt(2 depth)
        write into the residual stream
        norms                                1
        """
        residual_std = INITIAL_STD / math.sqrt(2 * self.config.depth)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = residual_std if name.endswith(".output") else INITIAL_STD
                nn.init.normal_(module.weight, std=std)

    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D); see `Model.hidden`.

        Raises ValueError where the sequence would be longer than the context or the cache.
        """
        where = span(tokens, cache, self.config.context)
        rotation = self.rotation[where]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rotation, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        y: Tensor = self.norm(x)
        return y

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V)."""
        table = self.embedding if self.unembedding is None else self.unembedding
        return F.linear(hidden, table.weight)

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """Raises ValueError for no rows, no tokens, or more tokens than the context."""
        config = self.config
        require(length <= config.context, "length", length, f"at most the context {config.context}")
        return KeyValueCache.allocate(
            layers=config.depth,
            batch=batch,
            heads=config.key_value_heads,
            capacity=length,
            size=config.size,
            like=self.embedding.weight,
        )
