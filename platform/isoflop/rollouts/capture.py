"""What did this run write at this step? Parquet files that hold all of it, row by row.

A capture asks every prompt of a set with every seed, measures what comes back, and writes
`step-00000123.parquet`. The seeds follow from the prompt's text and the number of the sample alone,
never from the run, so two runs of a study, or two steps of one, differ by their weights only and
can be compared in pairs.

    schedule -> Budget.affords -> Capture -> aggregates for the tracker
                                     |
                                parquet rows -> read

Every aggregate can be recomputed from the rows, and a capture that is there already is read instead
of made again. Several processes share the prompts between them (`Crew`); what each prompt gets does
not depend on how many they are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from isoflop.captures import Rollouts, Spec
from isoflop.rollouts import alarm, rows
from isoflop.rollouts.generate import Rollout, Sampling, generate
from isoflop.rollouts.measured import Missing
from isoflop.rollouts.metrics import VALUES
from isoflop.rollouts.novelty import BYTES, MOST_TOKENS, Reading, Seen
from isoflop.rollouts.prompts import Prompt, Tokenizer, prompt_id, row_seed
from isoflop.rollouts.rows import Stamp, read
from isoflop.rollouts.rubric import Rubric
from isoflop.rollouts.statistics import Aggregate
from isoflop.rollouts.timing import Budget, schedule
from isoflop.run import Autoregressive
from isoflop.targets import Objective
from models.interface import Model

if TYPE_CHECKING:
    import pyarrow

# Of a capture that has not been timed yet: tokens that are written to time one, and the seconds of
# measuring it, as goals have them.
FEW = 5
ONCE, PER_ROLLOUT, PER_TOKEN_READ = 0.03, 1e-3, 2e-6

__all__ = ["VALUES", "Budget", "Capture", "check", "prompt_id", "read", "row_seed", "schedule"]


def check(rollouts: Rollouts, context: int) -> None:
    """Raises ValueError where prompts repeat, `new_tokens` leaves them no room in a context, or an
    alarm watches what is not measured."""
    alarm.check(rollouts)
    for spec in rollouts.asked:
        name = f"rollouts.specs.{spec.name}" if spec.name else "rollouts"
        _check(spec, name, context)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Every random state is as it was afterwards: functions of others run inside, and may draw."""
    own, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(own)
        np.random.set_state(legacy)


def _check(spec: Spec, name: str, context: int) -> None:
    prompts = spec.prompts
    if len(set(prompts)) < len(prompts):
        twice = next(prompt for prompt in prompts if prompts.count(prompt) > 1)
        raise ValueError(f"{name}.prompts has {twice!r} twice; each prompt may stand there once")
    if spec.new_tokens >= context:
        raise ValueError(
            f"{name}.new_tokens is {spec.new_tokens}; it must be below the model's context of "
            f"{context} tokens, which holds the prompt too"
        )
    prefixed = spec.kind in ("heldout_prefix", "train_prefix")
    if prefixed and spec.prefix_tokens + spec.new_tokens > context:
        raise ValueError(
            f"{name}.prefix_tokens and new_tokens are {spec.prefix_tokens} + {spec.new_tokens}; "
            f"together they must be at most the model's context of {context} tokens"
        )


class Crew(Protocol):
    """The processes that make a capture together; only the first one writes."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...

    def agree(self, flag: bool) -> bool:
        """The first one's answer, for all."""

    def gather(self, items: list[Rollout]) -> list[Rollout] | None:
        """Everybody's, for the first one; None for the others."""


@dataclass(frozen=True)
class Alone:
    """A crew of one."""

    rank: int = 0
    world: int = 1

    def agree(self, flag: bool) -> bool:
        return flag

    def gather(self, items: list[Rollout]) -> list[Rollout] | None:
        return items


@dataclass(frozen=True, eq=False)
class Captured:
    """What one capture left: the file, what it says, and the wall seconds it took."""

    rows: Path
    aggregates: dict[str, Aggregate]
    seconds: float
    count: int  # rollouts
    reused: bool  # the file was there already


