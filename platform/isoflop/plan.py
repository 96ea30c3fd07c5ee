"""What would a study cost? Runs, parameters, tokens, FLOPs and time, before anything is started.

Time is predicted from a second or two of real training steps of each model on this machine.
"""

from __future__ import annotations

import heapq
import math
import os
import time
from collections.abc import Iterable

from isoflop import objectives
from isoflop.data.rows import sample
from isoflop.orchestration.job import Job
from isoflop.progress import duration
from isoflop.run import Run, short
from isoflop.training import optimizer
from isoflop.training.distributed import Ranks
from isoflop.training.process import settle
from isoflop.training.step import update
from models.interface import Config

LARGEST_STEP = 2e11  # FLOPs of a step worth trying out here; larger models are extrapolated


def show(
    jobs: list[Job], left: list[Job], workers: int, at_once: int | None, price: float | None = None
) -> dict[str, float]:
    """Print the table of `jobs` and the cost of those that are `left`, in dollars too if there is a
    `price` per hour of this machine. Returns the seconds of every job on one core, by identity.
    """
    from rich.console import Console
    from rich.table import Table

    rates = throughput(job.run for job in jobs)
    seconds = {job.run.identity: _seconds(job.run, rates) for job in jobs}
    waiting = {job.run.identity for job in left}
    table = Table(box=None, pad_edge=False)
    table.add_column("point")
    for name in ("parameters", "tokens", "epochs", "steps", "rate", "FLOPs", "time", ""):
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
            "" if name in waiting else "finished",
        )
    Console(width=max(100, Console().width)).print(table)
    at_once = at_once or max(1, (os.cpu_count() or 1) // workers)
    wall = makespan([seconds[name] for name in waiting], at_once) / workers
    total = sum(float(job.run.training_flops) for job in left)
    cost = "" if price is None else f" and {wall / 3600 * price:.2f} dollars"
    print(
        f"{len(left)} of {len(jobs)} runs to train: {short(total)} FLOPs, about {duration(wall)}"
        f"{cost} with {at_once} at once on this machine's processors. Nothing has been started."
    )
    return seconds


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


def makespan(seconds: list[float], slots: int) -> float:
    """Wall time of jobs that start biggest first on the slot that is free first."""
    free = [0.0] * slots
    for length in sorted(seconds, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


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
