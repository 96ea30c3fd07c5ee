"""How are the rollouts of one run captured, within their budget, by all of its workers?

The loop calls a `Capturing` at the capture steps. Its sets of prompts share one index of what the
run has read, and one budget. This file knows no Ray (`scribe` captures beside the trainer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.data import feed
from isoflop.data.mixture import Mixed, parts
from isoflop.data.prepare import Prepared
from isoflop.rollouts import control, references
from isoflop.rollouts.alarm import Raised, raised
from isoflop.rollouts.capture import Budget, Capture, Captured, schedule
from isoflop.rollouts.generate import Rollout
from isoflop.rollouts.novelty import Reading
from isoflop.rollouts.prompts import resolve
from isoflop.rollouts.rubric import of_text
from isoflop.rollouts.statistics import Aggregate
from isoflop.run import Rollouts, Run, Spec
from isoflop.training.checkpoint import Progress
from isoflop.training.distributed import Ranks, agree, gather
from isoflop.training.loop import Record
from models.interface import Model

NOTICED = 2.0  # seconds of captures, below which nobody is told that they were too many


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The workers of a run, as a capture sees them."""

    ranks: Ranks

    @property
    def rank(self) -> int:
        return self.ranks.rank

    @property
    def world(self) -> int:
        return self.ranks.world

    def agree(self, flag: bool) -> bool:
        return agree(flag, self.ranks)

    def gather(self, items: list[Rollout]) -> list[Rollout] | None:
        return gather(items, self.ranks)


def captures(
    run: Run,
    prepared: Prepared | Mixed,
    folder: Path,
    ranks: Ranks,
    *,
    study: str = "",
    axes: Mapping[str, Any] | None = None,
    asked: Rollouts | None = None,
) -> list[Capture]:
    """Every set of prompts of a resolved run, ready to be asked; its rows go into `folder`.

    `asked` is what it is asked instead of what it says itself.
    """
    asked = asked or run.rollouts
    if not asked.asked:
        return []
    tokenizer, sources = prepared.tokenizer(), parts(prepared).values()
    reads = feed.batches(run, prepared)
    reading = Reading(reads) if asked.novelty else None
    rubric = of_text(asked.rewards) if asked.rewards else None
    held_out = [part.validation() for part in sources]
    return [
        Capture(
            spec,
            resolve(spec, tokenizer, held_out=held_out, reads=reads, steps=run.steps),
            tokenizer,
            folder=folder,
            context=run.model.context,
            run=run.identity,
            objective=run.objective,
            study=study,
            axes=axes or {},
            reading=reading,
            rubric=rubric,
            crew=Crew(ranks=ranks),
        )
        for spec in asked.asked
    ]


def weighted(spec: Spec, model: Model, averaged: Model | None) -> Model:
    """The model that a set of prompts is put to."""
    if spec.weights == "raw":
        return model
    assert averaged is not None, "a run without averaged weights asks nothing of them"
    return averaged


class Capturing:
    """What the loop calls at the capture steps, on every rank."""

    def __init__(self, run: Run, captures: Sequence[Capture], ranks: Ranks) -> None:
        # Loaded before the clock of the budget runs: a process's first capture would seem ten times
        # as dear as the next, and its run would have fewer captures than the others.
        import pandas  # noqa: F401  # pyarrow looks for it when it first makes an array
        import pyarrow.parquet  # noqa: F401

        asked = run.rollouts
        self.steps = schedule(run.steps, asked.captures, asked.every)
        self.last = run.steps
        self.flops_per_token = run.model.flops_per_token().training
        self.batch_tokens = run.batch_tokens
        self.budget = Budget(asked.budget)
        self.expected = 0.0
        self.captures = captures
        self.ranks = ranks
        self.alarms = asked.alarms
        self.stopped: Raised | None = None  # the alarm that ends the run; known to the first rank

    def stop(self) -> bool:
        return self.stopped is not None

    def __call__(
        self, model: Model, *, step: int, progress: Progress, averaged: Model | None = None
    ) -> Record:
        affords = self.budget.affords(
            spent=progress.capture_seconds,
            training=progress.seconds,
            expected=self.expected,
            done=step / self.last,
        )
        if not agree(affords, self.ranks):
            return {"capture/skipped": 1.0}
        tokens = step * self.batch_tokens
        flops = float(tokens) * self.flops_per_token
        record: Record = {}
        seconds = 0.0
        known: dict[str, Aggregate] = {}
        for capture in self.captures:
            asked = weighted(capture.spec, model, averaged)
            captured = capture(asked, step=step, tokens=tokens, flops=flops)
            if captured is not None:
                seconds += captured.seconds
                record |= recorded(capture.spec.name, captured)
                name = f"{capture.spec.name}/" if capture.spec.name else ""
                known |= {f"{name}{metric}": item for metric, item in captured.aggregates.items()}
        self.expected = seconds
        return record | self._alarmed(known, step)

    def _alarmed(self, known: Mapping[str, Aggregate], step: int) -> Record:
        if not known:  # not the first rank
            return {}
        found = raised(self.alarms, known, step=step, steps=self.last)
        self.stopped = next((one for one in found if one.action == "stop"), None)
        return {f"alarm/{one.metric}": one.value for one in found}


def overspent(run: Run, result: Mapping[str, Any]) -> list[str]:
    """In words, where captures took far more than the run's budget for them."""
    share, budget = result["capture_share"], run.rollouts.budget
    if result["capture_seconds"] < NOTICED or share <= 1.5 * budget:
        return []
    return [
        f"rollouts took {share:.1%} of the training time, and their budget is {budget:.1%}: step 0 "
        "and the end are always captured; fewer prompts, seeds or tokens keep it"
    ]


def recorded(name: str, captured: Captured) -> Record:
    """A capture's values and bounds as they are logged: rollout/METRIC, or rollout/SET/METRIC."""
    record: Record = {}
    for metric, aggregate in captured.aggregates.items():
        key = f"rollout/{name}/{metric}" if name else f"rollout/{metric}"
        if aggregate.value is not None:
            record[key] = aggregate.value
        if aggregate.low is not None and aggregate.high is not None:
            record[f"{key}.low"] = aggregate.low
            record[f"{key}.high"] = aggregate.high
        if aggregate.missing and metric.startswith("reward"):
            record[f"capture/failed/{key.removeprefix('rollout/')}"] = float(aggregate.missing)
    return record


def write_references(
    run: Run,
    prepared: Prepared | Mixed,
    captures: Sequence[Capture],
    models: Mapping[str, Model],
) -> None:
    """`references.json` beside a run's rows: what each metric is on held-out text of the rollouts'
    length, by the name of the set; where the run indexes what it reads, its novelty as of now; and
    what the models ("raw", "ema") themselves make of that text.

    Measured in nobody's budget: the metrics once per text, the others when a run has ended.
    """
    sources = list(parts(prepared).values())
    files = [part.validation() for part in sources]
    folder = sources[0].folder if len(sources) == 1 else captures[0].folder
    values: dict[str, dict[str, Aggregate]] = {}
    for capture in captures:
        spec, tokenizer = capture.spec, capture.tokenizer
        found = references.references(folder, files, tokenizer, spec.new_tokens)
        seen = capture.reading and capture.reading.until(run.steps)
        if seen:
            end = tokenizer.end_of_text
            found |= references.novelty(seen, files, spec.new_tokens, end)
        found["unshared"] = control.independent(spec, files, tokenizer)
        found |= control.control(models[spec.weights], spec, files, tokenizer)
        values[spec.name] = found
    references.write(captures[0].folder, values)
