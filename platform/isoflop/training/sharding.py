"""How is a model trained that one device cannot hold? In shards, one on every rank (FSDP2).

Weights, gradients and the optimizer's numbers are split over the ranks; the weights of a decoder's
layer are brought together while it computes and let go after (Zhao et al. 2023, "PyTorch FSDP"),
those of other models all at once. The loss is that of DDP, to rounding. A checkpoint is the one
that a single process would write: the leading rank gathers it in its machine's memory, and a run
may go on sharded or not. Where one goes on, each rank reads it whole before it keeps its shard.

Every rank must call the model equally often. What does not, as rollouts, which ranks share out
unevenly, is asked of a `copy` of the whole model; a few options are refused.

torch's shards take half a second to import, which every process would pay: only what makes them
does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isoflop.run import Run
from isoflop.training import optimizer
from isoflop.training.distributed import Ranks, least
from isoflop.training.means import Means
from isoflop.training.memory import state
from models.interface import Model

FITS = 0.7  # of a GPU: weights, gradients and moments must leave room for what passes through


def wanted(run: Run, ranks: Ranks, means: Means) -> bool:
    """Is this run to be sharded? "auto": where several GPUs have it, and one cannot hold its state.

    Raises ValueError for a run that cannot be.
    """
    if means.shard == "off" or (ranks.world == 1 and means.shard == "auto"):
        return False
    if means.shard == "auto":
        if not ranks.device.startswith("cuda"):
            return False
        total = torch.cuda.get_device_properties(ranks.device).total_memory
        if state(run) <= FITS * total:
            return False
    refuse(run, ranks.world, means)
    return True


def refuse(run: Run, world: int, means: Means) -> None:
    """Raise ValueError, that names it, for what does not go with shards."""
    for holds, name, value, allowed in (
        (world > 1, "--workers", world, "at least 2"),
        (means.compile != "on", "--compile", means.compile, "auto or off"),
        (means.attention != "flex", "--attention", means.attention, "sdpa or flash"),
        (not run.evaluation.noise_scale, "evaluation.noise_scale", True, "False"),
    ):
        if not holds:
            raise ValueError(f"{name} is {value}; for a model in shards it must be {allowed}")


def shard(
    model: Model,
    optim: torch.optim.Optimizer,
    averaged: Model | None,
    run: Run,
    ranks: Ranks,
) -> torch.optim.Optimizer:
    """Cut up the model, and its average if it has one, which are whole on the CPU: this rank's
    shards are on its device then. An optimizer of these, as far as that of the whole was."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    moments = optim.state_dict()["state"]
    mesh = init_device_mesh(ranks.device.split(":")[0], (ranks.world,))
    for each in (model, averaged) if averaged else (model,):
        for layer in getattr(each, "blocks", ()):  # of a decoder, which calls each as a whole
            fully_shard(layer, mesh=mesh)
        fully_shard(each, mesh=mesh)
    made = optimizer.build(model, run.optimizer, run.parametrisation)
    parameters = [p for group in made.param_groups for p in group["params"]]
    values = made.state_dict()
    values["state"] = {
        index: {name: _like(value, parameters[index]) for name, value in held.items()}
        for index, held in moments.items()
    }
    made.load_state_dict(values)
    return made


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """An optimizer's whole tensor, in shards as its parameter is; a count of steps as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if value.shape != parameter.shape or not isinstance(parameter, DTensor) or value.ndim == 0:
        return value
    place = value.to(parameter.device)
    return distribute_tensor(place, parameter.device_mesh, parameter.placements)


def gathered(
    run: Run, model: Model, optim: torch.optim.Optimizer | None, ranks: Ranks
) -> tuple[Model, torch.optim.Optimizer | None]:
    """Both whole again, on the leading rank's CPU, for a checkpoint. All ranks must call it; what
    the others get is empty."""
    weights = {name: _whole(value, ranks) for name, value in model.state_dict().items()}
    held = {} if optim is None else optim.state_dict()["state"]
    moments = {
        index: {name: _whole(value, ranks) for name, value in own.items()}
        for index, own in held.items()
    }
    with torch.device("meta"):  # no weights are drawn: all are given
        whole = run.model.build()
    if not ranks.leads:
        return whole, None
    whole.load_state_dict(weights, assign=True)
    if optim is None:
        return whole, None
    made = optimizer.build(whole, run.optimizer, run.parametrisation)
    made.load_state_dict({**made.state_dict(), "state": moments})
    return whole, made


def copy(run: Run, model: Model, ranks: Ranks) -> Model:
    """The whole model, with the weights as they are now, on every rank: on its device where all of
    them have the room, else in their machines' memory. All ranks must call it."""
    from torch.distributed.tensor import DTensor

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    place = ranks.device if least(int(_has_room(size, ranks.device)), ranks) else "cpu"
    devices = [ranks.device] if ranks.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), torch.device(place):
        made = run.model.build()
    with torch.no_grad():
        own = made.state_dict()
        for name, value in model.state_dict().items():
            own[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)
    return made


def _has_room(size: int, device: str) -> bool:
    """For so many bytes, and half as many that pass through."""
    if not device.startswith("cuda"):
        return True
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return 1.5 * size < free + unused


def _whole(value: Any, ranks: Ranks) -> Any:
    from torch.distributed.tensor import DTensor

    if not isinstance(value, Tensor):
        return value
    found = value.full_tensor() if isinstance(value, DTensor) else value
    # What is gathered may be a view of more, which the format refuses.
    return found.cpu().clone() if ranks.leads else None
