"""Which tokens does a training step see? A pure function of the seed and the step.

Epoch e cuts the tokens into windows of one context, from its own random offset on, and visits them
in its own random order. Row g of step s is entry s * rows + g of that endless sequence. Nothing
else enters: not the number of workers, not restarts, not what was asked before.

Letters: B rows of a batch, T context.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isoflop.data.shards import TokenFile

Positions = npt.NDArray[np.int64]


class Batches:
    """The batches of one run. Holds no position: every step can be asked for, in any order."""

    def __init__(self, file: TokenFile, *, context: int, rows: int, seed: int) -> None:
        """`rows` counts the sequences of a step over all workers.

        Raises ValueError for a context that is longer than the file.
        """
        _check_context(file, context)
        if rows < 1:
            raise ValueError(f"rows is {rows}; a batch must have at least 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; it must be from 0 to 2**64 - 1")
        self.file = file
        self.context = context
        self.rows = rows
        self.seed = seed
        # One fewer than would fit, so that all epochs are equally long and have room for an offset;
        # the up to two contexts of tokens that an epoch leaves out at the ends, others visit.
        self.windows_per_epoch = max(1, (len(file) - context) // context)
        self._epochs: dict[int, Positions] = {}

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one worker at one step, int64 (B / world, T), on the CPU.

        Ranks take consecutive blocks: one after the other they are the batch of a single worker.
        """
        if world < 1 or self.rows % world:
            raise ValueError(f"{self.rows} rows cannot be shared equally by {world} workers")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}; it must be from 0 to {world - 1}")
        if step < 0:
            raise ValueError(f"step is {step}; it must be at least 0")
        share = self.rows // world
        first = step * self.rows + rank * share
        return _gather(self.file, self._starts(first, share), self.context)

    def epochs(self, step: int) -> float:
        """How many times the tokens have been seen before this step."""
        return step * self.rows / self.windows_per_epoch

    def _starts(self, first: int, count: int) -> Positions:
        entries = np.arange(first, first + count, dtype=np.int64)
        epochs, windows = np.divmod(entries, self.windows_per_epoch)
        starts = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            starts[inside] = self._epoch(int(epoch))[windows[inside]]
        return starts

    def _epoch(self, epoch: int) -> Positions:
        """Where the windows of an epoch start, in the order they are visited; the last one is kept.

        Order comes from sorting the generator's raw output, whose stream numpy keeps stable between
        releases; that of `permutation` and `integers` it does not promise.
        """
        if epoch not in self._epochs:
            count = self.windows_per_epoch
            draws = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)).random_raw(
                count + 1
            )
            room = len(self.file) - count * self.context  # the last token is only a target
            offset = int(draws[0] % np.uint64(room))
            order = np.argsort(draws[1:], kind="stable").astype(np.int64)
            self._epochs = {epoch: order * self.context + offset}
        return self._epochs[epoch]


def windows(file: TokenFile, context: int, count: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (at most `count`, T) for evaluation: evenly spaced, without overlap.

    The same for every run. A file with room for fewer windows gives fewer; one that is shorter than
    a context raises ValueError.
    """
    _check_context(file, context)
    if count < 1:
        raise ValueError(f"count is {count}; an evaluation needs at least 1 window")
    inputs = len(file) - 1  # the last token is only a target
    count = min(count, inputs // context)
    starts = np.arange(count, dtype=np.int64) * inputs // count
    return _gather(file, starts, context)


def _gather(file: TokenFile, starts: Positions, context: int) -> tuple[Tensor, Tensor]:
    """One copy out of the mapped file; targets are the inputs, one token on."""
    block = file.ids[starts[:, None] + np.arange(context + 1)]  # (B, T + 1)
    inputs, targets = block[:, :-1].astype(np.int64), block[:, 1:].astype(np.int64)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _check_context(file: TokenFile, context: int) -> None:
    if context < 1:
        raise ValueError(f"context is {context}; it must be at least 1")
    if context + 1 > len(file):
        raise ValueError(
            f"a context of {context} tokens is longer than the {file.name} shard, which has "
            f"{len(file)} tokens; context + 1 must fit"
        )
