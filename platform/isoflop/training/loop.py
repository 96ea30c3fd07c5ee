"""How does a run go from random weights to a result? The one loop of the platform.

    batch(step) -> update -> (log, evaluate, capture, checkpoint at their steps) -> outcome

The loop knows its ranks and a function to report to; whether it runs under plain Python, torchrun,
Ray Tune or Ray Train is the caller's business. Everything it does between two updates (evaluation,
rollout capture, checkpoints, reports) leaves the weights and the random numbers of the next update
alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from isoflop import objectives
from isoflop.data.rows import Rows
from isoflop.objectives import Batch
from isoflop.run import Run
from isoflop.training import checkpoint, optimizer, parametrisation
from isoflop.training.averaging import Average
from isoflop.training.checkpoint import Progress
from isoflop.training.distributed import Ranks, agree, mean, wrap
from isoflop.training.evaluate import HeldOut, evaluate, points
from isoflop.training.feeder import Feeder, ahead
from isoflop.training.noise_scale import measure
from isoflop.training.step import seed_step, update
from isoflop.training.trunk import Trunk
from models.interface import Model

Record = dict[str, float]
Report = Callable[[list[Record]], None]


class Batches(Protocol):
    """Where batches come from: a pure function of the step, split evenly over the ranks."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows: ...


class Capture(Protocol):
    """What looks at the model between two steps and writes down what it does."""

    @property
    def steps(self) -> tuple[int, ...]: ...

    def __call__(
        self, model: Model, *, step: int, progress: Progress, averaged: Model | None
    ) -> Record:
        """`averaged`: the model with its weights averaged, where the run keeps that."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a run reads."""

    batches: Batches
    held_out: HeldOut
    # What every record tells of the tokens seen before a step, by the names it is logged under.
    seen: Callable[[int], Record] = lambda step: {}
    # Steps whose batches a thread frames ahead; None: as the device has use for (see `feeder`).
    ahead: int | None = None


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the caller wants from the loop besides the result."""

    # Called on every rank, with the records since the last call.
    report: Report = lambda records: None
    capture: Capture | None = None
    stop: Callable[[], bool] = lambda: False  # asked at each log; True ends the run at a checkpoint
    warn: Callable[[str], None] = print
    saved: Callable[[Path], None] = lambda path: None  # a checkpoint is whole; on the leading rank
    trunk: Trunk | None = None  # shared with other runs


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended. "stopped" runs go on from their checkpoint; the other two are final."""

    status: Literal["finished", "diverged", "stopped"]
    progress: Progress = field(repr=False)
    model: Model = field(repr=False)
    averaged: Model | None = field(repr=False, default=None)


