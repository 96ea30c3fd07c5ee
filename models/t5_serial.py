"""What is T5 as published? Three sub-blocks in a decoder layer, one after the other.

Version 1.1 (Raffel et al. 2020; Shazeer 2020), without dropout: the comparison for `models/t5.py`,
whose encoder, distances and head it has.

Letters: B batch, T positions of the target, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from models.attention import Mask, attend
from models.cache import KeyValues
from models.layers import RMSNorm, require
from models.t5 import EPSILON, T5, FeedForward, SelfAttention, T5Config, heads_of, merged


@dataclass(frozen=True, kw_only=True)
class SerialT5Config(T5Config):
    """Parameters and FLOPs are those of the parallel one, but for two more norms a layer."""

    name: ClassVar[str] = "t5_serial"
    decoder_norms: ClassVar[int] = 3

    def build(self) -> SerialT5:
        """Raises ValueError while the vocabulary is unknown."""
        require(self.vocab > 0, "vocab", self.vocab, "known (the tokenizer's size) to build T5")
        return SerialT5(self)


class SerialDecoderBlock(nn.Module):
    """x + self-attention(norm(x)), then cross-attention and feed-forward likewise."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        self.heads, self.scale = config.heads, config.scales.attention
        self.attention_norm = RMSNorm(config.width, EPSILON)
        self.attention = SelfAttention(config, layer, causal=True)
        self.cross_norm = RMSNorm(config.width, EPSILON)
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.feed_forward_norm = RMSNorm(config.width, EPSILON)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        source: tuple[Tensor, Tensor],
        hidden: Tensor | None,
        cache: KeyValues | None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), bias, cache)
        asked = heads_of(self.query(self.cross_norm(x)), self.heads)
        read = attend(asked, *source, Mask(causal=False), bias=hidden, scale=self.scale)
        x = x + self.output(merged(read))
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class SerialT5(T5):
    """The model of a `SerialT5Config` whose vocabulary is known."""

    block = SerialDecoderBlock
