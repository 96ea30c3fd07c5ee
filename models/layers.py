"""Which small parts do several models share? Norm, rotary positions, initialisation and checks.

Letters: B batch, T tokens, D width, H heads, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import Mask, starts
from models.cache import Cache, FixedCache, KeyValues
from models.interface import Config, Model
from models.kernels import (
    EXACT,
    GatedGELU,
    RootMeanSquare,
    SoftCap,
    SquaredReLU,
    TanhGELU,
    by_hand,
    constants,
    root_mean_square,
)

INITIAL_STD = 0.02  # GPT-2's (Radford et al. 2019), kept by nearly all decoders since


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raises ValueError that names the field, its value and what is allowed, unless it `holds`."""
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def check_shape(config: Config, width: int, depth: int, heads: int = 1) -> None:
    """Raises ValueError unless these sizes, and the config's own, can make a decoder."""
    require(config.vocab >= 0, "vocab", config.vocab, "at least 0 (0: not known yet)")
    require(config.context > 0, "context", config.context, "at least 1 token")
    require(depth > 0, "depth", depth, "at least 1")
    require(heads > 0, "heads", heads, "at least 1")
    fits = width > 0 and width % heads == 0
    require(fits, "width", width, f"a positive multiple of the {heads} heads")


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """Where the tokens of one forward pass stand, and what they may read."""

    positions: slice | Tensor  # (B, T) or (T,) numbers; a slice picks from a table without a copy
    mask: Mask
    cache: KeyValues | None
    rotation: Tensor | None = None  # (T, 1, K/2) or (B, T, 1, K/2), see `rotate`

    def advance(self, tokens: Tensor) -> None:
        """Call once all layers have read `tokens` (B, T)."""
        if self.cache is not None:
            self.cache.advance(tokens.shape[1])


def frame(
    model: Model,
    tokens: Tensor,
    cache: Cache | None,
    documents: Tensor | None,
    positions: Tensor | None,
    causal: bool = True,
) -> Frame:
    """The frame of tokens (B, T), as `Model.hidden` says.

    Raises ValueError where a sequence would reach beyond the model's context, and for documents or
    positions that do not fit the tokens.
    """
    check_places(model.config, tokens, cache, documents, positions)
    kind = type(cache).__name__
    assert cache is None or isinstance(cache, KeyValues), f"a {kind} holds no keys and values"
    fixed = cache if isinstance(cache, FixedCache) else None
    held = None if fixed is None else fixed.held
    mask = Mask(causal=causal, documents=documents, held=held, backend=model.backend)
    where: slice | Tensor
    if positions is not None:
        where = positions
    elif documents is not None:
        where = restarting(documents)
    elif fixed is not None:
        where = fixed.places(tokens.shape[1])
    else:
        where = span(tokens, cache, model.config.context)
    return Frame(positions=where, mask=mask, cache=cache)


def check_places(
    config: Config,
    tokens: Tensor,
    cache: Cache | None,
    documents: Tensor | None,
    positions: Tensor | None,
) -> None:
    """Raises ValueError where these cannot be what `Model.hidden` asks for."""
    if documents is not None:
        require(cache is None, "cache", "given", "left out where documents are given")
        shape = tuple(documents.shape)
        require(shape == tokens.shape, "the shape of documents", shape, f"{tuple(tokens.shape)}")
    if positions is None:
        span(tokens, cache, config.context)
        return
    fits = positions.shape in (tokens.shape, tokens.shape[1:])
    require(fits, "the shape of positions", tuple(positions.shape), f"{tuple(tokens.shape)}")
    if not torch.compiler.is_compiling() and positions.numel():
        low, high = (int(end) for end in positions.aminmax())
        last = config.context - 1
        require(low >= 0 and high <= last, "positions", f"{low}..{high}", f"in 0..{last}")


