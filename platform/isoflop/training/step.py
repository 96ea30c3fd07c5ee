"""What happens in one optimizer step? Forward and backward, part by part; clip; update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from isoflop.objectives import Batch, Objective
from isoflop.objectives.regularise import losses
from isoflop.run import Run
from isoflop.training.distributed import Ranks, bare, equal_share, reduced
from isoflop.training.precision import LossScale, autocast

Span = Callable[[str], AbstractContextManager[object]]
PARTS = ("copy", "forward", "backward", "clip", "optimizer")  # of an update, as a span names them


def unmarked(name: str) -> AbstractContextManager[object]:
    """No profile is made."""
    return nullcontext()


def seed_step(run: Run, step: int, ranks: Ranks) -> None:
    """Seed torch so that whatever a model draws (dropout, router noise) depends on (seed, step,
    rank) alone: a resumed run draws the same, and nothing between two steps can disturb it.

    On a CPU, its own generator alone: `torch.manual_seed` writes down for all GPUs, even where
    there is none, who called it, which takes longer than a small layer.
    """
    seed = ((run.seed * 1_000_003 + step) * 4_099 + ranks.rank) % 2**64  # torch takes no more bits
    if ranks.device == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def gradients(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    run: Run,
    ranks: Ranks,
    span: Span = unmarked,
    *,
    rows: int | None = None,
    scale: LossScale | None = None,
) -> Tensor:
    """Add to every parameter the gradient of the mean loss over the batch, of which this rank has
    its share; the loss in nats, a scalar that stays on the device: reading it would make that wait.

    At most `rows` go through the model at once; all parts are divided by the count of the whole
    batch, so that the mean is over tokens, however they fall into parts. What a model adds to the
    loss of its own accord (`Model.auxiliary`), and what the run adds (`targets.Regularisers`), is
    trained on but not returned; a router's balance is that of each part, as it is of each rank.
    `span` marks the parts of the step for a profile.
    """
    with span("copy"):
        batch = batch.to(ranks.device)
        count = equal_share(batch.count, ranks)
    parts = [batch] if rows is None else batch.parts(rows)
    found: list[Tensor] = []
    for part in parts:
        with reduced(model, part is parts[-1]):
            with span("forward"), autocast(run.precision, ranks.device):
                nats, added = losses(run.objective, objective, model, part)
                loss = nats / count
                share = len(part) / len(batch)
                total = loss if added is None else loss + added / count
                total = sum((share * x for x in bare(model).auxiliary().values()), total)
            with span("backward"):
                large = total if scale is None else scale.scaler.scale(total)
                large.backward()  # type: ignore[no-untyped-call]
        found.append(loss.detach())
    return found[0] if len(found) == 1 else torch.stack(found).sum()


def move(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: Run,
    span: Span = unmarked,
    scale: LossScale | None = None,
) -> Tensor:
    """Clip the gradients, take the step and forget them. Their global norm before clipping."""
    with span("clip"):
        if scale:
            scale.scaler.unscale_(optimizer)
        limit = run.optimizer.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        if whole := getattr(norm, "full_tensor", None):  # of shards
            norm = whole()
    with span("optimizer"):
        if scale:
            scale.step(optimizer, norm)
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    run: Run,
    ranks: Ranks,
    span: Span = unmarked,
    *,
    rows: int | None = None,
    scale: LossScale | None = None,
) -> tuple[Tensor, Tensor]:
    """One step on this rank's share of the batch: the mean loss, and the gradient's norm."""
    loss = gradients(model, objective, batch, run, ranks, span, rows=rows, scale=scale)
    return loss, move(model, optimizer, run, span, scale)
