"""How well does the model predict held-out text? Nats per token, and bits per byte of the text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from isoflop.objectives import Objective
from isoflop.training.distributed import Ranks
from models.interface import Model


@dataclass(frozen=True)
class HeldOut:
    """The validation windows of a study: ids (W, T), their targets, and the bytes the targets stand
    for.
    """

    inputs: Tensor
    targets: Tensor
    bytes: int


@dataclass(frozen=True)
class Score:
    """Mean loss in nats per token; the same loss in bits per byte compares across tokenizers."""

    loss: float
    bits_per_byte: float


def held_out(inputs: Tensor, targets: Tensor, token_bytes: Tensor) -> HeldOut:
    """Windows with their size in bytes. `token_bytes` (V,): the length of each token's text."""
    return HeldOut(inputs, targets, int(token_bytes[targets].sum()))


@torch.no_grad()
def evaluate(model: Model, text: HeldOut, objective: Objective, ranks: Ranks, rows: int) -> Score:
    """The score over all windows, `rows` at a time, shared out over the ranks.

    The model is left in the mode (training or not) in which it came.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for start in range(ranks.rank * rows, len(text.inputs), ranks.world * rows):
        inputs = text.inputs[start : start + rows].to(ranks.device)
        targets = text.targets[start : start + rows].to(ranks.device)
        total += objective.loss(model, inputs, targets).double() * targets.numel()
    model.train(was_training)
    if ranks.world > 1:
        distributed.all_reduce(total)
    nats = float(total)
    return Score(nats / text.targets.numel(), nats / math.log(2) / max(1, text.bytes))


def points(steps: int, times: int) -> tuple[int, ...]:
    """The steps after which a run is evaluated: the end, and halving backwards from it."""
    return tuple(sorted({max(1, round(steps / 2**k)) for k in range(times)}))
