"""What is a mixture of experts? A decoder in which each token picks a few of many feed-forwards.

In alternating layers (Lepikhin et al. 2021) a router gives each token to its best `top` of
`experts` gated feed-forwards (Shazeer et al. 2017), so that a token passes through few of the
parameters. Two terms keep the router useful: the load-balancing loss of Switch (Fedus et al. 2022,
eq. 4) and the router z-loss of ST-MoE (Zoph et al. 2022, eq. 5). Attention is multi-query (Shazeer
2019); the other layers are LLaMA's.

Letters: B batch, T tokens, N = B T tokens, D width, F inner width, E experts, P = N top picks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.decoder import RotaryConfig, RotaryDecoder
from models.interface import Role
from models.layers import INITIAL_STD, Frame, RMSNorm, require
from models.llama import Attention, FeedForward


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How tokens find their experts. What is random or dropped is so in training only."""

    experts: int = 8  # E
    top: int = 2  # experts per token
    every: int = 2  # each n-th layer has experts, the last of each n
    noise: float = 1.0  # E times the deviation of what is added to the router's logits
    balance: float = 0.01  # weight of the load-balancing loss
    z: float = 0.001  # weight of the router z-loss
    dropout: float = 0.0  # of the numbers inside an expert (Fedus et al. 2022, section 2.4)
    capacity: float = 0.0  # an expert takes at most this times its fair share; 0: all that come

    def __post_init__(self) -> None:
        require(self.experts > 0, "routing.experts", self.experts, "at least 1")
        fits = 0 < self.top <= self.experts
        require(fits, "routing.top", self.top, f"from 1 to the {self.experts} experts")
        require(self.every > 0, "routing.every", self.every, "at least 1")
        require(0 <= self.dropout < 1, "routing.dropout", self.dropout, "in [0, 1)")
        for name in ("noise", "balance", "z", "capacity"):
            value = getattr(self, name)
            require(value >= 0, f"routing.{name}", value, "at least 0")


ROUTING = Routing()


@dataclass(frozen=True, kw_only=True)
class MoEConfig(RotaryConfig):
    """`kv_heads` left out is 1 (multi-query). An expert is as wide inside as a dense layer."""

    name: ClassVar[str] = "moe"

    routing: Routing = ROUTING

    def build(self) -> MoE:
        """Raises ValueError while the vocabulary is unknown."""
        return MoE(self)

    @property
    def key_value_heads(self) -> int:
        return 1 if self.kv_heads is None else self.kv_heads

    def routed(self, layer: int) -> bool:
        """Has this layer experts?"""
        return layer % self.routing.every == self.routing.every - 1

    def layer_matrices(self, layer: int) -> int:
        dense = self.attention_matrices + 3 * self.width * self.inner
        if not self.routed(layer):
            return dense
        more = (self.routing.top - 1) * 3 * self.width * self.inner
        return dense + more + self.width * self.routing.experts

    def layer_idle(self, layer: int) -> int:
        idle = self.routing.experts - self.routing.top
        return idle * 3 * self.width * self.inner if self.routed(layer) else 0

    def layer_vectors(self, layer: int) -> int:
        return 2 * self.width


