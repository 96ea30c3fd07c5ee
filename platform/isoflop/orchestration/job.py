"""What does a process need in order to carry out one run of a study, and what does it leave behind?

A `Job` is a run with its place on disk. `execute` trains it in this process and leaves, in its
folder:

    run.json          the resolved run, its identity, the study's axes
    checkpoints/      the newest ones while it runs, the weights at the end
    rollouts/         one parquet file per capture
    history.json      every logged record
    result.json       how it ended; written last, so a run with a final result is a finished one

This file knows no Ray: the same function serves tests, Tune trials and Train workers.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isoflop import __version__
from isoflop.data.loader import Batches, windows
from isoflop.data.prepare import Prepared
from isoflop.rollouts.capture import Budget, Capture, schedule
from isoflop.run import Run
from isoflop.training.checkpoint import Progress, write_json
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import held_out
from isoflop.training.loop import Hooks, Inputs, Outcome, Record, train
from isoflop.training.process import settle
from models.interface import Model

FINAL = ("finished", "diverged")  # facts of the study; anything else is tried again


@dataclass(frozen=True, kw_only=True)
class Job:
    """One resolved run of a study. Travels to workers, so it holds values and paths only."""

    study: str
    run: Run
    axes: dict[str, Any]
    label: str  # what people call it
    folder: Path  # of this run
    prepared: Prepared
    stop_file: Path  # exists when the study is asked to stop
    threads: int = 1  # of this process, on a CPU


def result(folder: Path) -> dict[str, Any] | None:
    """What `result.json` in a run's folder says; None if the run has not ended (or the file is
    torn).
    """
    try:
        values = json.loads((folder / "result.json").read_text())
    except (FileNotFoundError, ValueError):  # no JSON, or no text at all
        return None
    return values if isinstance(values, dict) else None


def execute(job: Job, ranks: Ranks, report: Callable[[list[Record]], None]) -> dict[str, Any]:
    """Carry out the job in this process and return its result.

    An exception becomes a result of status "failed" with its traceback: it would fail again, so
    nobody restarts it at once. Only a process that dies is restarted (by whoever started it).
    """
    settle(job.threads)
    job.folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    try:
        if ranks.leads:
            described = {"identity": job.run.identity, "study": job.study, "axes": job.axes}
            write_json(job.folder / "run.json", {**described, "run": job.run.as_json()})
        outcome = _train(job, ranks, report)
        values = _summary(job, outcome)
    except Exception as error:
        if ranks.world > 1:
            raise  # the other ranks wait in a collective: let the group be torn down
        values = {
            "status": "failed",
            "error": _last_line(error),
            "traceback": traceback.format_exc(),
        }
    values = {**values, **_circumstances(ranks, started)}
    if ranks.leads:
        write_json(job.folder / "result.json", values)
    return values


def _train(job: Job, ranks: Ranks, report: Callable[[list[Record]], None]) -> Outcome:
    prepared, run = job.prepared, job.run
    tokenizer = prepared.tokenizer()
    context = run.model.context
    batches = Batches(prepared.train(), context=context, rows=run.rows, seed=run.seed)
    count = max(1, run.evaluation.tokens // context)
    ids, targets = windows(prepared.validation(), context, count)
    text = held_out(ids, targets, torch.from_numpy(tokenizer.token_bytes()))
    capture = _Capture(job, tokenizer) if run.rollouts.prompts else None
    hooks = Hooks(report=report, capture=capture, stop=job.stop_file.exists)
    inputs = Inputs(batches=batches, held_out=text)
    outcome = train(run, inputs, ranks, job.folder / "checkpoints", hooks)
    if ranks.leads:
        write_json(job.folder / "history.json", outcome.progress.history)
        if outcome.status == "finished":
            _keep_newest(job.folder / "checkpoints")
    return outcome


def _keep_newest(folder: Path) -> None:
    """Only that, and nothing that a killed process left half written."""
    for old in [*sorted(folder.glob("step-*"))[:-1], *folder.glob(".step-*")]:
        shutil.rmtree(old)


class _Capture:
    """The rollouts of one run, within their budget: what the loop calls at the capture steps."""

    def __init__(self, job: Job, tokenizer: Any) -> None:
        # Loaded before the clock of the budget runs: a process's first capture would seem ten times
        # as dear as the next, and its run would have fewer captures than the others.
        import pandas  # noqa: F401  # pyarrow looks for it when it first makes an array
        import pyarrow.parquet  # noqa: F401

        run = job.run
        self.steps = schedule(run.steps, run.rollouts.captures)
        self.last = run.steps
        self.flops_per_token = run.model.flops_per_token().training
        self.batch_tokens = run.batch_tokens
        self.budget = Budget(run.rollouts.budget)
        self.expected = 0.0
        self.capture = Capture(
            run.rollouts,
            tokenizer,
            run=run.identity,
            study=job.study,
            axes=job.axes,
            folder=job.folder / "rollouts",
            context=run.model.context,
        )

    def __call__(self, model: Model, *, step: int, progress: Progress) -> Record:
        if not self.budget.affords(
            spent=progress.capture_seconds,
            training=progress.seconds,
            expected=self.expected,
            done=step / self.last,
        ):
            return {"capture/skipped": 1.0}
        tokens = step * self.batch_tokens
        captured = self.capture(
            model, step=step, tokens=tokens, flops=float(tokens) * self.flops_per_token
        )
        self.expected = captured.seconds
        record: Record = {}
        for name, aggregate in captured.aggregates.items():
            if aggregate.value is not None:
                record[f"rollout/{name}"] = aggregate.value
            if aggregate.low is not None and aggregate.high is not None:
                record[f"rollout/{name}.low"] = aggregate.low
                record[f"rollout/{name}.high"] = aggregate.high
        return record


def _summary(job: Job, outcome: Outcome) -> dict[str, Any]:
    """The last values of everything, and how long each part took."""
    progress = outcome.progress
    last: dict[str, float] = {}
    for record in progress.history:
        last.update(record)
    evaluated = [r["val/loss"] for r in progress.history if "val/loss" in r]
    return {
        "status": outcome.status,
        "error": None
        if outcome.status != "diverged"
        else f"loss not finite at step {progress.step}",
        "step": progress.step,
        "loss": last.get("val/loss") if outcome.status == "finished" else None,
        "best_loss": min(evaluated, default=None),
        "bits_per_byte": last.get("val/bits_per_byte") if outcome.status == "finished" else None,
        "train_loss": last.get("train/loss") if outcome.status == "finished" else None,
        "seconds": progress.seconds,
        "evaluation_seconds": progress.evaluation_seconds,
        "capture_seconds": progress.capture_seconds,
        "tokens_per_second": progress.step * job.run.batch_tokens / max(1e-9, progress.seconds),
        "rollouts": {k: v for k, v in last.items() if k.startswith("rollout/")},
    }


def _circumstances(ranks: Ranks, started: float) -> dict[str, Any]:
    return {
        "started": started,
        "ended": time.time(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": ranks.device,
        "workers": ranks.world,
        "versions": {
            "isoflop": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _last_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
