"""What is T5? An encoder-decoder with relative positions; this one's decoder layers are parallel.

The parts are those of T5 1.1 (Raffel et al. 2020; Shazeer 2020): RMS norm, gated GELU, no biases, a
learned bias for each bucket of distances instead of positions, and attention without 1 / sqrt K,
which T5 leaves to the size of its weights. `models/t5_serial.py` puts them together as published.
Here a decoder layer reads its input once: self-attention, cross-attention and feed-forward stand
side by side behind one norm, as PaLM's two do (Chowdhery et al. 2022, section 2), and their
matrices are one product in and one product out.

Sequences are text (B, T), or code streams of several codebooks (B, T, C): the codes of a position
are embedded by one table each and summed, and each has a head of its own.

Letters: B batch, S positions of the source, T of the target, D width, H heads, K = D / H head size,
F inner width of the feed-forward, V vocabulary, C codebooks, L layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from models.attention import Mask, attend
from models.cache import Cache, CacheKind, KeyValueCache, KeyValues
from models.interface import EncoderDecoder, EncoderDecoderConfig, FlopCount, ParameterCount
from models.layers import INITIAL_STD, RMSNorm, check_shape, gated_gelu, product, products, require

EPSILON = 1e-6  # of the norms, as published


@dataclass(frozen=True, kw_only=True)
class T5Config(EncoderDecoderConfig):
    """`depth` layers in the encoder, and as many in the decoder. The head is never tied."""

    name: ClassVar[str] = "t5"
    decoder_norms: ClassVar[int] = 1  # of one layer

    width: int  # D, a multiple of the heads
    depth: int
    heads: int
    ffn: int | None = None  # inner width; None: 8/3 width, rounded up to a multiple of 8
    buckets: int = 32  # of distances between two positions
    distance: int = 128  # from here on, all distances share the last bucket
    codebooks: int = 1  # C: codes at each position

    def __post_init__(self) -> None:
        check_shape(self, self.width, self.depth, self.heads)
        require(self.inner > 0, "ffn", self.ffn, "at least 1")
        require(
            self.buckets >= 4 and self.buckets % 4 == 0, "buckets", self.buckets, "a multiple of 4"
        )
        least = f"above half the {self.buckets} buckets"
        require(self.distance > self.buckets // 2, "distance", self.distance, least)
        require(self.codebooks > 0, "codebooks", self.codebooks, "at least 1")

    @property
    def inner(self) -> int:
        """F: with three matrices of 8/3 width, the gated layer is as big as a plain one of 4."""
        return -(-self.width // 3) * 8 if self.ffn is None else self.ffn

    def build(self) -> T5:
        """Raises ValueError while the vocabulary is unknown."""
        require(self.vocab > 0, "vocab", self.vocab, "known (the tokenizer's size) to build T5")
        return T5(self)

    def parameters(self) -> ParameterCount:
        """A table of biases is no embedding of tokens: it counts among the body."""
        D, L = self.width, self.depth
        feed = 3 * D * self.inner
        norms = (2 + self.decoder_norms) * L * D + 2 * D
        body = L * (4 * D * D + feed) + L * (8 * D * D + feed) + norms
        body += 2 * self.buckets * self.heads
        table = self.codebooks * self.vocab * D
        return ParameterCount(
            all=body + 2 * table, without_input_embedding=body + table, without_embeddings=body
        )

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        """Of reading `source` and writing `target` positions, divided by the `context` tokens of
        text that both were made from (rounded). With another context given, both are that long.
        """
        N = self.context if context is None else context
        require(N > 0, "context", N, "at least 1 token")
        D, L, feed = self.width, self.depth, 3 * self.width * self.inner
        S, T = (self.source or N, self.target or N) if context is None else (N, N)
        encoder, memory, decoder = 4 * D * D + feed, 2 * D * D, 6 * D * D + feed
        return FlopCount(
            body=round(2 * L * (S * (encoder + memory) + T * decoder) / N),
            attention=round(4 * L * D * (S * S + T * T + T * S) / N),
            head=round(2 * D * self.vocab * self.codebooks * T / N),
        )


class Memory(KeyValueCache):
    """The decoder's own keys and values, and what the encoder said to each of its layers."""

    # Keys and values (L, B, H, S, K) of the source, and where it is present (B, S).
    source: tuple[Tensor, Tensor] | None = None
    present: Tensor | None = None

    def _pick(self, rows: Tensor) -> Self:
        """See `Cache.keep`."""
        kept = super()._pick(rows)
        if self.source is not None:
            kept.source = (self.source[0][:, rows], self.source[1][:, rows])
        kept.present = None if self.present is None else self.present[rows]
        return kept


