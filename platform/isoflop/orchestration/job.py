"""What does a process need in order to carry out one run of a study, and what does it leave behind?

A `Job` is a run with its place on disk. `execute` trains it in this process and leaves, in its
folder:

    run.json          the resolved run, its identity, the study's axes
    checkpoints/      the newest ones while it runs, the weights and the tokenizer at the end
    rollouts/         one parquet file per capture
    traceback.txt     of the error that ended it, if one did
    prune             why a search ends it early; written by the driver
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
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from isoflop import __version__
from isoflop.data import feed, tokenizers
from isoflop.data.mixture import Mixed, parts
from isoflop.data.prepare import Prepared
from isoflop.orchestration.capturing import (
    NOTES,
    SKIPPED,
    Capturing,
    captures,
    noted,
    overspent,
    waiting,
    write_references,
)
from isoflop.orchestration.mirror import Mirror
from isoflop.orchestration.system import Meter
from isoflop.rollouts.capture import Capture as RolloutCapture
from isoflop.run import Run
from isoflop.training.checkpoint import AVERAGED, WEIGHTS, write_json
from isoflop.training.distributed import Ranks, is_sharded
from isoflop.training.evaluate import HeldOut
from isoflop.training.loop import Capture, Hooks, Inputs, Outcome, Record, train
from isoflop.training.means import USUAL, Means
from isoflop.training.noise_scale import noise_scale
from isoflop.training.precision import refusal
from isoflop.training.process import keep_to, settle
from isoflop.training.trunk import Trunk
from models.interface import Model

PRUNE = "prune"
FINAL = (
    "finished",
    "diverged",
    "alarmed",
    "pruned",
)  # facts of the study; anything else is tried again


@dataclass(frozen=True, kw_only=True)
class Job:
    """One resolved run of a study. Travels to workers, so it holds values and paths only."""

    study: str
    run: Run
    axes: dict[str, Any]
    label: str  # what people call it
    folder: Path  # of this run
    prepared: Prepared | Mixed
    stop_file: Path  # exists when the study is asked to stop
    threads: int = 1  # of this process, on a CPU
    mirror: Mirror | None = None  # where the folder is kept, if not on this machine's disk
    trunk: Trunk | None = None  # what it shares with longer or shorter runs
    means: Means = USUAL  # how it is computed here
    beside: bool = False  # rollouts are captured by another process (see `scribe`), not by this one
    late: bool = False  # it has ended, and only has to be asked what it put off (see `later`)


def result(folder: Path) -> dict[str, Any] | None:
    """What `result.json` in a run's folder says; None if the run has not ended (or the file is
    torn).
    """
    try:
        values = json.loads((folder / "result.json").read_text())
    except (FileNotFoundError, ValueError):  # no JSON, or no text at all
        return None
    return values if isinstance(values, dict) else None


def execute(
    job: Job,
    ranks: Ranks,
    report: Callable[[list[Record]], None],
    beside: Callable[[Job, Ranks], Capture] | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Carry out the job in this process and return its result, to whose `warnings` others are
    added.

    `beside` gives what captures the rollouts of a job that wants another process to do it.

    An exception becomes a result of status "failed" with its traceback: it would fail again, so
    nobody restarts it at once. Only a process that dies is restarted (by whoever started it).
    """
    settle(job.threads)
    keep_to(ranks.device, job.means.gpu)
    started = time.time()
    warnings = [*warnings]
    try:
        begun = begin(job, ranks, report, beside, warnings.append)
        checkpoints = job.folder / "checkpoints"
        outcome = train(job.run, begun.inputs, ranks, checkpoints, begun.hooks, job.means)
        values = begun.ended(outcome)
    except Exception as error:
        if ranks.world > 1:
            raise  # the other ranks wait in a collective: let the group be torn down
        values = {
            "status": "failed",
            "error": _last_line(error),
            "traceback": traceback.format_exc(),
        }
    values = {**values, **circumstances(ranks, started), "warnings": warnings}
    return conclude(job, values) if ranks.leads else values


def conclude(job: Job, values: dict[str, Any]) -> dict[str, Any]:
    """Write a job's result down, and its traceback beside it, and return the result.

    What cannot be written (the disk is full) was not finished: it is a failure, in words only, and
    the same command does it again.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        if "traceback" in values:
            (job.folder / "traceback.txt").write_text(values["traceback"])
        write_json(job.folder / "result.json", values)
        if job.mirror:
            job.mirror.end(job.folder)
    except OSError as error:
        why = values.get("error") or _last_line(error)
        return {**values, "status": "failed", "error": why}
    return values


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A job whose folder says what it is: what its training needs, and what is made of that."""

    job: Job
    ranks: Ranks
    inputs: Inputs
    hooks: Hooks
    meter: Meter
    asked: list[RolloutCapture]
    own: Capturing | None  # what captures them in this process

    def ended(self, outcome: Outcome) -> dict[str, Any]:
        """Keep what the training left, and say how it went."""
        job = self.job
        if self.ranks.leads:
            made = noted(job.folder, job.run, outcome.progress.step)
            outcome.progress.history = in_order([*outcome.progress.history, *made])
            self._keep(outcome)
        values = {**_summary(job, outcome), "utilisation": self.meter.utilisation}
        alarm = self.own.stopped if self.own else None
        if outcome.status == "stopped" and alarm is not None:
            values |= {"status": "alarmed", "error": str(alarm)}
        elif outcome.status == "stopped" and (job.folder / PRUNE).exists():
            values |= {"status": "pruned", "error": (job.folder / PRUNE).read_text()}
        for warning in overspent(job.run, values):
            self.hooks.warn(warning)
        if outcome.status == "finished":
            values["data"] = feed.described(job.run, feed.batches(job.run, job.prepared))
        return values

    def _keep(self, outcome: Outcome) -> None:
        job = self.job
        write_json(job.folder / "history.json", outcome.progress.history)
        if outcome.status == "finished":
            _remove(job, NOTES)
            final = _keep_newest(job.folder / "checkpoints")
            tokenizers.save(job.prepared.tokenizer(), final)
            if job.mirror:
                job.mirror.checkpoint(final)
            if self.asked:
                model = self._whole(outcome.model, final / WEIGHTS)
                averaged = outcome.averaged
                if averaged:
                    averaged = self._whole(averaged, final / AVERAGED)
                models = {"raw": model, "ema": averaged or model}
                write_references(job.run, job.prepared, self.asked, models)

    def _whole(self, model: Model, kept: Path) -> Model:
        """For this rank alone: of shards it has no more than its own, but a file has them all."""
        if not is_sharded(model):
            return model
        made = self.job.run.model.build()
        load_model(made, str(kept))
        return made.to(self.ranks.device)


