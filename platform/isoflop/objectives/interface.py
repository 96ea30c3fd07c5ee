"""What does the loop ask of an objective? A mean loss in nats, from a forward pass and a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Forward = Callable[[Tensor], Tensor]  # token ids (B, T) to logits (B, T, V); may be wrapped in DDP


class Objective(Protocol):
    """Stateless, so that a resumed run needs nothing of it."""

    def loss(self, forward: Forward, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats per predicted token: a scalar. `inputs`, `targets`: ids (B, T)."""
        ...
