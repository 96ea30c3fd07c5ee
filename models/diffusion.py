"""What is a masked-diffusion language model? LLaMA read both ways, which fills in hidden tokens.

The network of Nie et al. 2025 (LLaDA): the layers of LLaMA without the causal mask. It is not told
how many tokens are hidden: what it may say follows from the tokens it sees (Ou et al. 2024,
theorem 1). `models/dit.py` is the one that is told.

Letters: B batch, T tokens, D width, V vocabulary, whose last id is the blank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from models.cache import Cache
from models.interface import Denoiser, DenoiserConfig
from models.layers import frame, require
from models.llama import Llama, LlamaConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(DenoiserConfig, LlamaConfig):
    """The shape of a LLaMA: parameters and FLOPs per forward pass are the same."""

    name: ClassVar[str] = "diffusion"

    def build(self) -> Diffusion:
        """Raises ValueError while the vocabulary is unknown."""
        require(self.vocab > 0, "vocab", self.vocab, "known (the tokenizer's size, and the blank)")
        return Diffusion(self)


class Diffusion(Denoiser, Llama):
    """The model of a `DiffusionConfig` whose vocabulary is known."""

    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig) -> None:
        Llama.__init__(self, config)

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D); see `Denoiser.hidden`.

        Raises ValueError where the sequence is longer than the context, and for a cache.
        """
        require(cache is None, "cache", "given", "left out: every token reads every other one")
        where = self.prepared(frame(self, tokens, None, documents, positions, causal=False))
        x = self.embed(tokens, where)
        for block in self.blocks:
            x = self.through(block, x, where)
        y: Tensor = self.norm(x)
        return y
