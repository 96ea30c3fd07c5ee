"""How far is the preparing? A bar with MB/s and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Say = Callable[[str], None]


class Meter(Protocol):
    """Is told what goes on."""

    def say(self, message: str) -> None:
        """Something worth a line of its own."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of `total` bytes begins, such as "encoding"."""

    def advance(self, count: int) -> None:
        """So many more bytes of the stage are done."""


class Lines:
    """A line now and then, given to a function; what is worth a line is said at once."""

    def __init__(self, say: Say, every: float = 1.0) -> None:
        self.say = say
        self.every = every  # seconds
        self._stage, self._total, self._done, self._at_start = "", 0, 0, 0
        self._began = self._spoke = time.monotonic()

    def begin(self, stage: str, total: int) -> None:
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._spoke = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._spoke >= self.every:
            self._spoke = now
            self.say(self._line(now - self._began))

    def _line(self, seconds: float) -> str:
        rate = self._done / seconds
        left = max(0, self._total - self._done) / rate if rate else 0
        return (
            f"{self._stage} {megabytes(self._done)} of {megabytes(self._total)}, "
            f"{rate / 1e6:.1f} MB/s, {left:.0f} s left"
        )


class Bar:
    """A bar for each stage, drawn by rich."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def say(self, message: str) -> None:
        self._progress.console.print(message, markup=False, highlight=False)

    def begin(self, stage: str, total: int) -> None:
        self._task = self._progress.add_task(stage, total=total)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, count)


@contextmanager
def shown(console: Console) -> Iterator[Meter]:
    """On a console: bars if it is a terminal, else a line every ten seconds."""
    if not console.is_terminal:
        yield Lines(lambda line: console.print(line, markup=False, highlight=False), every=10)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console) as bars:
        yield Bar(bars)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
