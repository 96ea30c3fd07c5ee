"""Which process am I, on which device, and how do the processes of one run agree?

Whoever starts the processes (Ray Train, torchrun, a test) initialises torch.distributed; this file
only uses it. A run of one process never touches it.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models.interface import Model

Item = TypeVar("Item")
BUCKET = 25.0  # torch's own: large enough to fill a link, small enough that the first leaves early


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
    """The module to call in training: gradients are averaged over the ranks, if several, in buckets
    of `BUCKET` megabytes that travel while the backward pass goes on. Shards do it by themselves.
    """
    if ranks.world == 1 or is_sharded(model):
        return model
    ids = [torch.device(ranks.device)] if ranks.device.startswith("cuda") else None
    return DistributedDataParallel(
        model, device_ids=ids, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether `sharding` has cut it up. Its module takes 0.6 s of CPU time to import, which runs
    that are whole need not pay: a model is not of its kind before somebody has imported it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def bare(model: nn.Module) -> Model:
    """The model itself, out of what `wrap` and torch.compile put around it."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    inner = getattr(inner, "_orig_mod", inner)  # of what torch.compile made
    assert isinstance(inner, Model)
    return inner


def reduced(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around a part of a step: gradients travel between the ranks with its last part alone; those
    of shards with every part, since no rank has room for all of them."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[object] = model.no_sync()
    return waiting


def equal_share(count: Tensor | int, ranks: Ranks) -> Tensor | int:
    """What each rank must divide its sum by, so that the ranks' mean is the mean of the batch.

    A plain number is the same on every rank. A tensor is what this rank happens to predict: ranks
    may predict unequally many tokens, and their mean over the batch is then not the mean of means.
    """
    if isinstance(count, int) or ranks.world == 1:
        return count
    total = count.detach().clone()
    distributed.all_reduce(total)
    return total / ranks.world


def mean(value: Tensor, ranks: Ranks) -> float:
    """The mean of a scalar over the ranks; each rank holds an equal share of the batch."""
    if ranks.world > 1:
        value = value.detach().clone()
        distributed.all_reduce(value)
        value /= ranks.world
    return float(value)


def least(value: int, ranks: Ranks) -> int:
    """The smallest of the ranks' numbers, on every rank."""
    if ranks.world == 1:
        return value
    answer = torch.tensor([value], device=ranks.device)
    distributed.all_reduce(answer, op=distributed.ReduceOp.MIN)
    return int(answer.item())


def agree(flag: bool, ranks: Ranks) -> bool:
    """Rank 0's answer, on every rank: clocks and stop files differ between machines."""
    if ranks.world == 1:
        return flag
    answer = torch.tensor([int(flag)], device=ranks.device)
    distributed.broadcast(answer, src=0)
    return bool(answer.item())


def gather(items: list[Item], ranks: Ranks) -> list[Item] | None:
    """Everybody's items, in order of ranks, on rank 0; None on the others. Between workers of one
    run only: they travel as pickles."""
    if ranks.world == 1:
        return items
    parts: list[list[Item]] = [[] for _ in range(ranks.world)]
    distributed.gather_object(items, parts if ranks.leads else None, dst=0)
    return [item for part in parts for item in part] if ranks.leads else None
