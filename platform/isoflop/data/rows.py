"""What does the loader hand to an objective? Rows of token ids, before anything is hidden or moved.

An objective turns rows into what its model reads and must predict (see `isoflop.objectives`): the
next tokens, or tokens that it hides at random. What is drawn for a row comes from the row's own
seed, so it depends on the run, the step and the row alone, and on no worker and no restart.

Letters: B rows, T context.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from isoflop.data.order import mix

Seeds = npt.NDArray[np.uint64]
Phases = npt.NDArray[np.float64]


class Rows:
    """B rows of T + 1 tokens: the last one is only ever a target. Never changed once made.

    What is random about a row is computed when it is first asked for: most objectives draw nothing,
    and for a short batch it costs twice as much as the tokens.
    """

    def __init__(
        self,
        *,
        ids: npt.NDArray[np.int64],
        seeds: Seeds | Callable[[], Seeds],
        documents: npt.NDArray[np.int32] | None = None,
        phases: Phases | Callable[[], Phases | None] | None = None,
    ) -> None:
        self.ids = ids  # (B, T + 1)
        # Which document of its row each token belongs to, (B, T + 1): counted from 0, and -1 for
        # padding. None: one continuous stream, in which tokens may look across documents.
        self.documents = documents
        self._seeds = seeds
        self._phases = phases

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def seeds(self) -> Seeds:
        """(B,): each row's own stream of random numbers."""
        return self._seeds() if callable(self._seeds) else self._seeds

    @cached_property
    def phases(self) -> Phases | None:
        """(B,) in [0, 1), evenly spread over the rows of the whole step: what a row has more of,
        another one has less of. None: nobody spread them, and each row draws its own."""
        return self._phases() if callable(self._phases) else self._phases

    def part(self, rows: slice) -> Rows:
        """Some of the rows."""
        return Rows(
            ids=self.ids[rows],
            seeds=lambda: self.seeds[rows],
            documents=None if self.documents is None else self.documents[rows],
            phases=lambda: None if self.phases is None else self.phases[rows],
        )


def joined(parts: list[Rows]) -> Rows:
    """One after the other; either all tell their documents or none."""
    documents = [part.documents for part in parts if part.documents is not None]
    assert len(documents) in (0, len(parts))
    return Rows(
        ids=np.concatenate([part.ids for part in parts]),
        seeds=lambda: np.concatenate([part.seeds for part in parts]),
        documents=np.concatenate(documents) if documents else None,
    )


def row_seeds(seed: int, step: int, first: int, count: int) -> Seeds:
    """One number for each of `count` rows from row `first` of a step on, as good as unrelated.

    A hash over seed, step and row, cheap enough for every row of every step.
    """
    rows = np.arange(first, first + count, dtype=np.uint64)
    mixed = mix(np.full(count, seed, dtype=np.uint64))
    return mix(mix(mixed ^ np.uint64(step)) ^ rows)


def uniforms(seeds: Seeds, count: int) -> npt.NDArray[np.float64]:
    """Random numbers (B, count) in [0, 1), `count` of each row: SplitMix64 from its seed on."""
    steps = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = mix(seeds[:, None] + steps) >> np.uint64(11)  # 53 of them, which a float holds exactly
    return bits.astype(np.float64) * 2.0**-53


def row_phases(seed: int, step: int, first: int, count: int, total: int) -> Phases:
    """The phases of `count` rows from row `first` on, of a step of `total` rows.

    (u + row / total) mod 1 with one random u per step: each is uniform, and together they leave no
    gap wider than 1 / total (Kingma et al. 2021, appendix I.1). The same on however many workers.
    """
    shift = uniforms(row_seeds(seed, step, total, 1), 1)[0, 0]
    phases: Phases = (shift + np.arange(first, first + count) / total) % 1.0
    return phases


def sample(rows: int, context: int, vocab: int, seed: int = 0) -> Rows:
    """Rows of random ids, for measuring how long a step takes."""
    ids = np.random.default_rng(seed).integers(vocab, size=(rows, context + 1))
    return Rows(ids=ids, seeds=row_seeds(seed, 0, 0, rows))
