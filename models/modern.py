"""What is a strong decoder of today? The reference that a new architecture has to beat.

    queries and keys normed        Henry et al. 2020; Dehghani et al. 2023: no logit can run away
    output projections from zero   each layer starts as the identity (Yang et al. 2022, appendix D)
    squared ReLU (So et al. 2021)  or the gated SiLU of LLaMA
    a head of its own              small models gain from untied embeddings
    sliding windows                all but every n-th layer read `window` tokens (Gemma 2, 2024)
    soft-capped logits             Gemma 2, 2024, section 2
    one more norm                  right behind the embedding

Letters: B batch, T tokens, D width, H query heads, G key/value heads, K = D / H head size, F inner
width of the feed-forward, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from models.decoder import RotaryConfig, RotaryDecoder
from models.layers import Frame, RMSNorm, require, soft_cap, squared_relu
from models.llama import Attention as RotaryAttention
from models.llama import FeedForward as GatedFeedForward


@dataclass(frozen=True, kw_only=True)
class ModernConfig(RotaryConfig):
    """`ffn` left out is 4 width for squared ReLU, 8/3 width for the gated form: the same size."""

    name: ClassVar[str] = "modern"

    gated: bool = False  # gated SiLU in place of squared ReLU
    window: int | None = None  # tokens that a local layer reads, itself included; None: all global
    global_every: int = 4  # each n-th layer, counted from the last, reads everything
    cap: float = 30.0  # of the logits; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.window is None or self.window > 0
        require(fits, "window", self.window, "at least 1 token, or None")
        require(self.global_every > 0, "global_every", self.global_every, "at least 1")
        require(self.cap >= 0, "cap", self.cap, "at least 0 (0: none)")

    def build(self) -> Modern:
        """Raises ValueError while the vocabulary is unknown."""
        return Modern(self)

    @property
    def inner(self) -> int:
        return super().inner if self.gated or self.ffn is not None else 4 * self.width

    @property
    def windows(self) -> tuple[int | None, ...]:
        from_last = range(self.depth - 1, -1, -1)
        return tuple(None if layer % self.global_every == 0 else self.window for layer in from_last)

    def layer_matrices(self, layer: int) -> int:
        return self.attention_matrices + (3 if self.gated else 2) * self.width * self.inner

    def layer_vectors(self, layer: int) -> int:
        return 2 * self.width + 2 * self.size  # norms: the stream twice, queries and keys

    @property
    def final_vectors(self) -> int:
        return 2 * self.width  # behind the embedding, before the head


class Attention(RotaryAttention):
    """LLaMA's, with queries and keys normed before they are turned, and a window of its own."""

    plain = False

    def __init__(self, config: ModernConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.window = config.windows[layer]
        self.query_norm = RMSNorm(config.size, config.norm_epsilon)
        self.key_norm = RMSNorm(config.size, config.norm_epsilon)

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class FeedForward(nn.Module):
    """output(relu(input(x))^2), So et al. 2021 (Primer)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(squared_relu(self.input(x), spent=True))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModernConfig, layer: int) -> None:
        super().__init__()
        inside = GatedFeedForward if config.gated else FeedForward
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward = inside(config.width, config.inner)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        x = x + self.attention(self.attention_norm(x), frame)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class Modern(RotaryDecoder):
    """The model of a `ModernConfig` whose vocabulary is known."""

    config: ModernConfig

    def __init__(self, config: ModernConfig) -> None:
        super().__init__(config, lambda layer: Block(config, layer))
        self.embedding_norm = RMSNorm(config.width, config.norm_epsilon)

    def initialise(self) -> None:
        """As all rotary decoders, but what writes into the residual stream begins at zero."""
        super().initialise()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(".output"):
                nn.init.zeros_(module.weight)

    def embed(self, tokens: Tensor, where: Frame) -> Tensor:
        x: Tensor = self.embedding_norm(self.embedding(tokens))
        return x

    def head(self, hidden: Tensor) -> Tensor:
        logits = super().head(hidden)
        return soft_cap(logits, self.config.cap) if self.config.cap else logits
