"""What happens in one optimizer step? Forward, backward, clip, update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from isoflop.objectives import Batch, Objective
from isoflop.objectives.regularise import losses
from isoflop.run import Run
from isoflop.training.distributed import Ranks, bare, equal_share

Span = Callable[[str], AbstractContextManager[object]]
PARTS = ("copy", "forward", "backward", "clip", "optimizer")  # of an update, as a span names them


def unmarked(name: str) -> AbstractContextManager[object]:
    """No profile is made."""
    return nullcontext()


def seed_step(run: Run, step: int, ranks: Ranks) -> None:
    """Seed torch so that whatever a model draws (dropout, router noise) depends on (seed, step,
    rank) alone: a resumed run draws the same, and nothing between two steps can disturb it.
    """
    seed = (run.seed * 1_000_003 + step) * 4_099 + ranks.rank
    torch.manual_seed(seed % 2**64)  # torch takes no more bits


def autocast(precision: str, device: str) -> torch.autocast:
    """The precision of the matrix products. "auto": float32 on a CPU, where bfloat16 is emulated
    and up to 170 times slower unless the chip has it; bfloat16 on a GPU. Weights stay float32
    always.
    """
    kind = device.split(":")[0]
    low = precision == "bfloat16" or (precision == "auto" and kind == "cuda")
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=low)


def has_bfloat16() -> bool:
    """Does this machine multiply bfloat16 in hardware?"""
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    run: Run,
    ranks: Ranks,
    span: Span = unmarked,
) -> tuple[Tensor, Tensor]:
    """One step on this rank's share of the batch.

    Returns the mean loss in nats and the gradient's global norm before clipping, both scalars that
    stay on the device: reading them would make the device wait. What a model adds to the loss of
    its own accord (`Model.auxiliary`), and what the run adds (`targets.Regularisers`), is trained
    on but not returned. `span` marks the parts of the step for a profile.
    """
    with span("copy"):
        batch = batch.to(ranks.device)
        count = equal_share(batch.count, ranks)
    with span("forward"), autocast(run.precision, ranks.device):
        nats, added = losses(run.objective, objective, model, batch)
        loss = nats / count
        total = sum(
            bare(model).auxiliary().values(), loss if added is None else loss + added / count
        )
    with span("backward"):
        total.backward()  # type: ignore[no-untyped-call]
    with span("clip"):
        limit = run.optimizer.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    with span("optimizer"):
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm
