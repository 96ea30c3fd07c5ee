"""What do decoder-only transformers share? Counting, the embedding and the head, caches, the stack.

    DecoderConfig   width, depth and heads; a subclass says what one layer is made of
    Decoder         embedding -> blocks -> norm -> head; a subclass gives the blocks
    RotaryConfig    adds rotary positions, grouped queries, and a head of its own or tied
    RotaryDecoder   adds the table of rotations and the initialisation

What makes a model a model (its attention, its feed-forward, how they are joined) is in its own
file. Letters: B batch, T tokens, D width, H query heads, G key/value heads, K = D / H head size,
F inner width of the feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cache import (
    CACHE_KINDS,
    Cache,
    CacheKind,
    FixedCache,
    GrowingCache,
    KeyValueCache,
    QuantisedCache,
    SlidingCache,
)
from models.interface import Config, FlopCount, Model, ParameterCount, younger
from models.layers import (
    INITIAL_STD,
    UNSCALED,
    Frame,
    RMSNorm,
    RopeScaling,
    check_shape,
    frame,
    require,
    rotary_table,
)

ALLOCATED: dict[str, type[KeyValueCache]] = {
    "static": KeyValueCache,
    "growing": GrowingCache,
    "fixed": FixedCache,
    "quantised": QuantisedCache,
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """A stack of layers, each of which reads and writes a stream of `width` numbers per token."""

    width: int  # D, a multiple of the heads
    depth: int  # layers
    heads: int

    def __post_init__(self) -> None:
        check_shape(self, self.width, self.depth, self.heads)

    @property
    def size(self) -> int:
        """K: the numbers in one head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """G: the heads of keys and values."""
        return self.heads

    @property
    def embedding_is_head(self) -> bool:
        """Is the input embedding the output head too (tied)?"""
        return True

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How far each layer reads; None: everything."""
        return (None,) * self.depth

    @property
    def position_table(self) -> int:
        """Numbers in a trained table of positions."""
        return 0

    @abstractmethod
    def layer_matrices(self, layer: int) -> int:
        """Numbers in the matrices of one layer that multiply each token: the active ones."""

    def layer_idle(self, layer: int) -> int:
        """Numbers in matrices that one token leaves aside: experts it is not routed to."""
        return 0

    @abstractmethod
    def layer_vectors(self, layer: int) -> int:
        """Numbers in one layer's norms, biases and scalars."""

    @property
    def final_vectors(self) -> int:
        """Numbers in the norm before the head."""
        return self.width

    def parameters(self) -> ParameterCount:
        layers = range(self.depth)
        matrices = sum(self.layer_matrices(layer) for layer in layers)
        body = matrices + sum(self.layer_vectors(layer) for layer in layers) + self.final_vectors
        idle = sum(self.layer_idle(layer) for layer in layers)
        table = self.vocab * self.width
        everything = (1 if self.embedding_is_head else 2) * table + self.position_table + body
        return ParameterCount(
            all=everything + idle,
            without_input_embedding=body + idle + table,
            without_embeddings=body + idle,
            active=everything,
        )

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        """A layer with a window counts as one without: without flex or flash, it costs as much."""
        T = self.context if context is None else context
        require(T > 0, "context", T, "at least 1 token")
        return FlopCount(
            body=2 * sum(self.layer_matrices(layer) for layer in range(self.depth)),
            attention=self.depth * 4 * T * self.width,
            head=2 * self.width * self.vocab,
        )


