"""Which process am I, on which device, and how do the processes of one run agree?

Whoever starts the processes (Ray Train, torchrun, a test) initialises torch.distributed; this file
only uses it. A run of one process never touches it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among the `world` processes of a run, and the device it computes on."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Exactly one process of a run writes files and reports."""
        return self.rank == 0


def wrap(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The module to call in training: gradients are averaged over the ranks, if several."""
    if ranks.world == 1:
        return model
    ids = [torch.device(ranks.device)] if ranks.device.startswith("cuda") else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def mean(value: Tensor, ranks: Ranks) -> float:
    """The mean of a scalar over the ranks; each rank holds an equal share of the batch."""
    if ranks.world > 1:
        value = value.detach().clone()
        distributed.all_reduce(value)
        value /= ranks.world
    return float(value)


def agree(flag: bool, ranks: Ranks) -> bool:
    """Rank 0's answer, on every rank: clocks and stop files differ between machines."""
    if ranks.world == 1:
        return flag
    answer = torch.tensor([int(flag)], device=ranks.device)
    distributed.broadcast(answer, src=0)
    return bool(answer.item())
