"""Which small parts do several models share? Norm, rotary positions, initialisation and checks.

Letters: B batch, T tokens, D width, H heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cache import KeyValueCache
from models.interface import Config
from models.kernels import GatedSiLU, RootMeanSquare, TanhGELU, by_hand

INITIAL_STD = 0.02  # GPT-2's (Radford et al. 2019), kept by nearly all decoders since


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raises ValueError that names the field, its value and what is allowed, unless it `holds`."""
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def check_shape(config: Config, width: int, depth: int, heads: int) -> None:
    """Raises ValueError unless these sizes, and the config's own, can make a decoder."""
    require(config.vocab >= 0, "vocab", config.vocab, "at least 0 (0: not known yet)")
    require(config.context > 0, "context", config.context, "at least 1 token")
    require(depth > 0, "depth", depth, "at least 1")
    require(heads > 0, "heads", heads, "at least 1")
    fits = width > 0 and width % heads == 0
    require(fits, "width", width, f"a positive multiple of the {heads} heads")


def span(tokens: Tensor, cache: KeyValueCache | None, context: int) -> slice:
    """The positions of tokens (B, T) that follow what the cache holds.

    Raises ValueError where they would reach beyond the model's context.
    """
    start = 0 if cache is None else cache.length
    end = start + tokens.shape[1]
    if end > context:
        raise ValueError(
            f"the sequence is {end} tokens long ({start} of them cached); "
            f"the model's context is {context} tokens"
        )
    return slice(start, end)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        if by_hand(x):
            y: Tensor = RootMeanSquare.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
            return y
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks & Gimpel 2016) of a tensor of any shape."""
    if by_hand(x):
        y: Tensor = TanhGELU.apply(x)  # type: ignore[no-untyped-call]
        return y
    return F.gelu(x, approximate="tanh")


def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of (..., 2F), the gate first, to (..., F) (Shazeer 2020)."""
    if by_hand(gate_up):
        y: Tensor = GatedSiLU.apply(gate_up)  # type: ignore[no-untyped-call]
        return y
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotary_table(context: int, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (context, 1, K) of the angles t * theta^(-2i / K), in float32.

    Su et al. 2021 (RoFormer), eq. 15; pair i is made of components i and i + K/2, the layout in
    which LLaMA weights are published on the Hugging Face hub. The first half of the sines carries
    the minus sign of the rotation, see `rotate`.
    """
    frequencies = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
    cosines = torch.cat((angles.cos(), angles.cos()), dim=-1)
    sines = torch.cat((-angles.sin(), angles.sin()), dim=-1)
    return cosines.unsqueeze(1).float(), sines.unsqueeze(1).float()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries or keys (B, T, H, K) turned by their positions' angles (T, 1, K)."""
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, dims=-1), sines)
