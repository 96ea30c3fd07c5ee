"""How do weights move otherwise than by AdamW? Lion; and Muon for the matrices, AdamW for the rest.

Muon is torch's own; the two optimizers it takes to train a whole model are one here (`Joined`), so
that loop and checkpoints know of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2.

    The update is the sign of an average of gradient and momentum, so that every weight moves by the
    learning rate: it wants a rate 3 to 10 times smaller than AdamW's, and as much more decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "no loss is computed twice"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._move(params, group)
        return None

    def _move(self, params: list[Tensor], group: dict[str, Any]) -> None:
        rate, (now, memory) = group["lr"], group["betas"]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [_own(self.state[p]["momentum"]) for p in params]
        grads = [_own(p.grad) for p in params if p.grad is not None]
        params = [_own(p) for p in params]
        moves = torch._foreach_lerp(momenta, grads, 1 - now)
        torch._foreach_sign_(moves)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        torch._foreach_add_(params, moves, alpha=-rate)
        torch._foreach_lerp_(momenta, grads, 1 - memory)


class ShardedMuon(torch.optim.Muon):
    """torch's Muon for matrices in shards. What is to be made orthogonal must be whole: each matrix
    comes together on every rank in turn, which then computes the same as all others, as every rank
    of DDP does too; momenta and weights stay where they are."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        from torch.optim import _muon as own

        assert closure is None, "no loss is computed twice"
        for group in self.param_groups:
            params: list[Any] = []  # DTensors, all of them
            grads: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, params, grads, momenta)
            for p, grad, momentum in zip(params, grads, momenta, strict=True):
                momentum.lerp_(grad, 1 - group["momentum"])
                update: Any = grad.lerp(momentum, group["momentum"])
                moved = own._zeropower_via_newtonschulz(
                    update.full_tensor(), group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rate = own._adjust_lr(group["lr"], group["adjust_lr_fn"], p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                _own(p).add_(_shard_of(moved, p), alpha=-rate)


def _own(tensor: Tensor) -> Tensor:
    """What this rank holds of it: the memory itself, not a copy."""
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard


def _shard_of(whole: Tensor, like: Any) -> Tensor:
    """The part of it that this rank holds of `like`."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * like.device_mesh.ndim
    replicas = DTensor.from_local(whole, like.device_mesh, everywhere, run_check=False)
    part: Tensor = replicas.redistribute(placements=like.placements).to_local()
    return part


class Joined(torch.optim.Optimizer):
    """Several optimizers over different parameters as one, their states one behind the other."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        # The very groups of the parts: a rate that is set here is theirs.
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Each takes its step."""
        assert closure is None, "no loss is computed twice"
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As of one optimizer: parameters are numbered through."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        start = 0
        for part in self.parts:
            own = part.state_dict()
            state |= {start + index: values for index, values in own["state"].items()}
            groups += [
                {**group, "params": [start + index for index in group["params"]]}
                for group in own["param_groups"]
            ]
            start += sum(len(group["params"]) for group in own["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        start = 0
        for part in self.parts:
            own = part.state_dict()
            count = sum(len(group["params"]) for group in own["param_groups"])
            states = state_dict["state"]
            mine = {i - start: states[i] for i in range(start, start + count) if i in states}
            part.load_state_dict({"state": mine, "param_groups": own["param_groups"]})
            start += count
        self.param_groups = [group for part in self.parts for group in part.param_groups]
