"""Who looks on while a study runs, and what ends it early? Watchers, a lock, and the signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from isoflop import record, tracking
from isoflop.design import Study, UserError
from isoflop.orchestration.job import Job
from isoflop.training.loop import Record


class Both:
    """Two watchers as one."""

    def __init__(self, *watchers: Any) -> None:
        self.watchers = watchers

    def started(self, job: Job) -> None:
        for watcher in self.watchers:
            watcher.started(job)

    def progressed(self, job: Job, records: list[Record]) -> None:
        for watcher in self.watchers:
            watcher.progressed(job, records)

    def ended(self, job: Job, result: dict[str, Any]) -> None:
        for watcher in self.watchers:
            watcher.ended(job, result)


class Tracked:
    """Passes what happens on to the tracker."""

    def __init__(self, tracker: tracking.Tracker, study: Study) -> None:
        self.tracker = tracker
        axes = study.points.axes
        self.varied = {name for name, values in axes.items() if len(values) > 1} or set(axes)

    def started(self, job: Job) -> None:
        described = record.described(job.run, job.prepared.train_tokens)
        # "axis." sorts first, and MLflow's plots open with the first names: an axis of one value
        # would leave them empty.
        axes = {f"axis.{name}": job.axes[name] for name in job.axes if name in self.varied}
        tags = {"isoflop.kind": "run", "isoflop.study": job.study}
        self.tracker.start(job.run.identity, job.label, {**axes, **described}, tags)

    def progressed(self, job: Job, records: list[Record]) -> None:
        self.tracker.log(job.run.identity, records)

    def ended(self, job: Job, result: dict[str, Any]) -> None:
        summary = {name: result.get(name) for name in record.RESULTS}
        names = ("run.json", "result.json", "rollouts", "traceback.txt")
        files = [job.folder / name for name in names]
        if result.get("error"):
            summary["error"] = result["error"]
        self.tracker.end(job.run.identity, result["status"], summary, files)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two drivers on one study would train the same runs; the second is told so."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"another process is running this study in {folder}; wait for it") from None


@contextmanager
def stoppable(stop_file: Path) -> Iterator[None]:
    """Ctrl-C or a termination asks the running points to save and end; a second ends at once."""
    stop_file.unlink(missing_ok=True)

    def ask(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()
        print(
            "\nstopping: the running points write a checkpoint (again to end at once)",
            file=sys.stderr,
        )

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)
