"""How well does the model predict the next token? Cross entropy in nats, summed over the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.data.rows import Rows
from isoflop.objectives.interface import Batch, Forward, reading
from isoflop.objectives.loss import cross_entropy


class NextToken:
    """Targets are the inputs shifted by one; every position counts the same.

    Where rows hold several documents, no document's first token is predicted from another's last,
    and padding is never predicted.
    """

    def __init__(self, vocab: int = 0) -> None:
        self.vocab = vocab  # the model's; 0: as many as it has, in one piece

    def batch(self, rows: Rows) -> Batch:
        weights = None
        if rows.documents is not None:
            same = rows.documents[:, 1:] == rows.documents[:, :-1]
            weights = torch.from_numpy(same & (rows.documents[:, 1:] >= 0)).float()
        targets = torch.from_numpy(rows.ids[:, 1:].copy())
        return Batch(inputs=reading(rows), targets=targets, weights=weights)

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Sum of -log p(target) in nats."""
        return cross_entropy(forward, batch, self.vocab)
