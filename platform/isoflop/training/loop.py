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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from isoflop import objectives
from isoflop.data.rows import Rows
from isoflop.objectives import Batch
from isoflop.run import Run
from isoflop.training import (
    attending,
    checkpoint,
    compiling,
    micro,
    optimizer,
    parametrisation,
    sharding,
)
from isoflop.training.averaging import Average
from isoflop.training.checkpoint import Progress
from isoflop.training.distributed import Ranks, agree, is_sharded, mean, wrap
from isoflop.training.evaluate import HeldOut, evaluate, points
from isoflop.training.feeder import Feeder, ahead
from isoflop.training.means import USUAL, Means
from isoflop.training.noise_scale import measure
from isoflop.training.precision import LossScale
from isoflop.training.step import gradients, move, seed_step
from isoflop.training.trunk import Trunk
from models.interface import Model

Record = dict[str, float]
Report = Callable[[list[Record]], None]


MANY = 0.05  # of a run's steps; a float16 run leaves out a few until its scale is found


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
    computed: dict[str, Any] = field(repr=False, default_factory=dict)  # by which means


def log_every(steps: int) -> int:
    """About 100 records a run, and never more than 50 steps between two looks at the clock."""
    return min(50, max(1, steps // 100))


def train(
    run: Run,
    inputs: Inputs,
    ranks: Ranks,
    folder: Path,
    hooks: Hooks | None = None,
    means: Means = USUAL,
) -> Outcome:
    """Train `run` to its end, from the newest checkpoint in `folder` if there is one.

    The same run gives the same losses to the bit on the same machine, interrupted or not, captured
    or not; with more ranks it agrees to rounding, since the global batches are the same.
    """
    return session(run, inputs, ranks, folder, hooks or Hooks(), means).go(means)


def session(
    run: Run, inputs: Inputs, ranks: Ranks, folder: Path, hooks: Hooks, means: Means = USUAL
) -> Session:
    """The run with its weights as they are at the start, or in the newest checkpoint."""
    torch.manual_seed(run.seed)
    model = _drawn(run)
    attending.prepare(model, run, ranks.device, means)
    sharded = sharding.wanted(run, ranks, means)
    model = model if sharded else model.to(ranks.device)
    optim = optimizer.build(model, run.optimizer, run.parametrisation)
    average = Average.of(run, model)
    progress = checkpoint.load(folder, run, model, optim, hooks.warn, average)
    if progress.step == 0 and hooks.trunk:
        progress = hooks.trunk.begin(run, model, optim, average, hooks.warn) or progress
    if sharded:
        averaged = average.model if average else None
        optim = sharding.shard(model, optim, averaged, run, ranks)
    return Session(run, inputs, ranks, folder, hooks, model, optim, progress, average)


def initial(run: Run) -> Model:
    """The model of step 0, on the CPU: its weights follow from the seed. Random numbers of others
    are left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        return _drawn(run)


def _drawn(run: Run) -> Model:
    model = run.model.build()
    parametrisation.initialise(model, run.parametrisation)
    return model


class Session:
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
        self.sharded = is_sharded(model)
        self.on_gpu = ranks.device.startswith("cuda")
        self.losses: list[Tensor] = []
        self.reported = len(progress.history)
        self.saved_at = time.monotonic()
        self.rate = run.optimizer.lr
        self.every = log_every(run.steps)
        self.started = time.perf_counter()  # the clock of training
        # Called before anything but a step reads the weights, or (True) the optimizer's moments
        # too: they may be kept elsewhere (see `together`).
        self.fetch: Callable[[bool], None] = lambda moments: None
        self.callable: torch.nn.Module = model  # what a step calls: the model, or compiled
        share = run.rows // ranks.world
        self.micro = micro.Micro(model=model, ranks=ranks, folder=folder, share=share, rows=share)
        self.scale = LossScale.of(run, ranks.device, progress.scale)
        self.recorded = (progress.seconds, 0.0)  # training and waiting, at the last record
        self.waited: Callable[[], float]  # seconds, for batches; while there is a feeder

    def go(self, means: Means) -> Outcome:
        device, wanted = self.ranks.device, self.inputs.ahead
        self.callable = compiling.prepared(self.model, self.run, self.ranks, means)
        self.micro = micro.choose(
            self.model, self.objective, lambda: self.frame(self.progress.step), self.run,
            self.ranks, self.folder, means, moments=self._moments(), sharded=self.sharded,
        )  # fmt: skip
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(device)  # what was tried is not what it takes
        with Feeder(
            self.frame,
            start=self.progress.step,
            stop=self.run.steps,
            device=device,
            ahead=ahead(device) if wanted is None else wanted,
        ) as feeder:
            self.waited = lambda: feeder.waited
            outcome = self._steps(feeder)
        del self.waited  # which holds the feeder, which holds this: the model would outlive its run
        return outcome

    def _steps(self, feeder: Feeder) -> Outcome:
        run, progress = self.run, self.progress
        forward = wrap(self.callable, self.ranks)
        self.begin()
        while progress.step < run.steps:
            norm = self._advance(forward, feeder)
            if progress.step in self.forks:
                self._fork()
            if self.due and (ended := self.look(norm)):
                return ended
        return self.end("finished")

    def begin(self) -> None:
        """What comes before the first step; the clock starts."""
        self.model.train()
        if self.progress.step == 0:
            self._note({})
        self.started = time.perf_counter()

    @property
    def due(self) -> bool:
        """Is there anything to do between this step and the next?"""
        step = self.progress.step
        logged = step % self.every == 0 or step == self.run.steps
        return logged or step in self.evaluations | self.captures

    def look(self, norm: Tensor) -> Outcome | None:
        """Log, evaluate, capture and save as is due after this step, whose gradient had that norm.
        The outcome, where the run ends here before its time."""
        self.clock()
        record = self._record(norm)
        if not math.isfinite(record["train/loss"]):
            self.progress.history.append({**self._place(), **record})
            return self.end("diverged")
        self._note(record)
        if agree(self.hooks.stop(), self.ranks) and self.progress.step < self.run.steps:
            self._save()
            return self.end("stopped")
        self._save_if_due()
        self.started = time.perf_counter()
        return None

    def clock(self) -> None:
        """Count the seconds of the steps since the clock was started. A device that still computes
        is waited for: its time is training's."""
        if self.ranks.device.startswith("cuda"):
            torch.cuda.synchronize(self.ranks.device)
        self.progress.seconds += time.perf_counter() - self.started
        self.started = time.perf_counter()

    def _advance(self, forward: torch.nn.Module, feeder: Feeder) -> Tensor:
        step = self.progress.step
        self.rate = optimizer.learning_rate(
            self.run.schedule, step, self.run.steps, self.run.optimizer.lr
        )
        optimizer.set_learning_rate(self.optim, self.rate)
        batch = feeder.batch(step)

        def attempt() -> Tensor:
            seed_step(self.run, step, self.ranks)
            return gradients(
                forward, self.objective, batch, self.run, self.ranks,
                rows=self.micro.rows, scale=self.scale,
            )  # fmt: skip

        loss = self.micro.steadily(attempt, self.hooks.warn)
        norm = move(forward, self.optim, self.run, scale=self.scale)
        if self.average:
            self.average.update(self.model)
        self.losses.append(loss)
        self.progress.step = step + 1
        return norm

    def _fork(self) -> None:
        """Leave a checkpoint for the runs that go their own way here. One that cannot be written is
        said: they train alone. The clock stands still meanwhile."""
        self.clock()
        self._note_scale()
        model, optim, averaged = self._whole()
        if self.ranks.leads and self.hooks.trunk and optim:
            try:
                self.hooks.trunk.keep(self.run, self.progress, model, optim, averaged)
            except OSError as error:
                self.hooks.warn(f"no fork of the trunk at step {self.progress.step}: {error}")
        self.started = time.perf_counter()

    def _moments(self) -> int:
        """Bytes that come on top of a first pass: what an optimizer keeps of each weight, at most
        AdamW's two numbers, and the buckets in which gradients travel."""
        held = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return (0 if self.optim.state else 2 * held) + (held if self.ranks.world > 1 else 0)

    def frame(self, step: int) -> Batch:
        """Called on the feeder's thread: it may draw no random numbers, and keep nothing."""
        rows = self.inputs.batches.batch(step, self.ranks.rank, self.ranks.world)
        return self.objective.batch(rows)

    def _record(self, norm: Tensor) -> Record:
        step, seconds, waited = self.progress.step, self.progress.seconds, self.waited()
        before, self.recorded = self.recorded, (seconds, waited)
        loss = mean(torch.stack(self.losses).mean(), self.ranks)
        self.losses.clear()
        return {
            "train/loss": loss,
            **self._gradient(float(norm)),
            "learning_rate": self.rate,
            "tokens_per_second": step * self.run.batch_tokens / max(1e-9, seconds),
            # Share of the time since the last record that the loop stood still for batches.
            "data/waited": (waited - before[1]) / max(1e-9, seconds - before[0]),
            **{name: float(value) for name, value in self.model.measures().items()},
        }

    def _gradient(self, norm: float) -> Record:
        """A step that is left out for its overflow has no norm."""
        self._note_scale()
        if self.scale is None:
            return {"gradient_norm": norm}
        kept = {"gradient_norm": norm} if math.isfinite(norm) else {}
        return {
            **kept,
            "loss_scale": self.scale.scaler.get_scale(),
            "steps_left_out": float(self.progress.scale["left_out"]),
        }

    def _note_scale(self) -> None:
        if self.scale is not None:
            self.progress.scale = self.scale.state()

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

    def _note(self, record: Record) -> None:
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
        self.fetch(False)
        model = self.model
        if self.average and self.run.evaluation.weights == "ema":
            model = self.average.model
        # Ranks of a model in shards must call it equally often: each judges everything.
        ranks = Ranks(device=self.ranks.device) if self.sharded else self.ranks
        score = self.micro.steadily(
            lambda: evaluate(
                model, self.inputs.held_out, self.objective, ranks,
                self.micro.evaluating(self.run.rows),
            ),
            self.hooks.warn,
        )  # fmt: skip
        self.progress.evaluation_seconds += time.perf_counter() - started
        record = {"val/loss": score.loss, "val/bits_per_byte": score.bits_per_byte}
        for name, part in score.parts.items():
            record[f"val/loss/{name}"] = part.loss
            record[f"val/bits_per_byte/{name}"] = part.bits_per_byte
        return record

    def _noise_scale(self) -> Record:
        """Of the next step's rows; its time is the evaluations'."""
        started, step = time.perf_counter(), self.progress.step
        self.fetch(False)
        rows = self.inputs.batches.batch(step, self.ranks.rank, self.ranks.world)
        found = self.micro.steadily(
            lambda: measure(
                self.model, self.objective, rows, self.run, self.ranks, self.micro.rows
            ),
            self.hooks.warn,
        )
        self.progress.evaluation_seconds += time.perf_counter() - started
        if found is None:
            return {}
        return {"gradient/signal": found.signal, "gradient/noise": found.noise}

    def _capture(self, capture: Capture) -> Record:
        """All ranks capture, each its share of the prompts; rank 0 has the record."""
        started = time.perf_counter()
        self.fetch(False)
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
        self.fetch(not final)
        model, optim, averaged = self._whole(final)
        if self.ranks.leads:
            try:
                path = checkpoint.save(self.folder, self.run, self.progress, model, optim, averaged)
            except OSError as error:
                if final:
                    raise
                self.hooks.warn(f"no checkpoint at step {self.progress.step}: {error}")
            else:
                self.hooks.saved(path)
        self.saved_at = time.monotonic()

    def _whole(
        self, final: bool = False
    ) -> tuple[Model, torch.optim.Optimizer | None, Model | None]:
        """What a checkpoint holds. All ranks ask at the same step."""
        optim = None if final else self.optim
        averaged = self.average.model if self.average else None
        if not self.sharded:
            return self.model, optim, averaged
        if averaged:
            averaged, _ = sharding.gathered(self.run, averaged, None, self.ranks)
        return *sharding.gathered(self.run, self.model, optim, self.ranks), averaged

    def end(self, status: Literal["finished", "diverged", "stopped"]) -> Outcome:
        self._report()
        self.fetch(False)
        left_out = self.progress.scale.get("left_out", 0)
        if left_out > MANY * self.progress.step:
            self.hooks.warn(
                f"{left_out} of {self.progress.step} steps were left out, since their gradients "
                "overflowed float16"
            )
        if status == "finished":
            self._save(final=True)
        averaged = self.average.model if self.average else None
        return Outcome(
            status=status,
            progress=self.progress,
            model=self.model,
            averaged=averaged,
            computed={**self.micro.described(), **self._described()},
        )

    def _described(self) -> dict[str, Any]:
        """For the run's result, beside what `micro` says."""
        device = self.ranks.device
        return {
            "steps_left_out": self.progress.scale.get("left_out", 0),
            "sharded": self.sharded,
            "compiled": self.callable is not self.model,
            "attention": self.model.backend,
            "peak_bytes": torch.cuda.max_memory_allocated(device) if self.on_gpu else None,
        }
