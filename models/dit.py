"""What is a diffusion transformer for text? A denoiser that is told how much is hidden (adaLN).

The network of Peebles & Xie 2023 (DiT) with rotary positions, as Lou et al. 2024 (SEDD) and Sahoo
et al. 2024 (MDLM) use it: a small network turns the time into a shift, a scale and a gate for each
sub-block. All gates start at 0, so that every block starts as the identity (adaLN-zero).

Letters: B batch, T tokens, D width, V vocabulary, whose last id is the blank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cache import Cache
from models.diffusion import Diffusion, DiffusionConfig
from models.interface import FlopCount, ParameterCount
from models.layers import Frame, frame, require
from models.llama import Attention, FeedForward

WAVES = 256  # numbers in the sinusoidal code of a time, as published
SPAN = 1000.0  # times are scaled to 0..1000 before they are coded, as diffusion steps once were


@dataclass(frozen=True, kw_only=True)
class DiTConfig(DiffusionConfig):
    """The shape of a LLaMA, plus the network that the time goes through."""

    name: ClassVar[str] = "dit"

    def build(self) -> DiT:
        """Raises ValueError while the vocabulary is unknown."""
        require(self.vocab > 0, "vocab", self.vocab, "known (the tokenizer's size, and the blank)")
        return DiT(self)

    def parameters(self) -> ParameterCount:
        D, plain = self.width, super().parameters()
        norms = (2 * self.depth + 1) * D  # LLaMA's norms have weights, these do not
        time = self._time_matrices() + D + D + self.depth * 6 * D + 2 * D  # and biases
        return replace(
            plain,
            all=plain.all - norms + time,
            active=plain.active - norms + time,
            without_input_embedding=plain.without_input_embedding - norms + time,
            without_embeddings=plain.without_embeddings - norms + time,
        )

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        """The time's network runs once for each row; its share of a token is rounded up."""
        T, plain = self.context if context is None else context, super().flops_per_token(context)
        return replace(plain, body=plain.body - -2 * self._time_matrices() // T)

    def _time_matrices(self) -> int:
        D = self.width
        return WAVES * D + D * D + self.depth * 6 * D * D + 2 * D * D


class TimeCode(nn.Module):
    """A time in [0, 1] to a vector: sines and cosines, then two layers (Peebles & Xie 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(WAVES, width)
        self.inner = nn.Linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        """(B,) to (B, D)."""
        half = torch.arange(WAVES // 2, device=times.device, dtype=torch.float32)
        angles = SPAN * times.float()[:, None] * torch.exp(-math.log(10_000.0) / len(half) * half)
        waves = torch.cat((angles.cos(), angles.sin()), dim=1).to(self.input.weight.dtype)
        code: Tensor = F.silu(self.inner(F.silu(self.input(waves))))
        return code


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) (1 + scale) + shift, with x (B, T, D) and one shift and scale (B, D) per row."""
    normed = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(shift.unsqueeze(1), normed, 1 + scale.unsqueeze(1))


class TimedBlock(nn.Module):
    """x + gate attention(norm(x)), then x + gate feed_forward(norm(x)), under the time's code."""

    def __init__(self, config: DiTConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config.width, config.inner)
        self.modulation = nn.Linear(config.width, 6 * config.width)

    def forward(self, x: Tensor, code: Tensor, frame: Frame) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(code).chunk(6, dim=1)
        mixed = self.attention(modulate(x, shift, scale), frame)
        x = x + gate.unsqueeze(1) * mixed
        y: Tensor = x + gate_2.unsqueeze(1) * self.feed_forward(modulate(x, shift_2, scale_2))
        return y


class DiT(Diffusion):
    """The model of a `DiTConfig` whose vocabulary is known."""

    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        del self.norm
        self.blocks = nn.ModuleList(TimedBlock(config, layer) for layer in range(config.depth))
        self.time = TimeCode(config.width)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.initialise()
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for modulated in (*self.blocks, self):
            nn.init.zeros_(modulated.modulation.weight)

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D); see `Denoiser.hidden`."""
        require(cache is None, "cache", "given", "left out: every token reads every other one")
        where = self.prepared(frame(self, tokens, None, documents, positions, causal=False))
        if times is None:
            times = (tokens == self.config.vocab - 1).float().mean(dim=1)
        code, x = self.time(times), self.embed(tokens, where)
        for block in self.blocks:
            x = self.through(block, x, code, where)
        shift, scale = self.modulation(code).chunk(2, dim=1)
        return modulate(x, shift, scale)
