"""Which tokens does a training step see? A pure function of the seed and the step.

    entry -> source (turns) -> row of an epoch (order) -> ids and documents (frames)

Row g of step s is entry s * rows + g of an endless sequence. Where there are several sources they
give the entries in turns; each source goes through its own epochs, in a random order of its own,
and `stream` rows from a random offset on. Nothing else enters: not the number of workers, not
restarts, not what was asked before.

Letters: B rows of a batch, T context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from isoflop.data.frames import Cut, Documents, Frame, Places, frame
from isoflop.data.order import Order, mix
from isoflop.data.rows import Rows, row_phases, row_seeds
from isoflop.data.shards import TokenFile
from isoflop.data.turns import Turns

Seen = npt.NDArray[np.bool_]

_AT_ONCE = 2**18  # rows looked up at once


class Batches:
    """The batches of one run. Holds no position: every step can be asked for, in any order."""

    def __init__(
        self,
        files: TokenFile | Mapping[str, TokenFile],
        *,
        context: int,
        rows: int,
        seed: int,
        framing: str = "stream",
        stride: int = 0,
        weights: Sequence[float] = (),
    ) -> None:
        """`rows` counts the sequences of a step over all workers; `framing` is one of
        `frames.FRAMES`; several files are mixed by `weights` (default: equally).

        Raises ValueError for a context that is longer than a file, and for settings out of range.
        """
        files = {"": files} if isinstance(files, TokenFile) else files
        self.frames = {name: frame(file, framing, context, stride) for name, file in files.items()}
        if rows < 1:
            raise ValueError(f"rows is {rows}; a batch must have at least 1")
        self.turns = Turns(weights or [1.0] * len(files))
        assert len(self.turns.counts) == len(files)
        self.context = context
        self.rows = rows
        self.seed = seed
        self._orders = [
            Order(count=cuts.count, room=cuts.room, seed=_own_seed(seed, index))
            for index, cuts in enumerate(self.frames.values())
        ]

    @property
    def windows_per_epoch(self) -> int:
        """Rows of one pass over all sources."""
        return sum(cuts.count for cuts in self.frames.values())

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows:
        """The rows of one worker at one step: ids (B / world, T + 1).

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
        ids, documents = self._cut(np.arange(first, first + share, dtype=np.int64))
        place = self.seed, step, rank * share, share
        return Rows(
            ids=ids,
            seeds=lambda: row_seeds(*place),
            documents=documents,
            phases=lambda: row_phases(*place, self.rows),
        )

    def epochs(self, step: int) -> float:
        """How many times the tokens have been predicted before this step, on average."""
        return self.seen(step)["data/epochs"]

    def seen(self, step: int) -> dict[str, float]:
        """How many tokens have been predicted before this step, padding left out, and how often on
        average: over all sources (`data/tokens`, `data/epochs`) and, of a mixture, in each
        (`data/tokens/NAME`, `data/epochs/NAME`).
        """
        taken = self.turns.taken(step * self.rows)
        predicted = [
            rows / cuts.count * each
            for rows, cuts, (each, _) in zip(
                taken, self.frames.values(), self._targets, strict=True
            )
        ]
        distinct = [different for _, different in self._targets]
        seen = {"data/tokens": sum(predicted), "data/epochs": sum(predicted) / sum(distinct)}
        for name, done, different in zip(self.frames, predicted, distinct, strict=True):
            if name:
                seen |= {f"data/tokens/{name}": done, f"data/epochs/{name}": done / different}
        return seen

    def documents_seen(self, step: int) -> dict[str, Seen]:
        """Which documents (N,) of each source any of the rows before this step has shown."""
        taken = self.turns.taken(step * self.rows)
        seen: dict[str, Seen] = {}
        for (name, cuts), order, rows in zip(self.frames.items(), self._orders, taken, strict=True):
            seen[name] = np.zeros(cuts.file.documents, dtype=np.bool_)
            for start in range(0, rows, _AT_ONCE):
                entries = np.arange(start, min(start + _AT_ONCE, rows), dtype=np.int64)
                seen[name][cuts.read(*order.visits(entries))] = True
        return seen

    @property
    def unique_tokens(self) -> int:
        """How many different tokens one pass over all sources predicts."""
        return sum(distinct for _, distinct in self._targets)

    @cached_property
    def _targets(self) -> list[tuple[int, int]]:
        return [cuts.targets() for cuts in self.frames.values()]

    def _cut(self, entries: Places) -> Cut:
        if len(self._orders) == 1:
            return self._of(0, entries)
        sources, own = self.turns.of(entries)
        ids = np.empty((len(entries), self.context + 1), dtype=np.int64)
        documents: Documents | None = None
        for source in np.unique(sources):
            inside = sources == source
            ids[inside], part = self._of(int(source), own[inside])
            if part is not None:
                documents = np.empty(ids.shape, dtype=np.int32) if documents is None else documents
                documents[inside] = part
        return ids, documents

    def _of(self, source: int, entries: Places) -> Cut:
        rows, offsets = self._orders[source].visits(entries)
        cuts: Frame = list(self.frames.values())[source]
        return cuts.cut(rows, offsets)


def windows(
    file: TokenFile, context: int, count: int, framing: str = "stream", stride: int = 0
) -> Rows:
    """Rows (at most `count`, T + 1) for evaluation: evenly spaced; a stream's do not overlap.

    The same for every run. A file with room for fewer windows gives fewer; one that is shorter than
    a context raises ValueError.
    """
    if count < 1:
        raise ValueError(f"count is {count}; an evaluation needs at least 1 window")
    ids, documents = frame(file, framing, context, stride).spread(count)
    place = 0, 0, 0, len(ids)
    return Rows(
        ids=ids,
        seeds=lambda: row_seeds(*place),
        documents=documents,
        phases=lambda: row_phases(*place, len(ids)),
    )


def _own_seed(seed: int, index: int) -> int:
    """Each source has an order of its own; the first has the run's, alone or in a mixture."""
    if index == 0 or not 0 <= seed < 2**64:  # the order says what is wrong with it
        return seed
    return int(mix(np.array([seed ^ index], dtype=np.uint64))[0])