def begin(
    job: Job,
    ranks: Ranks,
    report: Callable[[list[Record]], None],
    beside: Callable[[Job, Ranks], Capture] | None,
    warn: Callable[[str], None],
) -> Begun:
    """Open the job's folder and its text."""
    _open(job, ranks)
    prepared, run = job.prepared, job.run
    if ranks.device.startswith("cuda") and (why := refusal(run.precision, ranks.device)):
        raise ValueError(why)
    feed.check(run, prepared)
    batches = feed.batches(run, prepared)
    rows = feed.held_out(run, prepared)
    sizes = torch.from_numpy(prepared.tokenizer().token_bytes())
    shares = dict(zip(rows, batches.turns.shares, strict=True))
    text = HeldOut.of(rows, sizes, shares)
    folder = job.folder / "rollouts"
    asked = captures(run, prepared, folder, ranks, study=job.study, axes=job.axes)
    own = Capturing(run, asked, ranks) if asked else None
    capture: Capture | None = own
    if asked and job.beside and beside is not None and not run.rollouts.alarms:
        capture = beside(job, ranks)

    def stop() -> bool:
        asked = job.stop_file.exists() or (job.folder / PRUNE).exists()
        return asked or (own is not None and own.stop())

    saved = job.mirror.checkpoint if job.mirror else lambda path: None
    meter = Meter(run, ranks, report)
    hooks = Hooks(report=meter, capture=capture, stop=stop, saved=saved, warn=warn, trunk=job.trunk)
    inputs = Inputs(batches=batches, held_out=text, seen=batches.seen)
    return Begun(
        job=job, ranks=ranks, inputs=inputs, hooks=hooks, meter=meter, asked=asked, own=own
    )


def _open(job: Job, ranks: Ranks) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    if job.mirror:
        texts = [part.folder for part in parts(job.prepared).values()]
        job.mirror.begin(job.folder, texts)
    if ranks.leads:
        _remove(job, "traceback.txt")
        described = {"identity": job.run.identity, "study": job.study, "axes": job.axes}
        write_json(job.folder / "run.json", {**described, "run": job.run.as_json()})


def _remove(job: Job, name: str) -> None:
    path = job.folder / name
    if path.exists():
        path.unlink()
        if job.mirror:
            job.mirror.remove(path)


def in_order(history: list[Record]) -> list[Record]:
    """One record a step: what was known of a step only later belongs to it."""
    found: dict[float, Record] = {}
    for record in history:
        step = record["step"]
        found[step] = {**found.get(step, {}), **record}
    return [found[step] for step in sorted(found)]


def _keep_newest(folder: Path) -> Path:
    """Only that, and nothing that a killed process left half written."""
    *older, newest = sorted(folder.glob("step-*"))
    for old in [*older, *folder.glob(".step-*")]:
        shutil.rmtree(old)
    return newest


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
        "noise_scale": noise_scale(progress.history),
        "train_loss": last.get("train/loss") if outcome.status == "finished" else None,
        "seconds": progress.seconds,
        "evaluation_seconds": progress.evaluation_seconds,
        "capture_seconds": progress.capture_seconds,
        "capture_share": progress.capture_seconds / max(1e-9, progress.seconds),
        "captures_skipped": sum(r.get(SKIPPED, 0.0) for r in progress.history),
        "captures_waiting": waiting(progress.history),  # steps; made when the study's runs are over
        "shared_steps": progress.shared_steps,
        "shared_seconds": progress.shared_seconds,
        "tokens_per_second": progress.step * job.run.batch_tokens / max(1e-9, progress.seconds),
        "rollouts": last_capture(progress.history),
        **outcome.computed,
    }


def last_capture(history: list[Record]) -> Record:
    """What the newest capture measured. A metric that it has no value for has none, though an
    earlier capture may have had one."""
    captured = [{k: v for k, v in r.items() if k.startswith("rollout/")} for r in history]
    return next((record for record in reversed(captured) if record), {})


def circumstances(ranks: Ranks, started: float) -> dict[str, Any]:
    return {
        "started": started,
        "ended": time.time(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": ranks.device,
        "workers": ranks.world,
        "versions": {
            "isoflop": __version__,
            "code": code(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


@cache
def code() -> str:
    """Which state of the code this is: a commit (and "+changes"), or the version installed."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/")
    except (OSError, subprocess.CalledProcessError):  # no git, or installed from a wheel
        return f"isoflop {__version__}"
    return f"{commit}+changes" if changed else commit


def _last_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
