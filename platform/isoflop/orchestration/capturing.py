"""How are the rollouts of one run captured, within their budget, by all of its workers?

The loop calls a `Capturing` at the capture steps. Its sets of prompts share one index of what the
run has read, and one budget. This file knows no Ray (`scribe` captures beside the trainer).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isoflop.data import feed
from isoflop.data.mixture import Mixed, parts
from isoflop.data.prepare import Prepared
from isoflop.rollouts import control, references
from isoflop.rollouts.alarm import Raised, raised
from isoflop.rollouts.capture import PER_TOKEN_READ, Budget, Capture, Captured, schedule
from isoflop.rollouts.generate import Rollout
from isoflop.rollouts.novelty import Reading
from isoflop.rollouts.prompts import resolve
from isoflop.rollouts.rubric import of_text
from isoflop.rollouts.statistics import Aggregate
from isoflop.run import Rollouts, Run
from isoflop.training import sharding
from isoflop.training.checkpoint import Progress
from isoflop.training.distributed import Ranks, agree, gather, is_sharded
from isoflop.training.loop import Record, initial
from models.interface import Model

NOTICED = 2.0  # seconds of captures, below which nobody is told that they were too many
LEAST = 0.03  # seconds below which no set was ever asked: where not even that fits, none is timed
# In a record: a capture that was left out, one that was put off, and that one made after all.
SKIPPED, LATER, LATE = "capture/skipped", "capture/later", "capture/late"
NOTES = "beside.json"  # in a run's folder: see `noted`


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


def asked(
    captures: Sequence[Capture], models: Mapping[str, Model], run: Run, step: int
) -> tuple[Record, dict[str, Aggregate]]:
    """Every set is put to the model that it is for ("raw" or "ema"): what is logged of that, and
    the values by their names. Both are empty for all but the first rank."""
    tokens = step * run.batch_tokens
    flops = float(tokens) * run.model.flops_per_token().training
    record: Record = {}
    known: dict[str, Aggregate] = {}
    for capture in captures:
        captured = capture(models[capture.spec.weights], step=step, tokens=tokens, flops=flops)
        if captured is not None:
            record |= recorded(capture.spec.name, captured)
            name = f"{capture.spec.name}/" if capture.spec.name else ""
            known |= {f"{name}{metric}": item for metric, item in captured.aggregates.items()}
    return record, known


def waiting(history: Sequence[Record]) -> list[int]:
    """The steps whose captures were put off, and not made since."""
    later = {record["step"] for record in history if LATER in record}
    made = {record["step"] for record in history if LATE in record}
    return sorted(int(step) for step in later - made)


def noted(folder: Path, run: Run, until: int) -> list[Record]:
    """Records of the captures that were made beside a run's training up to a step. They are written
    down at once, since a trainer hears of them at its end, and may be killed before."""
    try:
        values = json.loads((folder / NOTES).read_text())
    except (FileNotFoundError, ValueError):
        return []
    return [dated(run, int(step), record) for step, record in values.items() if int(step) <= until]


def dated(run: Run, step: int, record: Record) -> Record:
    """As the record of a step that is over."""
    tokens = step * run.batch_tokens
    flops = float(tokens) * run.model.flops_per_token().training
    return {"step": step, "tokens": tokens, "flops": flops, **record}


class Capturing:
    """What the loop calls at the capture steps, on every rank.

    Nothing is known at step 0 of what a capture costs, nor of the run's pace. So it waits for the
    first capture that there is time for, and its rows come from the weights drawn again. Where
    there was none, and at an end that does not fit, the record says "capture/later", and the rows
    are made when the study's runs are over (see `later`). A run whose captures decide something
    (alarms), or whose budget is all there is, asks at once.
    """

    def __init__(
        self,
        run: Run,
        captures: Sequence[Capture],
        ranks: Ranks,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        # Loaded before the clock of the budget runs: a process's first capture would seem ten times
        # as dear as the next, and its run would have fewer captures than the others.
        import pandas  # noqa: F401  # pyarrow looks for it when it first makes an array
        import pyarrow.parquet  # noqa: F401

        wanted = run.rollouts
        self.run = run
        self.steps = schedule(run.steps, wanted.captures, wanted.every)
        self.last = run.steps
        self.budget = Budget(wanted.budget)
        self.insists = wanted.beyond == "now" or bool(wanted.alarms) or wanted.budget >= 1
        self.captures = captures
        self.ranks, self.clock = ranks, clock
        self.began = 0.0  # by the clock, of this call
        self.takes: float | None = None  # seconds: a capture is foretold to, or the last one did
        self.alarms = wanted.alarms
        self.averages = any(each.spec.weights == "ema" for each in captures)
        self.stopped: Raised | None = None  # the alarm that ends the run; known to the first rank

    def stop(self) -> bool:
        return self.stopped is not None

    def __call__(
        self, model: Model, *, step: int, progress: Progress, averaged: Model | None = None
    ) -> Record:
        self.began = self.clock()
        if step == 0 and not self.insists:
            return {LATER: 1.0}
        if is_sharded(model):  # ranks write unequally much; shards want equally many calls
            model = sharding.copy(self.run, model, self.ranks)
            if averaged is not None:
                averaged = sharding.copy(self.run, averaged, self.ranks) if self.averages else None
        models = {"raw": model, "ema": averaged or model}
        if self.insists:
            kept = step in (0, self.last) or self._affords(models, step, progress, 2)
            return self._captured(models, step) if kept else {SKIPPED: 1.0}
        begins = 0 in waiting(progress.history)
        if self._affords(models, step, progress, 1 + begins + (step < self.last)):
            if begins:
                progress.history.append(self._first(next(model.parameters()).device))
            return self._captured(models, step)
        if step < self.last:
            return {SKIPPED: 1.0}
        alone = begins and self._affords(models, step, progress, 1)
        return self._captured(models, step) if alone else {LATER: 1.0}

    def _affords(
        self, models: Mapping[str, Model], step: int, progress: Progress, captures: int
    ) -> bool:
        """Is there time for this capture, and so many in all? All ranks agree."""

        def affords(expected: float) -> bool:
            return self.budget.affords(
                spent=progress.capture_seconds + self.clock() - self.began,
                training=progress.seconds,
                expected=expected,
                done=step / self.last,
                captures=captures,
            )

        least = LEAST * len(self.captures)
        return agree(affords(least) and affords(self._expected(models, step)), self.ranks)

    def _expected(self, models: Mapping[str, Model], step: int) -> float:
        """Seconds, with the index of what was read since."""
        if self.takes is None:
            self.takes = sum(
                each.foretold(models[each.spec.weights], self.clock) for each in self.captures
            )
        reading = self.captures[0].reading
        return self.takes + (PER_TOKEN_READ * reading.ahead(step) if reading else 0.0)

    def _first(self, device: torch.device) -> Record:
        """The record of step 0, made later, where the model that is asked now has its place: a copy
        of shards may have none on a GPU."""
        model = initial(self.run).to(device)
        record = self._captured({"raw": model, "ema": model}, 0)
        return dated(self.run, 0, {LATE: 1.0, **record})

    def _captured(self, models: Mapping[str, Model], step: int) -> Record:
        began = self.clock()
        record, known = asked(self.captures, models, self.run, step)
        self.takes = self.clock() - began
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
        "and the end were captured whatever they cost; fewer prompts, seeds or tokens keep it"
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