def restarting(documents: Tensor) -> Tensor:
    """Positions (B, T) that begin at 0 in each run of equal ids of (B, T): the sawtooth."""
    index = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    return index - torch.where(starts(documents), index, 0).cummax(dim=1).values


def at(table: Tensor, positions: slice | Tensor) -> Tensor:
    """Rows of a trained table (context, D) at the positions: (T, D) or (B, T, D)."""
    return table[positions] if isinstance(positions, slice) else F.embedding(positions, table)


def span(tokens: Tensor, cache: Cache | None, context: int) -> slice:
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
        self.constants = constants(width, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if by_hand(x, weight):
            if not torch.is_grad_enabled():
                return root_mean_square(x, weight, *self.constants)
            y: Tensor = RootMeanSquare.apply(x, weight, self.epsilon)  # type: ignore[no-untyped-call]
            return y
        if x.dtype in (torch.bfloat16, torch.float16):  # torch's fused kernel takes equals only
            weight = weight.to(x.dtype)
        return F.rms_norm(x, weight.shape, weight, self.epsilon)


def products(x: Tensor, linear: nn.Linear, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """linear(x), cut along its last axis into parts of these sizes.

    One product in all, but one for each part where gradients flow on a CPU: there an activation of
    a part that stands apart costs half as much, and the parts' gradients need not be joined again.
    """
    if torch.is_grad_enabled() and by_hand(x):
        return tuple(F.linear(x, weight) for weight in torch.split(linear.weight, list(sizes)))
    y: Tensor = linear(x)
    return y.split_with_sizes(list(sizes), dim=-1)


def product(linear: nn.Linear, *parts: Tensor) -> Tensor:
    """linear of the parts joined along their last axis; see `products` for when they are not."""
    if torch.is_grad_enabled() and by_hand(parts[0]):
        weights = torch.split(linear.weight, [part.shape[-1] for part in parts], dim=1)
        first, *more = map(F.linear, parts, weights)
        return sum(more, first)
    y: Tensor = linear(torch.cat(parts, dim=-1))
    return y


def gelu(x: Tensor, spent: bool = False) -> Tensor:
    """The tanh form of GELU (Hendrycks & Gimpel 2016) of a tensor of any shape.

    `spent`: nobody else needs x, a product's result, and its memory may be used for another thing.
    """
    if by_hand(x):
        y: Tensor = TanhGELU.apply(x.contiguous(), spent)  # type: ignore[no-untyped-call]
        return y
    return F.gelu(x, approximate="tanh")


def gated_gelu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up, of one shape (Shazeer 2020); the gate is `spent`, as in `gelu`."""
    if by_hand(gate) and torch.is_grad_enabled():
        y: Tensor = GatedGELU.apply(gate.contiguous(), up.contiguous())  # type: ignore[no-untyped-call]
        return y
    return gelu(gate, spent=True) * up


def squared_relu(x: Tensor, spent: bool = False) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer) of a tensor of any shape; `spent` as in `gelu`."""
    if by_hand(x):
        y: Tensor = SquaredReLU.apply(x, spent)  # type: ignore[no-untyped-call]
        return y
    return F.relu(x).square()


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary positions are stretched over contexts `factor` times as long as trained for.

    linear   every position is divided by the factor (Chen et al. 2023, position interpolation)
    ntk      theta grows, so that only the slowest pair is slowed by the whole factor (bloc97 2023)
    yarn     pairs that turn often in the old context stay, those that turn less than once are
             slowed, with a ramp between; attention is sharpened (Peng et al. 2023, section 3)
    """

    kind: Literal["linear", "ntk", "yarn"] = "linear"
    factor: float = 1.0  # 1 leaves the positions as they are, whatever the kind
    original: int = 0  # the context trained for, in tokens; yarn only
    fast: float = 32.0  # yarn: pairs that turn at least as often in it stay
    slow: float = 1.0  # yarn: pairs that turn at most as often are slowed by the factor

    def __post_init__(self) -> None:
        kinds = ("linear", "ntk", "yarn")
        require(self.kind in kinds, "rope_scaling.kind", self.kind, f"one of {', '.join(kinds)}")
        require(self.factor >= 1, "rope_scaling.factor", self.factor, "at least 1")
        known = self.original > 0 or self.kind != "yarn"
        require(known, "rope_scaling.original", self.original, "above 0 for yarn")
        require(self.fast > self.slow > 0, "rope_scaling.fast", self.fast, "above slow, above 0")

    def frequencies(self, size: int, theta: float) -> Tensor:
        """Radians per token of each pair of a head: (K/2,) in float64."""
        if self.kind == "ntk":
            theta *= self.factor ** (size / max(1, size - 2))
        usual = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        if self.kind == "linear":
            return usual / self.factor
        if self.kind == "yarn":
            slowed = self._ramp(size, theta)
            return usual / self.factor * slowed + usual * (1 - slowed)
        return usual

    def _ramp(self, size: int, theta: float) -> Tensor:
        """How much each pair is slowed, 0 to 1: linear in its number, as in the authors' code."""

        def pair(turns: float) -> float:
            wavelength = self.original / (turns * 2 * math.pi)
            return size * math.log(wavelength) / (2 * math.log(theta))

        low = max(0, math.floor(pair(self.fast)))
        high = min(size - 1, math.ceil(pair(self.slow)))
        numbers = torch.arange(size // 2, dtype=torch.float64)
        return ((numbers - low) / max(high - low, 0.001)).clamp(0, 1)

    @property
    def sharpening(self) -> float:
        """What queries and keys are multiplied by, each."""
        return 0.1 * math.log(self.factor) + 1 if self.kind == "yarn" else 1.0


UNSCALED = RopeScaling()


def rotary_table(context: int, size: int, theta: float, scaling: RopeScaling = UNSCALED) -> Tensor:
    """Cosine and sine (context, 1, K/2, 2) of the angles t * theta^(-2i / K), in float32.

    Su et al. 2021 (RoFormer), eq. 15; pair i is made of the neighbours 2i and 2i + 1, as there and
    in Meta's LLaMA. Weights on the Hugging Face hub pair i with i + K/2: the same model with the
    rows of its query and key matrices in another order.
    """
    frequencies = scaling.frequencies(size, theta)
    angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
    table = torch.stack((angles.cos(), angles.sin()), dim=-1).unsqueeze(1)
    return (table * scaling.sharpening).float()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys (B, T, H, K) turned by the angles of their positions: (T, 1, K/2), or
    (B, T, 1, K/2) where rows differ.

    As complex numbers, each pair is turned by one product, in one pass: a third of the time of
    sines and cosines apart on a CPU. A compiler fuses those, but not complex numbers: it is given
    the real table (T, 1, K/2, 2).
    """
    exact = x if x.dtype in EXACT else x.float()
    pairs = exact.view(*x.shape[:-1], -1, 2)
    if turns.is_complex():
        if turns.dim() == 3 and torch.is_grad_enabled():  # once for each head: longer inner loops
            turns = turns.expand(-1, x.shape[2], -1).contiguous()
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    else:
        (a, b), (cosine, sine) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack((a * cosine - b * sine, a * sine + b * cosine), dim=-1)
    y = turned.flatten(-2)
    return y if exact is x else y.to(x.dtype)


def attention_scale(config: Config, size: int) -> float | None:
    """What `attend` takes as scale for heads of `size` numbers; None is the usual 1 / sqrt K."""
    factor = config.scales.attention
    return None if factor == 1 else factor / math.sqrt(size)


def soft_cap(logits: Tensor, limit: float) -> Tensor:
    """limit * tanh(logits / limit): logits stay within the limit (Gemma 2, 2024, section 2)."""
    if by_hand(logits):
        y: Tensor = SoftCap.apply(logits.contiguous(), limit)  # type: ignore[no-untyped-call]
        return y
    return limit * torch.tanh(logits / limit)
