"""Which small parts do several models share? Norm, rotary positions, initialisation and checks.

Letters: B batch, T tokens, D width, H heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cache import KeyValueCache
from models.interface import Config
from models.kernels import RootMeanSquare, TanhGELU, by_hand

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


def rotary_table(context: int, size: int, theta: float) -> Tensor:
    """Cosine and sine (context, 1, K/2, 2) of the angles t * theta^(-2i / K), in float32.

    Su et al. 2021 (RoFormer), eq. 15; pair i is made of the neighbours 2i and 2i + 1, as there and
    in Meta's LLaMA. Weights on the Hugging Face hub pair i with i + K/2: the same model with the
    rows of its query and key matrices in another order.
    """
    frequencies = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).unsqueeze(1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Queries or keys (B, T, H, K) turned by the angles of their positions (T, 1, K/2, 2).

    As complex numbers, each pair is turned by one product, in one pass: a third of the time of
    sines and cosines apart on a CPU. A compiler fuses those, but not complex numbers.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    pairs, turns = x.to(exact).view(*x.shape[:-1], -1, 2), table.to(exact)
    if torch.compiler.is_compiling():
        (a, b), (cosine, sine) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack((a * cosine - b * sine, a * sine + b * cosine), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).to(x.dtype)
