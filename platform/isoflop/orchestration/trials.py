"""What does the process of a Ray Tune trial do? It trains a run, or has a group of workers do so,
and tells the driver: by the identity of the run, once a second, and at once when it has ended.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
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
REPORT_SECONDS = 1.0  # each report costs Tune's loop some milliseconds


def lone_trial() -> Any:
    """The trial of runs with one worker: trains in this very process. A class, since Tune looks for
    a function's end five times a second only, and lets it wait with each report."""
    from ray import tune

    class LoneTrial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], jobs: dict[str, list[Job]]) -> None:
            self.jobs = jobs
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.work = Alone(new_config.get("jobs") or self.jobs[new_config["run"]])
            return True

        def step(self) -> dict[str, Any]:
            return self.work.look()

    return LoneTrial


class Alone:
    """Runs that a thread of this process carries out: one, or several that train as one.

    It begins with the first look: Tune may set up a process for a trial and then have another one
    carry it out, whose own trial has just ended.
    """

    def __init__(self, pack: list[Job]) -> None:
        self.pack = pack
        self.news: SimpleQueue[tuple[str, list[Record]] | list[dict[str, Any]] | BaseException]
        self.news = SimpleQueue()
        self.thread = threading.Thread(target=self._train, name="training", daemon=True)

    def look(self) -> dict[str, Any]:
        """What was recorded in the last second, by the identity of its run; the results, and that
        it is done, as soon as they are there."""
        if self.thread.ident is None:  # not begun yet
            self.thread.start()
        told: dict[str, Any] = {"records": {}}
        end = time.monotonic() + REPORT_SECONDS
        while (left := end - time.monotonic()) > 0:
            try:
                news = self.news.get(timeout=left)
            except Empty:
                break
            if isinstance(news, BaseException):
                raise news
            if isinstance(news, list):
                names = (job.run.identity for job in self.pack)
                return {**told, "results": dict(zip(names, news, strict=True)), "done": True}
            name, records = news
            told["records"].setdefault(name, []).extend(records)
        return told

    def _train(self) -> None:
        try:
            self.news.put(self._results())
        except BaseException as error:  # Tune's to deal with, by way of `look`
            self.news.put(error)

    def _results(self) -> list[dict[str, Any]]:
        import torch

        if self.pack[0].stop_file.exists():
            return [_unbegun(job) for job in self.pack]
        ranks = Ranks(device="cuda" if torch.cuda.is_available() else "cpu")
        values = execute_together(self.pack, ranks, self._report, beside)
        if ranks.device == "cuda":  # others may share it while this process waits for a next point
            free(ranks.device)
        return values

    def _report(self, job: Job, records: list[Record]) -> None:
        self.news.put((job.run.identity, records))


def _unbegun(job: Job) -> dict[str, Any]:
    """How it stands with a job that the study's end comes before."""
    return result(job.folder) or {} if job.late else {"status": "stopped"}


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


def failed(job: Job, error: str) -> dict[str, Any]:
    """Write down that a job's processes died too often, and return that result."""
    values = {"status": "failed", "error": error.splitlines()[0][:500], "traceback": error}
    return conclude(job, values)