def grouped_product(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """x (P, D), sorted by expert, times each expert's matrix (E, D, F): (P, F).

    The first counts[0] rows go through the first matrix, and so on: counts (E,) sums to P. Under
    autocast in its precision, as other products are: torch's own kernel does not see to that, and
    is one kernel for all experts in bfloat16 only.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    x, weights = x.to(dtype), weights.to(dtype)
    if torch.compiler.is_compiling() and dtype != torch.bfloat16:
        return _untraced(x, weights, counts)
    return _grouped(x, weights, counts)


def _grouped(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    size = x.element_size()
    aligned = all(n * size % 16 == 0 for n in weights.shape[1:])  # as torch's kernel wants it
    if aligned and x.dtype in (torch.float32, torch.bfloat16, torch.float16):
        return F.grouped_mm(x, weights, offs=counts.cumsum(0).int())
    parts = torch.split(x, counts.tolist())
    return torch.cat([part @ own for part, own in zip(parts, weights, strict=True)])


def _untraced(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """In a compiled model: torch can trace its kernel in bfloat16 only."""
    global _outside
    if _outside is None:  # made late: it imports torch's compiler, a second of every process
        _outside = torch.compiler.disable(_grouped)  # type: ignore[no-untyped-call]
    return _outside(x, weights, counts)


_outside: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


class Router(nn.Module):
    """Which experts read a token, and how much each counts."""

    def __init__(self, width: int, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.choose = nn.Linear(width, routing.experts, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, D) to the shares (N, top), the experts (N, top), and the logits (N, E).

        Shares sum to 1 (Jiang et al. 2024, Mixtral), but one expert alone counts with its
        probability (Fedus et al. 2022, eq. 2). The noise is that of Riquelme et al. 2021. Float32
        throughout: in bfloat16 the choice itself would be a matter of rounding (Fedus et al. 2022,
        section 2.4).
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.choose.weight.float())
        disturbed = logits
        if self.training and self.routing.noise:
            disturbed = logits + self.routing.noise / self.routing.experts * torch.randn_like(
                logits
            )
        best, experts = disturbed.topk(self.routing.top, dim=-1)
        if self.routing.top == 1:  # a share of 1 would tell the router nothing
            best = best - disturbed.logsumexp(dim=-1, keepdim=True)
            return best.exp(), experts, logits
        return best.softmax(dim=-1), experts, logits


class Experts(nn.Module):
    """E gated feed-forwards, output(silu(gate(x)) * up(x)), each for the tokens routed to it."""

    def __init__(self, width: int, inner: int, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.router = Router(width, routing)
        self.gate_up = nn.Parameter(torch.empty(routing.experts, width, 2 * inner))
        self.output = nn.Parameter(torch.empty(routing.experts, inner, width))
        self.losses: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        flat = x.flatten(0, 1)
        shares, experts, logits = self.router(flat)
        shares, dropped = self.limit(shares, experts)
        picks = experts.flatten().argsort(stable=True)  # (P,), sorted by expert
        tokens = picks // self.routing.top
        counts = torch.zeros_like(logits[0], dtype=torch.long).scatter_add(
            0, experts.flatten(), torch.ones_like(picks)
        )
        written = self.inside(flat[tokens], counts)
        weighted = written * shares.flatten()[picks].unsqueeze(1).to(written.dtype)
        y = torch.zeros_like(flat, dtype=written.dtype).index_add(0, tokens, weighted)
        self.account(logits, counts, dropped)
        return y.view_as(x)

    def inside(self, x: Tensor, counts: Tensor) -> Tensor:
        """Each expert's feed-forward of its tokens: (P, D) to (P, D)."""
        gate, up = grouped_product(x, self.gate_up, counts).chunk(2, dim=-1)
        inner = F.dropout(F.silu(gate) * up, self.routing.dropout, self.training)
        return grouped_product(inner, self.output, counts)

    def limit(self, shares: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Shares (N, top) of picks beyond an expert's capacity become 0: the token passes by.

        Earlier tokens go first, and all first choices before any second. A generated token must not
        depend on its batch mates, so that only training drops. Also the share of picks dropped.
        """
        routing = self.routing
        if not (self.training and routing.capacity):
            return shares, shares.new_zeros(())
        order = experts.T.flatten()  # all first choices, then all second ones
        rank = F.one_hot(order, routing.experts).cumsum(dim=0).gather(1, order.unsqueeze(1))
        room = math.ceil(routing.capacity * experts.numel() / routing.experts)
        kept = (rank <= room).view(routing.top, -1).T
        return shares * kept, 1 - kept.float().mean()

    def account(self, logits: Tensor, counts: Tensor, dropped: Tensor) -> None:
        """The two losses and three measures of this pass, kept until the next."""
        p = logits.softmax(dim=-1)
        used = counts / counts.sum()
        mean = p.mean(dim=0)
        routing = self.routing
        self.losses = {
            "balance": routing.balance * routing.experts * (used * mean).sum(),
            "router_z": routing.z * logits.logsumexp(dim=-1).square().mean(),
        }
        with torch.no_grad():
            fair = used.clamp(max=1 / routing.experts).sum()  # 1 if all experts are used alike
            entropy = torch.special.entr(p).sum(dim=-1).mean()
        self.seen = {"utilisation": fair, "entropy": entropy, "dropped": dropped.detach()}


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), which may be many experts."""

    def __init__(self, config: MoEConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward: nn.Module = (
            Experts(config.width, config.inner, config.routing)
            if config.routed(layer)
            else FeedForward(config.width, config.inner)
        )

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        x = x + self.attention(self.attention_norm(x), frame)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class MoE(RotaryDecoder):
    """The model of a `MoEConfig` whose vocabulary is known."""

    config: MoEConfig

    def __init__(self, config: MoEConfig) -> None:
        super().__init__(config, lambda layer: Block(config, layer))

    def initialise(self) -> None:
        """As all rotary decoders; an expert as a dense feed-forward."""
        super().initialise()
        for experts in self.experts():
            nn.init.normal_(experts.gate_up, std=INITIAL_STD)
            nn.init.normal_(experts.output, std=INITIAL_STD / math.sqrt(2 * self.config.depth))

    def experts(self) -> list[Experts]:
        """The layers with experts, in order."""
        return [module for module in self.modules() if isinstance(module, Experts)]

    def roles(self) -> dict[str, Role]:
        """A router is a head: from the width to a number of experts that does not grow with it."""
        return {
            name: "head" if ".router." in name else role for name, role in super().roles().items()
        }

    def auxiliary(self) -> dict[str, Tensor]:
        return self._mean([layer.losses for layer in self.experts()] if self.training else [])

    def measures(self) -> dict[str, Tensor]:
        """`utilisation`: the share of picks that equal use of all experts would leave in place, 1
        at best and 1 / E at worst; `entropy` of a token's choice in nats, ln E at most; `dropped`:
        the share of picks beyond capacity. Means over the layers with experts.
        """
        seen = self._mean([layer.seen for layer in self.experts()])
        return {f"router/{name}": value for name, value in seen.items()}

    @staticmethod
    def _mean(layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        names = layers[0] if layers else {}
        return {name: torch.stack([layer[name] for layer in layers]).mean() for name in names}