class Distances(nn.Module):
    """A learned bias for the distance from a query to a key, one number per head and bucket."""

    def __init__(self, config: T5Config, both_ways: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.buckets, config.heads))
        self.buckets, self.distance, self.both_ways = config.buckets, config.distance, both_ways

    def forward(self, new: int, total: int) -> Tensor:
        """(1, H, new, total), where the queries are the last `new` of `total` positions."""
        index = torch.arange(total, device=self.table.device)
        ahead = index[None, :] - index[total - new :, None]
        found = bucket(ahead, self.buckets, self.distance, self.both_ways)
        return self.table[found].permute(2, 0, 1).unsqueeze(0)


def bucket(ahead: Tensor, buckets: int, distance: int, both_ways: bool) -> Tensor:
    """The bucket of each distance (key minus query), Raffel et al. 2020, section 2.1.

    Half of the buckets are for single distances, the rest grow geometrically up to `distance`. Both
    ways: one half of all is for keys ahead. Otherwise all keys ahead share bucket 0.
    """
    side = torch.zeros_like(ahead)
    back = (-ahead).clamp(min=0)
    if both_ways:
        buckets //= 2
        side, back = (ahead > 0) * buckets, ahead.abs()
    exact = buckets // 2
    grown = torch.log(back.clamp(min=1).float() / exact) / math.log(distance / exact)
    far = (exact + (grown * (buckets - exact)).long()).clamp(max=buckets - 1)
    return side + torch.where(back < exact, back, far)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, T, D) to (B, H, T, K)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """(B, H, T, K) to (B, T, D)."""
    return x.transpose(1, 2).flatten(2)


