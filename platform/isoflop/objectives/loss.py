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

# Logits held at once: 128 MB of float32; of a GPU, this share of its bytes (1.3e9 logits of 80 GB,
# whose gradients take as much again). A batch with more of them is scored in chunks.
LARGEST = 2**25
SHARE = 64


def most(device: torch.device) -> int:
    """Logits that a device holds at once."""
    if device.type != "cuda":
        return LARGEST
    return int(torch.cuda.get_device_properties(device).total_memory) // SHARE


def cross_entropy(forward: Forward, batch: Batch, vocab: int = 0) -> Tensor:
    """Sum of weight times -log p(target) in nats. Logits are raised to float32 first.

    `vocab`: the ids that may be predicted, where the model's logits have more (markers); 0: all. A
    model computes its loss itself, so that whoever compiles the model compiles both as one.
    """
    targets, weights = batch.targets, batch.weights
    room = most(targets.device)
    if vocab and targets.numel() * vocab > room:
        return forward(
            **batch.inputs,
            score=lambda states, head: chunked(states, head, targets, weights, vocab, room),
        )
    if isinstance(forward, nn.Module):
        found: Tensor = forward(
            **batch.inputs,
            score=lambda states, head: nats(head(states), targets, weights, vocab),
        )
        return found
    return nats(forward(**batch.inputs), targets, weights, vocab)


def nats(logits: Tensor, targets: Tensor, weights: Tensor | None, vocab: int = 0) -> Tensor:
    """The sum, from logits (..., V) of targets and weights (...)."""
    logits = logits.flatten(0, -2).float()
    logits = logits[:, :vocab] if 0 < vocab < logits.shape[1] else logits
    if weights is None:
        return F.cross_entropy(logits, targets.flatten(), reduction="sum")
    each = F.cross_entropy(logits, targets.flatten(), reduction="none")
    return (each * weights.flatten()).sum()


def chunked(
    states: Tensor, head: Head, targets: Tensor, weights: Tensor | None, vocab: int, room: int
) -> Tensor:
    """The same sum, from states (B, T, D): never more than `room` logits at a time.

    By torch's own kernel where it has one and the head is a plain product; it takes the gradients
    while the logits are there, which no compiler follows. Otherwise each chunk's logits are
    computed again in the backward pass.
    """
    flat, targets = states.flatten(0, 1), targets.flatten(0, 1)
    size = max(1, room * len(flat) // (targets.numel() * vocab))
    eager = not torch.is_autocast_enabled(states.device.type) and not torch.compiler.is_compiling()
    plain = weights is None and head.matrix is not None
    if eager and plain and hasattr(F, "linear_cross_entropy"):
        return _native(flat, head.matrix, targets, vocab, size)
    every = torch.ones_like(targets, dtype=torch.float32)
    weights = every if weights is None else weights.flatten(0, 1)

    def part(x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return nats(head(x), target, weight, vocab)

    total = flat.new_zeros((), dtype=torch.float32)
    pieces = (torch.split(whole, size) for whole in (flat, targets, weights))
    for piece in zip(*pieces, strict=True):
        total = total + checkpoint(part, *piece, use_reentrant=False)
    return total


def _native(flat: Tensor, matrix: Tensor | None, targets: Tensor, vocab: int, size: int) -> Tensor:
    assert matrix is not None, "asked for plain products only"
    return F.linear_cross_entropy(
        flat,
        matrix[:vocab],
        targets.flatten(),
        reduction="sum",
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=size),
    )
