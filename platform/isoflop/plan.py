"""What would a study cost, and what did it? Runs, parameters, tokens, FLOPs and time.

Time is predicted from a second or two of real training steps of each model on this machine, or of
a named GPU from its peak and the share of it that is hoped for.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isoflop import objectives
from isoflop.data.rows import sample
from isoflop.orchestration.job import Job, result
from isoflop.orchestration.staffing import Place, Staff, makespan, staffed, wall
from isoflop.progress import duration
from isoflop.run import Run, short
from isoflop.training import optimizer
from isoflop.training.distributed import Ranks
from isoflop.training.means import USUAL, Means
from isoflop.training.peak import SHEETS, capacity, listed
from isoflop.training.process import settle
from isoflop.training.step import update
from models.interface import Config

PLAN = "plan.json"  # in a study's folder: the seconds that `--plan` gave each run, by identity
HOPED = (
    0.35  # of a named GPU's peak: what a model of some 100 M parameters reaches, small ones less
)
UNKNOWN = 1e14  # FLOPs a second of a GPU without a data sheet
SHORT_STEP = 2e-3  # seconds: about what a GPU needs to be told of a step, however small
Workers = int | Literal["auto"] | None  # of each run; None: "auto" where there are several GPUs
LARGEST_STEP = 2e11  # FLOPs of a step worth trying out here; larger models are extrapolated


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU that is not here, and the share of its peak that training reaches there."""

    name: str
    share: float

    @staticmethod
    def parse(text: str) -> Device:
        """Of "H100", or "H100:0.5". Raises ValueError."""
        name, _, share = text.partition(":")
        device = Device(name=name, share=float(share) if share else HOPED)
        if not 0 < device.share <= 1:
            raise ValueError(f"--on {text}: the share of the peak must be above 0, and at most 1")
        device.flops  # noqa: B018  a name that nobody knows is said at once
        return device

    @property
    def flops(self) -> float:
        """What training does in a second."""
        peak = listed(self.name)
        if peak is None:
            known = ", ".join(SHEETS)
            raise ValueError(f"--on {self.name}: no GPU of that name is known; known are {known}")
        return peak * self.share

    @property
    def memory(self) -> int:
        """Bytes."""
        return capacity(self.name) or 0

    def __str__(self) -> str:
        return f"{self.name} at {self.share:.0%} of its peak"


def show(
    jobs: list[Job],
    left: list[Job],
    workers: Workers,
    at_once: int | None,
    price: float | None = None,
    *,
    summary: bool = True,
    shared: Mapping[str, int] | None = None,
    device: Device | None = None,
    means: Means = USUAL,
) -> dict[str, float]:
    """Print the table of `jobs` and the cost of those that are `left`, in dollars too if there is a
    `price` per hour of this machine, or of GPUs of the kind that `device` names. `shared`: steps
    that a run has from a trunk, by identity. Returns the seconds of every job on one core or GPU,
    by identity.
    """
    from rich.console import Console
    from rich.table import Table

    predicted = alone(jobs, device.flops if device else None)
    if device:
        quick = [job.label for job in jobs if _step_flops(job.run) / device.flops < SHORT_STEP]
        if quick:
            print(
                f"{len(quick)} of {len(jobs)} points have steps of less than {SHORT_STEP * 1e3:g} "
                f"ms there ({quick[0]}): such small ones take longer than this says."
            )
    shared = shared or {}
    own = {job.run.identity: 1 - shared.get(job.run.identity, 0) / job.run.steps for job in jobs}
    seconds = {name: own[name] * predicted[name] for name in own}
    waiting = {job.run.identity for job in left}
    staff = by_size(left, seconds, workers, at_once, device, means)
    table = Table(box=None, pad_edge=False)
    table.add_column("point")
    known = ("parameters", "tokens", "epochs", "steps", "rate", "FLOPs", "time")
    for name in (*known, *(["workers"] if staff else []), ""):
        table.add_column(name, justify="right")
    for job in jobs:
        run, name = job.run, job.run.identity
        table.add_row(
            job.label,
            short(float(run.model.parameters().all)),
            short(float(run.tokens or 0)),
            f"{(run.tokens or 0) / job.prepared.train_tokens:.2f}",
            str(run.steps),
            short(run.optimizer.lr),
            short(float(run.training_flops)),
            duration(seconds[name]),
            *([str(staff.get(name, ""))] if staff else []),
            "" if name in waiting else "finished",
        )
    Console(width=max(100, Console().width)).print(table)
    if any(own.why for own in staff.values()):
        print("several workers: one GPU has no memory for it, or others would wait for its length")
    if not summary:
        return seconds
    took, where = _wall(seconds, waiting, staff, workers, at_once, device)
    total = sum(own[job.run.identity] * float(job.run.training_flops) for job in left)
    if shared:
        whole = sum(float(job.run.training_flops) for job in left)
        print(
            f"{len(shared)} runs cool down from a longer run's checkpoint: that saves "
            f"{short(whole - total)} of {short(whole)} FLOPs ({1 - total / whole:.0%})."
        )
    cost = "" if price is None else f" and {took / 3600 * price:.2f} dollars"
    print(
        f"{len(left)} of {len(jobs)} runs to train: {short(total)} FLOPs, about {duration(took)}"
        f"{cost} with {where}. Nothing has been started."
    )
    return seconds


def assumed(gpu: str) -> float:
    """FLOPs a second of training on a GPU that its driver calls so; only how runs compare matters
    where nobody knows the card."""
    return HOPED * (listed(gpu) or UNKNOWN)