def hiding(present: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to scores so that absent positions (B, S) are not read: (B, 1, 1, S)."""
    if present is None:
        return None
    bias = torch.zeros(present.shape, dtype=dtype, device=present.device)
    return bias.masked_fill(~present, -torch.inf)[:, None, None, :]


class FeedForward(nn.Module):
    """output(gelu(gate(x)) * up(x)), Shazeer 2020; one product gives the gate, then up."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.inner, bias=False)
        self.output = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.output.in_features
        gate, up = products(x, self.gate_up, (inner, inner))
        y: Tensor = self.output(gated_gelu(gate, up))
        return y


class SelfAttention(nn.Module):
    """Every position reads every one, or (causal) those before it and itself."""

    def __init__(self, config: T5Config, layer: int, causal: bool) -> None:
        super().__init__()
        self.layer, self.heads, self.causal = layer, config.heads, causal
        self.scale = config.scales.attention  # T5 has no 1 / sqrt K of its own
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, bias: Tensor, cache: KeyValues | None = None) -> Tensor:
        parts = products(x, self.query_key_value, 3 * (x.shape[-1],))
        q, k, v = (heads_of(part, self.heads) for part in parts)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mixed = attend(q, k, v, Mask(causal=self.causal), bias=bias, scale=self.scale)
        y: Tensor = self.output(merged(mixed))
        return y


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, EPSILON)
        self.attention = SelfAttention(config, layer, causal=False)
        self.feed_forward_norm = RMSNorm(config.width, EPSILON)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), bias)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class DecoderBlock(nn.Module):
    """x + self-attention(n) + cross-attention(n) + feed_forward(n), with n = norm(x)."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        D, F = config.width, config.inner
        self.layer, self.heads, self.scale = layer, config.heads, config.scales.attention
        self.widths = (D, D, D, D, F, F)
        self.norm = RMSNorm(D, EPSILON)
        self.input = nn.Linear(D, sum(self.widths), bias=False)  # q k v, q of the source, gate, up
        self.key_value = nn.Linear(D, 2 * D, bias=False)  # of the source
        self.output = nn.Linear(2 * D + F, D, bias=False)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        source: tuple[Tensor, Tensor],
        hidden: Tensor | None,
        cache: KeyValues | None,
    ) -> Tensor:
        *projected, gate, up = products(self.norm(x), self.input, self.widths)
        q, k, v, asked = (heads_of(part, self.heads) for part in projected)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        own = attend(q, k, v, Mask(), bias=bias, scale=self.scale)
        read = attend(asked, *source, Mask(causal=False), bias=hidden, scale=self.scale)
        inside = gated_gelu(gate, up)
        y: Tensor = x + product(self.output, merged(own), merged(read), inside)
        return y


class T5(EncoderDecoder):
    """The model of a `T5Config` whose vocabulary is known."""

    checkpointing = False
    block: ClassVar[type[nn.Module]] = DecoderBlock

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config: T5Config = config
        layers, codes = range(config.depth), config.codebooks * config.vocab
        self.embedding = nn.Embedding(codes, config.width)  # one table after the other
        self.encoder_distances = Distances(config, both_ways=True)
        self.encoder = nn.ModuleList(EncoderBlock(config, layer) for layer in layers)
        self.encoder_norm = RMSNorm(config.width, EPSILON)
        self.distances = Distances(config, both_ways=False)
        self.decoder = nn.ModuleList(self.block(config, layer) for layer in layers)
        self.norm = RMSNorm(config.width, EPSILON)
        self.unembedding = nn.Linear(config.width, codes, bias=False)
        self.initialise()

    def initialise(self) -> None:
        """GPT-2's scheme rather than T5's own, so that a comparison is of shapes only.

        embedding, unembedding, matrices, distances   normal, std 0.02
        matrices that write into a residual stream    normal, std 0.02 / sqrt(2 depth)
        norms                                         1
        """
        residual_std = INITIAL_STD / math.sqrt(2 * self.config.depth)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                std = residual_std if name.endswith(".output.weight") else INITIAL_STD
                nn.init.normal_(parameter, std=std)

    def embed(self, tokens: Tensor) -> Tensor:
        """Ids (B, T), or codes (B, T, C), to (B, T, D)."""
        if self.config.codebooks == 1:
            embedded: Tensor = self.embedding(tokens)
            return embedded
        shift = torch.arange(self.config.codebooks, device=tokens.device) * self.config.vocab
        summed: Tensor = self.embedding(tokens + shift).sum(dim=2)
        return summed

    def encode(self, source: Tensor, present: Tensor | None = None) -> Tensor:
        """The encoder's final states (B, S, D) of what stands where `present` (B, S) is true."""
        x = self.embed(source)
        bias = self.encoder_distances(x.shape[1], x.shape[1])
        hidden = hiding(present, bias.dtype)
        bias = bias if hidden is None else bias + hidden
        for block in self.encoder:
            x = self.through(block, x, bias)
        y: Tensor = self.encoder_norm(x)
        return y

    def source_of(self, layer: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values (B, H, S, K) of what the encoder said, for one layer."""
        assert isinstance(layer.key_value, nn.Linear), "every decoder layer reads the source"
        k, v = products(states, layer.key_value, 2 * (self.config.width,))
        return heads_of(k, self.config.heads), heads_of(v, self.config.heads)

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        source: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """What the decoder has been given to its final states (B, T, D); see `EncoderDecoder`."""
        require(documents is None, "documents", "given", "left out: a row is one document")
        require(positions is None, "positions", "given", "left out: they are relative")
        known, present = self._read(cache, source, present)
        past = 0 if cache is None else cache.length
        x = self.embed(tokens)
        new = x.shape[1]
        bias, hidden = self.distances(new, past + new), hiding(present, x.dtype)
        for layer, block in enumerate(self.decoder):
            x = self.through(block, x, bias, known[layer], hidden, cache)
        if cache is not None:
            cache.advance(new)
        y: Tensor = self.norm(x)
        return y

    def _read(
        self, cache: Cache | None, source: Tensor | None, present: Tensor | None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Each layer's keys and values of the source, read now or kept in the cache."""
        assert cache is None or isinstance(cache, Memory), "a cache is made by `new_cache`"
        if cache is not None and cache.source is not None:
            require(source is None, "source", "given", "left out: the cache has read one")
            return list(zip(*cache.source, strict=True)), cache.present
        require(source is not None, "source", None, "given: there is nothing to read")
        assert source is not None
        states = self.encode(source, present)
        known = [self.source_of(layer, states) for layer in self.decoder]
        if cache is not None:
            keys, values = zip(*known, strict=True)
            cache.source, cache.present = (torch.stack(keys), torch.stack(values)), present
        return known, present

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V), or (..., C, V) of several codebooks."""
        logits: Tensor = self.unembedding(hidden) * self.config.scales.logits
        several = self.config.codebooks > 1
        return logits.view(*hidden.shape[:-1], -1, self.config.vocab) if several else logits

    def matrix(self) -> Tensor | None:
        plain = self.config.codebooks == 1 and self.config.scales.logits == 1
        return self.unembedding.weight if plain else None

    def new_cache(self, batch: int, length: int, kind: CacheKind = "static") -> Memory:
        """Raises ValueError for no rows or no tokens, and for any other kind."""
        require(kind == "static", "kind", kind, "'static', behind an encoder")
        config, like = self.config, self.embedding.weight
        sizes = {"batch": batch, "heads": config.heads, "size": config.width // config.heads}
        return Memory.allocate(layers=config.depth, capacity=length, like=like, **sizes)