def log_every(steps: int) -> int:
    """About 100 records a run, and never more than 50 steps between two looks at the clock."""
    return min(50, max(1, steps // 100))


def train(
    run: Run, inputs: Inputs, ranks: Ranks, folder: Path, hooks: Hooks | None = None
) -> Outcome:
    """Train `run` to its end, from the newest checkpoint in `folder` if there is one.

    The same run gives the same losses to the bit on the same machine, interrupted or not, captured
    or not; with more ranks it agrees to rounding, since the global batches are the same.
    """
    hooks = hooks or Hooks()
    torch.manual_seed(run.seed)
    model = run.model.build()
    parametrisation.initialise(model, run.parametrisation)
    model = model.to(ranks.device)
    optim = optimizer.build(model, run.optimizer, run.parametrisation)
    average = Average.of(run, model)
    progress = checkpoint.load(folder, run, model, optim, hooks.warn, average)
    if progress.step == 0 and hooks.trunk:
        progress = hooks.trunk.begin(run, model, optim, average, hooks.warn) or progress
    session = _Session(run, inputs, ranks, folder, hooks, model, optim, progress, average)
    return session.go()


class _Session:
    """One process's part of one run. Holds what the steps share; `go` is the loop."""

    def __init__(
        self,
        run: Run,
        inputs: Inputs,
        ranks: Ranks,
        folder: Path,
        hooks: Hooks,
        model: Model,
        optim: torch.optim.Optimizer,
        progress: Progress,
        average: Average | None,
    ) -> None:
        self.run, self.inputs, self.ranks, self.folder, self.hooks = (
            run,
            inputs,
            ranks,
            folder,
            hooks,
        )
        self.model, self.optim, self.progress = model, optim, progress
        self.average = average
        self.objective = objectives.build(run.objective, run.model)
        self.evaluations = frozenset({0, *points(run.steps, run.evaluation.times)})
        self.captures = frozenset(hooks.capture.steps if hooks.capture else ())
        self.forks = frozenset(hooks.trunk.forks if hooks.trunk else ())
        self.losses: list[Tensor] = []
        self.reported = len(progress.history)
        self.saved_at = time.monotonic()
        self.rate = run.optimizer.lr
        self.recorded = (progress.seconds, 0.0)  # training and waiting, at the last record

    def go(self) -> Outcome:
        device, wanted = self.ranks.device, self.inputs.ahead
        with Feeder(
            self._frame,
            start=self.progress.step,
            stop=self.run.steps,
            device=device,
            ahead=ahead(device) if wanted is None else wanted,
        ) as feeder:
            return self._steps(feeder)

    def _steps(self, feeder: Feeder) -> Outcome:
        run, progress = self.run, self.progress
        forward = wrap(self.model, self.ranks)
        self.model.train()
        every = log_every(run.steps)
        if progress.step == 0:
            self._look({})
        started = time.perf_counter()
        while progress.step < run.steps:
            norm = self._advance(forward, feeder)
            if progress.step in self.forks:
                started += self._fork(time.perf_counter() - started)
            due = progress.step % every == 0 or progress.step == run.steps
            if not due and progress.step not in self.evaluations | self.captures:
                continue
            progress.seconds += time.perf_counter() - started
            record = self._record(norm, feeder.waited)
            if not math.isfinite(record["train/loss"]):
                progress.history.append({**self._place(), **record})
                return self._end("diverged")
            self._look(record)
            if agree(self.hooks.stop(), self.ranks) and progress.step < run.steps:
                self._save()
                return self._end("stopped")
            self._save_if_due()
            started = time.perf_counter()
        return self._end("finished")

    def _advance(self, forward: torch.nn.Module, feeder: Feeder) -> Tensor:
        step = self.progress.step
        self.rate = optimizer.learning_rate(
            self.run.schedule, step, self.run.steps, self.run.optimizer.lr
        )
        optimizer.set_learning_rate(self.optim, self.rate)
        seed_step(self.run, step, self.ranks)
        batch = feeder.batch(step)
        loss, norm = update(forward, self.optim, self.objective, batch, self.run, self.ranks)
        if self.average:
            self.average.update(self.model)
        self.losses.append(loss)
        self.progress.step = step + 1
        return norm

    def _fork(self, since: float) -> float:
        """Leave a checkpoint for the runs that go their own way here; the seconds it took. One that
        cannot be written is said: they train alone. `since`: training seconds not yet counted."""
        began = time.perf_counter()
        progress = replace(self.progress, seconds=self.progress.seconds + since)
        if self.ranks.leads and self.hooks.trunk:
            try:
                self.hooks.trunk.keep(self.run, progress, self.model, self.optim, self.average)
            except OSError as error:
                self.hooks.warn(f"no fork of the trunk at step {progress.step}: {error}")
        return time.perf_counter() - began

    def _frame(self, step: int) -> Batch:
        """Called on the feeder's thread: it may draw no random numbers, and keep nothing."""
        rows = self.inputs.batches.batch(step, self.ranks.rank, self.ranks.world)
        return self.objective.batch(rows)

    def _record(self, norm: Tensor, waited: float) -> Record:
        step, seconds = self.progress.step, self.progress.seconds
        before, self.recorded = self.recorded, (seconds, waited)
        loss = mean(torch.stack(self.losses).mean(), self.ranks)
        self.losses.clear()
        return {
            "train/loss": loss,
            "gradient_norm": float(norm),
            "learning_rate": self.rate,
            "tokens_per_second": step * self.run.batch_tokens / max(1e-9, seconds),
            # Share of the time since the last record that the loop stood still for batches.
            "data/waited": (waited - before[1]) / max(1e-9, seconds - before[0]),
            **{name: float(value) for name, value in self.model.measures().items()},
        }

    def _place(self) -> Record:
        """What every record begins with: tables, trackers and displays go by the step."""
        tokens = self.progress.step * self.run.batch_tokens
        return {
            "step": self.progress.step,
            "tokens": tokens,
            "flops": float(tokens) * self.run.model.flops_per_token().training,
            "seconds": self.progress.seconds,
            **self.inputs.seen(self.progress.step),
        }

    def _look(self, record: Record) -> None:
        """Evaluate and capture if it is time, then keep and report the record."""
        step = self.progress.step
        record = {**self._place(), **record}
        if step in self.evaluations:
            record |= self._evaluate()
            if self.run.evaluation.noise_scale:
                record |= self._noise_scale()
        if step in self.captures and self.hooks.capture is not None:
            record |= self._capture(self.hooks.capture)
        self.progress.history.append(record)
        self._report()

    def _evaluate(self) -> Record:
        started = time.perf_counter()
        model = self.model
        if self.average and self.run.evaluation.weights == "ema":
            model = self.average.model
        score = evaluate(model, self.inputs.held_out, self.objective, self.ranks, self.run.rows)
        self.progress.evaluation_seconds += time.perf_counter() - started
        record = {"val/loss": score.loss, "val/bits_per_byte": score.bits_per_byte}
        for name, part in score.parts.items():
            record[f"val/loss/{name}"] = part.loss
            record[f"val/bits_per_byte/{name}"] = part.bits_per_byte
        return record

    def _noise_scale(self) -> Record:
        """Of the next step's rows; its time is the evaluations'."""
        started, step = time.perf_counter(), self.progress.step
        rows = self.inputs.batches.batch(step, self.ranks.rank, self.ranks.world)
        found = measure(self.model, self.objective, rows, self.run, self.ranks)
        self.progress.evaluation_seconds += time.perf_counter() - started
        if found is None:
            return {}
        return {"gradient/signal": found.signal, "gradient/noise": found.noise}

    def _capture(self, capture: Capture) -> Record:
        """All ranks capture, each its share of the prompts; rank 0 has the record."""
        started = time.perf_counter()
        record = capture(
            self.model,
            step=self.progress.step,
            progress=self.progress,
            averaged=self.average.model if self.average else None,
        )
        self.progress.capture_seconds += time.perf_counter() - started
        return record

    def _report(self) -> None:
        self.hooks.report(self.progress.history[self.reported :])
        self.reported = len(self.progress.history)

    def _save_if_due(self) -> None:
        due = time.monotonic() - self.saved_at >= self.run.checkpoints.seconds
        if agree(due, self.ranks):
            self._save()

    def _save(self, final: bool = False) -> None:
        """On the way, a checkpoint that cannot be written (a full disk) is said and done without:
        the one before it stands. At the end there is no result without it."""
        if self.ranks.leads:
            optim = None if final else self.optim
            try:
                path = checkpoint.save(
                    self.folder, self.run, self.progress, self.model, optim, self.average
                )
            except OSError as error:
                if final:
                    raise
                self.hooks.warn(f"no checkpoint at step {self.progress.step}: {error}")
            else:
                self.hooks.saved(path)
        self.saved_at = time.monotonic()

    def _end(self, status: Literal["finished", "diverged", "stopped"]) -> Outcome:
        self._report()
        if status == "finished":
            self._save(final=True)
        averaged = self.average.model if self.average else None
        return Outcome(status=status, progress=self.progress, model=self.model, averaged=averaged)
