"""Who looks on while a study runs, and what ends it early? Watchers, a lock, and the signals."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from isoflop.design import UserError, user_input
from isoflop.orchestration.job import Job
from isoflop.orchestration.lease import leased
from isoflop.orchestration.mirror import Mirror, not_checkpoints
from isoflop.progress import duration
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


class Fetched:
    """Copies what a run on another machine left, before anybody here looks for it."""

    def __init__(self, mirror: Mirror | None) -> None:
        self.mirror = mirror

    def started(self, job: Job) -> None:
        """Nothing is there yet."""

    def progressed(self, job: Job, records: list[Record]) -> None:
        """Records come by themselves."""

    def ended(self, job: Job, result: dict[str, Any]) -> None:
        if self.mirror:
            self.mirror.pull(job.folder, not_checkpoints)


class Spare:
    """Does `work` in a thread once fewer than `at_once` of the `runs` are left: a core is idle
    then, and would be taken from the training before. Left with `with`, it has ended."""

    def __init__(self, work: Callable[[], None], runs: int, at_once: int) -> None:
        self.left, self.at_once = runs, at_once
        self.thread = threading.Thread(target=work, name="spare")

    def __enter__(self) -> Spare:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.thread.ident is not None:  # it was started
            self.thread.join()

    def started(self, job: Job) -> None: ...

    def progressed(self, job: Job, records: list[Record]) -> None: ...

    def ended(self, job: Job, result: dict[str, Any]) -> None:
        self.left -= 1
        if self.left < self.at_once and self.thread.ident is None:
            self.thread.start()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one command may spend. `price`: dollars per hour of all that it runs on."""

    hours: float | None = None
    cost: float | None = None  # dollars
    flops: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        for name in ("hours", "cost", "flops"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--max-{name} is {value}; it must be above 0")
        if self.price is not None and not self.price > 0:
            raise UserError(f"--price is {self.price}; it must be above 0")
        if self.cost is not None and self.price is None:
            raise UserError("--max-cost needs --price, in dollars per hour of this machine")

    @property
    def seconds(self) -> float | None:
        """The time that hours and dollars allow."""
        hours = [] if self.hours is None else [self.hours]
        if self.cost is not None and self.price is not None:
            hours.append(self.cost / self.price)
        return 3600 * min(hours) if hours else None


NONE = Limits()


class Limited:
    """A watcher that asks the study to stop, as Ctrl-C does, once a limit is reached.

    Time counts by the clock from `with` on, whether or not anything is heard of the runs; FLOPs are
    those trained by this command, not what a resumed run had behind it.
    """

    def __init__(self, limits: Limits, stop_file: Path) -> None:
        self.limits, self.stop_file = limits, stop_file
        self.before: dict[str, float] = {}  # FLOPs of a run when this command first heard of it
        self.now: dict[str, float] = {}
        seconds = limits.seconds
        self.timer = None if seconds is None else threading.Timer(seconds, self._late)

    def __enter__(self) -> Limited:
        if self.timer:
            self.timer.daemon = True
            self.timer.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.timer:
            self.timer.cancel()

    @property
    def flops(self) -> float:
        return sum(self.now[name] - self.before[name] for name in self.now)

    def started(self, job: Job) -> None: ...

    def progressed(self, job: Job, records: list[Record]) -> None:
        name = job.run.identity
        first = records[0]["flops"]
        # A run that goes on is first heard of at its first record after the checkpoint.
        self.before.setdefault(name, first if records[0]["step"] > 0 else 0.0)
        self.now[name] = max(self.now.get(name, 0.0), records[-1]["flops"])
        if self.limits.flops is not None and self.flops >= self.limits.flops:
            self._stop(f"{self.flops:.3g} FLOPs are trained")

    def ended(self, job: Job, result: dict[str, Any]) -> None: ...

    def _late(self) -> None:
        seconds = self.limits.seconds or 0.0
        price = self.limits.price
        cost = "" if price is None else f" ({seconds / 3600 * price:.2f} dollars)"
        self._stop(f"{duration(seconds)}{cost} have passed")

    def _stop(self, why: str) -> None:
        if not self.stop_file.exists():
            self.stop_file.touch()
            print(
                f"\nstopping at a limit: {why}; the running points write a checkpoint", flush=True
            )


@contextmanager
def alone(folder: Path, mirror: Mirror | None = None) -> Iterator[None]:
    """Two drivers on one study would train the same runs; the second is told so."""
    from filelock import FileLock, Timeout

    def lost(why: str) -> None:
        (folder / "stop").touch()
        print(f"\nstopping: {why}", file=sys.stderr)

    try:
        with ExitStack() as stack:
            stack.enter_context(FileLock(folder / "lock", timeout=0))
            with user_input():
                stack.enter_context(leased(mirror, folder, lost))
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
