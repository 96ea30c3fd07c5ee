"""What does the loop ask of an objective? To frame rows as a batch, and to say what it costs.

    rows (ids, seeds, documents) -> batch (what the model reads, what it must predict) -> nats

Letters: B rows, T positions at which something may be predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from isoflop.data.rows import Rows

# A model's forward pass, called with a batch's inputs by name; gives logits (B, T, V). It may be
# wrapped in DDP.
Forward = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What a model reads, and what it must say at each of its T positions."""

    inputs: dict[str, Tensor]  # arguments of the model's forward pass; the first axis is the rows
    targets: Tensor  # (B, T) token ids
    weights: Tensor | None = None  # (B, T): how much each position counts; None: each 1
    # (B, T): the tokens that the loss is a mean over, where that is not the sum of the weights: a
    # bound on all of a text may be estimated from a few tokens that count the more.
    tokens: Tensor | None = None

    @property
    def predicted(self) -> Tensor | None:
        """(B, T): how many tokens of the text each position stands for; None: each 1."""
        return self.weights if self.tokens is None else self.tokens

    @property
    def count(self) -> Tensor | int:
        """What the sum of the loss is divided by to be a mean per predicted token."""
        predicted = self.predicted
        return self.targets.numel() if predicted is None else predicted.sum()

    def measure(self, sizes: Tensor) -> float:
        """The predicted tokens' total size, where `sizes` (V,) gives each token's, on the CPU.

        Ids beyond `sizes` are markers, and no text.
        """
        predicted, ids = self.predicted, self.targets.cpu()
        each = sizes[ids.clamp(max=len(sizes) - 1)].double() * (ids < len(sizes))
        return float(each.sum() if predicted is None else (each * predicted.cpu()).sum())

    def __len__(self) -> int:
        """B."""
        return len(self.targets)

    def some(self, rows: slice) -> Batch:
        """Some of the rows."""
        return self._each(lambda part: part[rows])

    def parts(self, rows: int) -> list[Batch]:
        """Its rows in as few parts as hold at most `rows` each, nearly equally many in all."""
        number = -(-len(self) // rows)
        ends = [len(self) * k // number for k in range(number + 1)]
        return [self.some(slice(*place)) for place in pairwise(ends)]

    def to(self, device: str) -> Batch:
        """On the device; from pinned memory the copy does not wait for what computes there."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """In memory that a GPU copies from by itself; there must be one."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            inputs={name: change(part) for name, part in self.inputs.items()},
            targets=change(self.targets),
            weights=None if self.weights is None else change(self.weights),
            tokens=None if self.tokens is None else change(self.tokens),
        )


class Objective(Protocol):
    """Stateless, so that a resumed run needs nothing of it."""

    @property
    def vocab(self) -> int:
        """The ids that may be predicted: those below it; 0: all that the model has logits for."""
        ...

    def batch(self, rows: Rows) -> Batch:
        """What the model is to read and to predict, on the CPU. A pure function of the rows."""
        ...

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """The sum over the batch of weight times loss in nats: a scalar."""
        ...


def reading(rows: Rows) -> dict[str, Tensor]:
    """What a model that reads left to right is given: all tokens but the last of each row."""
    inputs = {"tokens": torch.from_numpy(rows.ids[:, :-1].copy())}
    if rows.documents is not None:
        inputs["documents"] = torch.from_numpy(rows.documents[:, :-1].copy())
    return inputs