class Decoder(Model):
    """Embedding, blocks, norm, head. A block takes the stream (B, T, D) and the frame."""

    config: DecoderConfig
    checkpointing = False
    embedding: nn.Embedding
    blocks: nn.ModuleList
    norm: nn.Module
    unembedding: nn.Linear | None

    def __init__(
        self,
        config: DecoderConfig,
        block: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module] = RMSNorm,
    ) -> None:
        super().__init__()
        require(config.vocab > 0, "vocab", config.vocab, "known (the tokenizer's size) to build")
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(block(layer) for layer in range(config.depth))
        self.norm = norm(config.width)
        tied = config.embedding_is_head
        self.unembedding = None if tied else nn.Linear(config.width, config.vocab, bias=False)

    def prepared(self, where: Frame) -> Frame:
        """The frame with whatever the blocks share."""
        return where

    def embed(self, tokens: Tensor, where: Frame) -> Tensor:
        """Token ids (B, T) to the stream (B, T, D) that the first block reads."""
        embedded: Tensor = self.embedding(tokens)
        return embedded

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D); see `Model.hidden`.

        Raises ValueError where the sequence would be longer than the context or the cache.
        """
        where = self.prepared(frame(self, tokens, cache, documents, positions))
        x = self.embed(tokens, where)
        for block in self.blocks:
            x = self.through(block, x, where)
        where.advance(tokens)
        y: Tensor = self.norm(x)
        return y

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V)."""
        logits = F.linear(hidden, self._table)
        factor = self.config.scales.logits
        return logits if factor == 1 else logits * factor

    def matrix(self) -> Tensor | None:
        """None where the head is more than a product: a factor, or what a subclass does there."""
        plain = type(self).head is Decoder.head and self.config.scales.logits == 1
        return self._table if plain else None

    @property
    def _table(self) -> Tensor:
        return (self.embedding if self.unembedding is None else self.unembedding).weight

    def new_cache(self, batch: int, length: int, kind: CacheKind = "static") -> Cache:
        """Raises ValueError for no rows, no tokens, or more tokens than the context."""
        config, like = self.config, self.embedding.weight
        require(length <= config.context, "length", length, f"at most the context {config.context}")
        require(kind in CACHE_KINDS, "kind", kind, f"one of {', '.join(CACHE_KINDS)}")
        heads, size = config.key_value_heads, config.size
        if kind == "sliding":
            return SlidingCache.allocate(
                windows=config.windows,
                batch=batch,
                heads=heads,
                capacity=length,
                size=size,
                like=like,
            )
        return ALLOCATED[kind].allocate(
            layers=config.depth, batch=batch, heads=heads, capacity=length, size=size, like=like
        )


@dataclass(frozen=True, kw_only=True)
class RotaryConfig(DecoderConfig):
    """`kv_heads` and `ffn` left out follow the width and the heads, so that `replace(config,
    width=...)` stays in proportion; the properties say what they came to.

    Small models spend much of their size on the vocabulary: a study that compares architectures
    there ties all of them or none.
    """

    kv_heads: int | None = None  # a divisor of the heads; None: what the architecture is known for
    ffn: int | None = None  # inner width; None: what the architecture is known for
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = younger(UNSCALED)
    tied: bool = False  # is the input embedding the output head too?
    norm_epsilon: float = younger(1e-5)

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = self.key_value_heads
        require(self.size % 2 == 0, "width / heads", self.size, "even, for rotary positions")
        fits = groups > 0 and self.heads % groups == 0
        require(fits, "kv_heads", groups, f"a divisor of the {self.heads} heads")
        require(self.inner > 0, "ffn", self.ffn, "at least 1")
        for name in ("rope_theta", "norm_epsilon"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")

    @property
    def key_value_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def inner(self) -> int:
        """F: with three matrices of 8/3 width, a gated layer is as big as a plain one of 4."""
        return -(-self.width // 3) * 8 if self.ffn is None else self.ffn

    @property
    def embedding_is_head(self) -> bool:
        return self.tied

    @property
    def attention_matrices(self) -> int:
        """Numbers in one layer's matrices for queries and output, keys and values."""
        return self.width * (2 * self.width + 2 * self.key_value_heads * self.size)


class RotaryDecoder(Decoder):
    """The blocks share the rotations of the tokens' positions."""

    config: RotaryConfig
    rotation: Tensor  # cosines and sines of all positions, see `layers.rotary_table`

    def __init__(self, config: RotaryConfig, block: Callable[[int], nn.Module]) -> None:
        super().__init__(config, block, lambda width: RMSNorm(width, config.norm_epsilon))
        table = rotary_table(config.context, config.size, config.rope_theta, config.rope_scaling)
        self.register_buffer("rotation", table, persistent=False)  # follows from the config
        self.initialise()

    def initialise(self) -> None:
        """Draws every weight anew, by role: GPT-2's scheme, so that a comparison is of shapes only.

        embedding, unembedding, matrices     normal, std 0.02
        the matrices of each layer that      normal, std 0.02 / sqrt(2 depth)
        write into the residual stream
        norms, scalars                       1
        """
        residual_std = INITIAL_STD / math.sqrt(2 * self.config.depth)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = residual_std if name.endswith(".output") else INITIAL_STD
                nn.init.normal_(module.weight, std=std)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts leave the rotations in float32: in bfloat16, angles would be off by 1/256."""
        exact = self.rotation
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rotation.dtype != exact.dtype:
            self.rotation = exact.to(self.rotation.device)
        return self

    def prepared(self, where: Frame) -> Frame:
        turns = self.rotation[where.positions]
        if not torch.compiler.is_compiling():
            turns = torch.view_as_complex(turns)
        return replace(where, rotation=turns)
