"""How do the weights move, and how fast at each step?"""

from __future__ import annotations

import math

import torch
from torch import nn

from isoflop.run import AdamW, Lion, Muon, Parametrisation, Schedule
from isoflop.training import others, uncompiled
from isoflop.training.distributed import is_sharded
from isoflop.training.parametrisation import groups
from models.interface import Model

STANDARD = Parametrisation()


def build(
    model: nn.Module, config: AdamW, rule: Parametrisation = STANDARD
) -> torch.optim.Optimizer:
    """Matrices with weight decay, everything else (norms, biases) without; each group at the share
    of the learning rate that the parametrisation gives it.
    """
    uncompiled.unwrap()
    if isinstance(config, Lion):
        parts = [{k: v for k, v in group.items() if k != "eps"}
                 for group in groups(model, config, rule)]  # fmt: skip
        return others.Lion(parts, lr=config.lr, betas=config.betas)
    if isinstance(config, Muon):
        return _muon(model, config)
    return uncompiled.AdamW(
        list(groups(model, config, rule)),
        lr=config.lr,
        betas=config.betas,
        fused=True,  # one kernel for all tensors; 10 % of a step at 30 M parameters on a CPU
    )


def _muon(model: nn.Module, config: Muon) -> torch.optim.Optimizer:
    """Matrices from width to width by Muon, the rest (tables, heads, vectors, stacks of experts) by
    AdamW."""
    roles = model.roles() if isinstance(model, Model) else {}
    inner = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and roles.get(name) in ("hidden", "residual")
    ]
    matrices = {id(parameter) for parameter in inner}
    rest = [
        {**group, "params": kept}
        for group in groups(model, config, STANDARD)
        if (kept := [p for p in group["params"] if id(p) not in matrices])
    ]
    adamw = uncompiled.AdamW(rest, lr=config.lr, betas=config.betas, fused=True)
    if not inner:
        return adamw
    group = {"params": inner, "factor": 1.0}
    kind = others.ShardedMuon if is_sharded(model) else torch.optim.Muon
    muon = kind(
        [group], lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    return others.Joined([muon, adamw])


def learning_rate(schedule: Schedule, step: int, steps: int, peak: float) -> float:
    """The rate of step `step` (from 0) of `steps`: a pure function, so that resuming needs no
    state.

    Warm-up rises linearly to `peak` over `schedule.warmup * steps`, or `warmup_steps`; the decay
    ends at `schedule.final * peak` on the last step.
    """
    warmup = warmup_end(schedule, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    start = cooldown_start(schedule, steps) if schedule.decay == "wsd" else warmup
    if schedule.decay == "constant" or step < start:
        return peak
    progress = (step + 1 - start) / max(1, steps - start)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    shape = cosine if schedule.decay == "cosine" else 1 - progress
    return peak * (schedule.final + (1 - schedule.final) * shape)


def warmup_end(schedule: Schedule, steps: int) -> int:
    """The first step at the peak."""
    return max(1, schedule.warmup_steps or round(schedule.warmup * steps))


def cooldown_start(schedule: Schedule, steps: int) -> int:
    """Of "wsd": the first step below the peak again."""
    return max(warmup_end(schedule, steps), steps - max(1, round(schedule.cooldown * steps)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group["factor"]
