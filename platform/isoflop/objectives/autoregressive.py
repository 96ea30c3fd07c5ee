"""How well does the model predict the next token? Mean cross entropy in nats."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from isoflop.objectives.interface import Forward


class NextToken:
    """Targets are the inputs shifted by one; every position counts the same."""

    def loss(self, forward: Forward, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean of -log p(target) in nats over (B, T). Logits are raised to float32 first."""
        logits = forward(inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
