"""What does the process of a Ray Tune trial do? It trains a run, or has a group of workers do so,
and tells the driver.

Reports go by the identity of their run, at most one a second: each makes the trial wait for Tune's
loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoflop.orchestration.cluster import left
from isoflop.orchestration.groups import Kept
from isoflop.orchestration.job import Job, conclude, result
from isoflop.orchestration.scribe import beside
from isoflop.orchestration.slots import Slots
from isoflop.orchestration.together import execute_together
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record
from isoflop.training.micro import free

RESTARTS = 3  # of one run whose process died
REPORT_SECONDS = 1.0  # a report makes the trial wait for Tune's loop, so not every record at once


def train_here(config: dict[str, Any], jobs: dict[str, list[Job]]) -> None:
    """The trial of runs with one worker: trains in this very process."""
    import torch
    from ray import tune

    pack = config.get("jobs") or jobs[config["run"]]
    if pack[0].stop_file.exists():
        _tell({}, [(job, _unbegun(job)) for job in pack])
        return
    ranks = Ranks(device="cuda" if torch.cuda.is_available() else "cpu")
    report = _Buffered(lambda records: tune.report({"records": records}))
    values = execute_together(pack, ranks, report, beside)
    free(ranks.device)  # others may share the GPU while this process waits for its next point
    _tell(report.take(), list(zip(pack, values, strict=True)))


def _unbegun(job: Job) -> dict[str, Any]:
    """How it stands with a job that the study's end comes before."""
    return result(job.folder) or {} if job.late else {"status": "stopped"}


def _tell(records: dict[str, list[Record]], results: list[tuple[Job, dict[str, Any]]]) -> None:
    """Whose records and results they are is said by identity."""
    from ray import tune

    named = {job.run.identity: values for job, values in results}
    tune.report({"records": records, "results": named})


def group_trial() -> Any:
    """The trial of a run with several workers: a group that outlives it does the work. A class,
    since Tune tells those when their process is to end: the group must be gone before."""
    from ray import tune

    class GroupTrial(tune.Trainable):  # type: ignore[misc]
        def setup(
            self, config: dict[str, Any], jobs: dict[str, list[Job]], slots: Slots, store: Path
        ) -> None:
            self.jobs, self.slots, self.kept = jobs, slots, Kept(store)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            (job,) = new_config.get("jobs") or self.jobs[new_config["run"]]
            self.work = Work(job, self.slots, self.kept)
            return True

        def step(self) -> dict[str, Any]:
            records, values = self.work.look()
            name = self.work.job.run.identity
            told = {"records": {name: records}}
            return told if values is None else {**told, "results": {name: values}, "done": True}

        def cleanup(self) -> None:
            self.kept.close()

    return GroupTrial


class Work:
    """A run that a kept group carries out.

    A group that dies is replaced, and goes on from the run's checkpoint: with as many workers, or
    with as many as the machines that are left can hold. The global batch stays, shared by fewer.
    """

    def __init__(self, job: Job, slots: Slots, kept: Kept) -> None:
        self.job, self.slots, self.kept = job, slots, kept
        self.number: int | None = None  # of the job, in its group
        self.deaths = 0
        if kept.group is None or kept.group.slots.workers < slots.workers:
            self._shrink()  # machines may have gone, also before this process was started

    def look(self) -> tuple[list[Record], dict[str, Any] | None]:
        """What was recorded in the last second, and the result if it has ended."""
        from ray import train

        if self.number is None and self.job.stop_file.exists():
            return [], _unbegun(self.job)
        try:
            group = self.kept.group_of(self.slots)
            if self.number is None:
                self.number = group.put(self.job)
            return group.news(self.number)
        except train.TrainingFailedError as error:
            self.kept.close()
            self.number, self.deaths = None, self.deaths + 1
            if self.deaths > RESTARTS:
                return [], failed(self.job, f"{type(error).__name__}: {error}")
            self._shrink()
            return [], None

    def _shrink(self) -> None:
        rows, units = self.job.run.rows, left(self.slots.gpu)
        self.slots = replace(self.slots, workers=fitting(rows, self.slots.workers, units))


def fitting(rows: int, workers: int, units: int) -> int:
    """The most workers, at most as many as before, that `units` cores or GPUs hold and that can
    share a batch of `rows` equally; 1 if nothing is left, since a node may come back."""
    return max(n for n in range(1, workers + 1) if n == 1 or (n <= units and rows % n == 0))


class _Buffered:
    """Passes records on at most once per `REPORT_SECONDS`, by the identity of their run."""

    def __init__(self, send: Callable[[dict[str, list[Record]]], None]) -> None:
        self.send, self.sent = send, time.monotonic()
        self.waiting: dict[str, list[Record]] = {}

    def __call__(self, job: Job, records: list[Record]) -> None:
        self.waiting.setdefault(job.run.identity, []).extend(records)
        if time.monotonic() - self.sent >= REPORT_SECONDS:
            self.send(self.take())

    def take(self) -> dict[str, list[Record]]:
        taken, self.waiting, self.sent = self.waiting, {}, time.monotonic()
        return taken


def failed(job: Job, error: str) -> dict[str, Any]:
    """Write down that a job's processes died too often, and return that result."""
    values = {"status": "failed", "error": error.splitlines()[0][:500], "traceback": error}
    return conclude(job, values)