def alone(jobs: Iterable[Job], flops: float | None = None) -> dict[str, float]:
    """Seconds of each job with one worker, by identity: at so many FLOPs a second, or as measured
    here."""
    runs = {job.run.identity: job.run for job in jobs}
    if flops is None:
        rates = throughput(runs.values())
    else:
        rates = {run.model: flops for run in runs.values()}
    return {name: _seconds(run, rates) for name, run in runs.items()}


def by_size(
    left: list[Job],
    seconds: Mapping[str, float],
    workers: Workers,
    at_once: int | None,
    device: Device | None,
    means: Means,
) -> dict[str, Staff]:
    """The workers of each run and why; empty where their number is settled, as on one GPU, or on
    processors if nobody asks. Raises ValueError for a run that nothing can hold."""
    units = (at_once or 1) if device else (os.cpu_count() or 1)
    if isinstance(workers, int) or (workers is None and (device is None or units == 1)):
        return {}
    place = Place(units=units, memory=device.memory if device else 0)
    return staffed({job.run.identity: job.run for job in left}, seconds, place, means)


def _wall(
    seconds: Mapping[str, float],
    waiting: set[str],
    staff: Mapping[str, Staff],
    workers: Workers,
    at_once: int | None,
    device: Device | None,
) -> tuple[float, str]:
    """Until all that is waited for has ended, and on what."""
    if staff:
        units = (at_once or 1) if device else (os.cpu_count() or 1)
        numbers = {name: own.workers for name, own in staff.items()}
        on = f"{units} {device}" if device else "this machine's processors"
        return wall(numbers, seconds, units), f"workers by their size on {on}"
    each = workers if isinstance(workers, int) else 1
    count, where = slots(each, at_once, device)
    took = makespan([seconds[name] for name in waiting], count) / each
    return took, f"{count} at once on {where}"


def slots(workers: int, at_once: int | None, device: Device | None) -> tuple[int, str]:
    """How many runs at once, and on what."""
    if device is None:
        at_once = at_once or max(1, (os.cpu_count() or 1) // workers)
        return at_once, "this machine's processors"
    count = (at_once or 1) * workers
    return at_once or 1, f"{count} {device}"


def throughput(runs: Iterable[Run]) -> dict[Config, float]:
    """Training FLOPs per second of each model, one thread, measured over two steps after a first.

    Models whose step is too large to try here take the rate of the largest one tried.
    """
    settle(threads=1)
    first = {run.model: run for run in runs}
    ordered = sorted(first.values(), key=_step_flops)
    rates: dict[Config, float] = {}
    rate = math.nan
    for index, run in enumerate(ordered):
        if index == 0 or _step_flops(run) <= LARGEST_STEP:
            rate = _measure(run)
        rates[run.model] = rate
    return rates


def _step_flops(run: Run) -> float:
    return float(run.batch_tokens) * run.model.flops_per_token().training


def _seconds(run: Run, rates: dict[Config, float]) -> float:
    """Training, and the forward passes of the evaluations at a third of the cost per token."""
    evaluated = run.evaluation.tokens * run.evaluation.times / 3
    per_token = run.model.flops_per_token().training
    return ((run.tokens or 0) + evaluated) * per_token / rates[run.model]


def _measure(run: Run) -> float:
    model = run.model.build().train()
    optim = optimizer.build(model, run.optimizer)
    objective = objectives.build(run.objective, run.model)
    batch = objective.batch(sample(run.rows, run.model.context, run.model.text_vocab))
    update(model, optim, objective, batch, run, Ranks())
    started = time.perf_counter()
    for _ in range(2):
        update(model, optim, objective, batch, run, Ranks())
    return 2 * _step_flops(run) / (time.perf_counter() - started)


def against_plan(folder: Path, trained: list[Job]) -> str:
    """What `--plan` had said of the runs that were trained, beside what they took; "" without."""
    pairs = said_and_took(folder, trained).values()
    if not pairs:
        return ""
    said, took = (sum(column) for column in zip(*pairs, strict=True))
    return (
        f"planned {duration(said)} for training and evaluating {len(pairs)} runs one by one; it "
        f"took {duration(took)}, {took / max(said, 1e-9):.2f} times that\n"
    )


def said_and_took(folder: Path, jobs: Iterable[Job]) -> dict[str, tuple[float, float]]:
    """Seconds of training and evaluation of each finished run that `--plan` had spoken of."""
    try:
        planned = json.loads((folder / PLAN).read_text())
    except (OSError, ValueError):
        return {}
    ended = {job.run.identity: result(job.folder) or {} for job in jobs}
    return {
        name: (
            planned[name],
            values["seconds"] - values["shared_seconds"] + values["evaluation_seconds"],
        )
        for name, values in ended.items()
        if name in planned and values.get("status") == "finished"
    }


def spent(jobs: list[Job], wall: float, price: float | None) -> str:
    """One line on where the time went: training, evaluation, capture, and everything else."""
    results = [result(job.folder) or {} for job in jobs]
    results = [
        {**values, "seconds": (values.get("seconds") or 0.0) - (values.get("shared_seconds") or 0)}
        for values in results
    ]
    parts = {
        name: sum(values.get(f"{key}seconds") or 0.0 for values in results)
        for name, key in (("training", ""), ("evaluation", "evaluation_"), ("rollouts", "capture_"))
    }
    shares = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items())
    capture = parts["rollouts"] / max(1e-9, parts["training"])
    later = sum(values.get("later_seconds") or 0.0 for values in results)
    after = f", and {later:.0f} s after it" if later else ""
    cost = "" if price is None else f" for {wall / 3600 * price:.2f} dollars"
    return (
        f"done in {duration(wall)}{cost} ({shares} of processor time; "
        f"rollouts {capture:.1%} of training{after})"
    )