@dataclass(frozen=True, eq=False)
class Capture:
    """One set of prompts of one run, ready to be asked at any step: call it with the model.

    Raises ValueError where `check` does.
    """

    spec: Spec
    prompts: Sequence[Prompt]
    tokenizer: Tokenizer
    _: KW_ONLY
    folder: Path
    context: int  # the model's
    run: str  # its identity
    objective: Objective = field(default_factory=Autoregressive)  # how it is asked
    study: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)  # plain values: written as JSON
    reading: Reading | None = None  # what the run has read; shared by all sets of a run
    rubric: Rubric | None = None  # what rewards the rollouts
    crew: Crew = Alone()

    def __post_init__(self) -> None:
        name = f"rollouts.specs.{self.spec.name}" if self.spec.name else "rollouts"
        _check(self.spec, name, self.context)

    def path(self, step: int) -> Path:
        return rows.path(self.folder, step, self.spec.name)

    def __call__(self, model: Model, *, step: int, tokens: int, flops: float) -> Captured | None:
        """The rollouts after `step` optimizer steps, `tokens` tokens and `flops` FLOPs of training.

        Called by everyone of the crew; the first gets what was captured, the others None. The model
        and torch's random state stay as they were. A readable file of the same step, run and
        prompts is taken for done.
        """
        began = time.perf_counter()
        table = None
        if self.crew.rank == 0:
            table = rows.done(self.path(step), self.run, self.prompts, self.spec)
        reused = self.crew.agree(table is not None)
        if not reused:
            stamp = Stamp(
                run=self.run, step=step, tokens=tokens, flops=flops, study=self.study,
                axes=self.axes,
            )  # fmt: skip
            table = self._made(model, stamp)
        if table is None:
            return None
        found = rows.aggregates(table)
        return Captured(self.path(step), found, time.perf_counter() - began, table.num_rows, reused)

    def foretold(self, model: Model, clock: Callable[[], float]) -> float:
        """About the seconds that a capture would take, from writing a few tokens: what comes before
        the first one and what each takes are timed apart, measuring them is reckoned. An index of
        what the run has read comes on top."""
        self._written(model, 1)  # libraries choose their kernels, and take their memory
        began = clock()
        self._written(model, 1)
        middle = clock()
        few = min(FEW, self.spec.new_tokens)
        self._written(model, few)
        first, more = middle - began, clock() - middle
        each = max(0.0, more - first) / max(1, few - 1)
        rollouts = len(self.prompts) * self.spec.seeds
        return first + each * (self.spec.new_tokens - 1) + ONCE + PER_ROLLOUT * rollouts

    def _made(self, model: Model, stamp: Stamp) -> pyarrow.Table | None:
        """The rows, written; None for all but the first of the crew."""
        began = time.process_time()
        together = self.crew.gather(self._written(model))
        seconds = time.process_time() - began
        if together is None:
            return None
        made = sorted(together, key=lambda row: (row.prompt_index, row.sample))
        measured = rows.samples(
            made, self.prompts, self.tokenizer, step=stamp.step, seen=self._seen(stamp.step)
        )
        table = rows.table(
            made, measured, self.prompts, self.spec, stamp,
            tokenizer=self.tokenizer.name, seconds=seconds,
        )  # fmt: skip
        if self.rubric is not None:
            with undisturbed():
                table = rows.rewarded(table, self.rubric.score_rows(table.to_pylist()))
        rows.write(table, self.path(stamp.step))
        return table

    def _written(self, model: Model, new_tokens: int | None = None) -> list[Rollout]:
        """What this process's share of the prompts is gone on with."""
        spec = self.spec
        mine = range(self.crew.rank, len(self.prompts), self.crew.world)
        prompts = [self.prompts[index] for index in mine]
        seeds = [[row_seed(prompt.text, i) for i in range(spec.seeds)] for prompt in prompts]
        sampling = Sampling(
            spec.temperature,
            new_tokens or spec.new_tokens,
            (self.tokenizer.end_of_text,),
            repetition=spec.repetition,
            top_k=spec.top_k,
            top_p=spec.top_p,
            min_p=spec.min_p,
        )
        framing = self.objective.framing(model.config.text_vocab)
        found = generate(model, [prompt.ids for prompt in prompts], seeds, sampling, framing)
        return [replace(row, prompt_index=mine[row.prompt_index]) for row in found]

    def _seen(self, step: int) -> Seen | Missing:
        if self.reading is None:
            return Missing("no index of the text that the run has read")
        seen = self.reading.until(step)
        return seen or Missing(
            f"the run has read more than {MOST_TOKENS:,} tokens: an index of them would take more "
            f"than {BYTES * MOST_TOKENS / 1e9:.0f} GB"
        )
