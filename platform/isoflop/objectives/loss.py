"""What does a prediction cost? Cross entropy in nats, without holding the logits of a whole batch.

Letters: B rows, T positions, D width, V vocabulary, N = B T.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from isoflop.objectives.interface import Batch, Forward
from models.interface import Head

# Logits held at once: 128 MB of float32. A batch with more of them is scored in chunks.
LARGEST = 2**25


def cross_entropy(forward: Forward, batch: Batch, vocab: int = 0) -> Tensor:
    """Sum of weight times -log p(target) in nats. Logits are raised to float32 first.

    `vocab`: the ids that may be predicted, where the model's logits have more (markers); 0: all.
    """
    rows = batch.targets.numel()
    if not vocab or rows * vocab <= LARGEST:
        return nats(forward(**batch.inputs), batch.targets, batch.weights, vocab)
    return forward(**batch.inputs, score=lambda states, head: chunked(states, head, batch, vocab))


def nats(logits: Tensor, targets: Tensor, weights: Tensor | None, vocab: int = 0) -> Tensor:
    """The sum, from logits (..., V) of targets and weights (...)."""
    logits = logits.flatten(0, -2).float()
    logits = logits[:, :vocab] if 0 < vocab < logits.shape[1] else logits
    if weights is None:
        return F.cross_entropy(logits, targets.flatten(), reduction="sum")
    each = F.cross_entropy(logits, targets.flatten(), reduction="none")
    return (each * weights.flatten()).sum()


def chunked(states: Tensor, head: Head, batch: Batch, vocab: int) -> Tensor:
    """The same sum, from states (B, T, D): never more than `LARGEST` logits at a time.

    By torch's own kernel where it has one and the head is a plain product; it takes the gradients
    while the logits are there. Otherwise each chunk's logits are computed again in the backward
    pass.
    """
    size = max(1, LARGEST * len(states.flatten(0, 1)) // (batch.targets.numel() * vocab))
    plain = batch.weights is None and not torch.is_autocast_enabled(states.device.type)
    if plain and head.matrix is not None and hasattr(F, "linear_cross_entropy"):
        return F.linear_cross_entropy(
            states.flatten(0, 1),
            head.matrix[:vocab],
            batch.targets.flatten(),
            reduction="sum",
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=size),
        )
    flat, targets = states.flatten(0, 1), batch.targets.flatten(0, 1)
    weights = (
        torch.ones_like(targets, dtype=torch.float32)
        if batch.weights is None
        else (batch.weights.flatten(0, 1))
    )

    def part(x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return nats(head(x), target, weight, vocab)

    total = flat.new_zeros((), dtype=torch.float32)
    pieces = (torch.split(whole, size) for whole in (flat, targets, weights))
    for piece in zip(*pieces, strict=True):
        total = total + checkpoint(part, *piece, use_reentrant=False)
    return total
