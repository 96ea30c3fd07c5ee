"""How far is the study? A live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.orchestration.job import Job
from isoflop.training.loop import Record

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

QUIET_SECONDS = 30.0  # between two lines when nobody watches


@dataclass
class _Running:
    job: Job
    since: float
    begun: int | None = None  # step of the first record here: a resumed run does not start at 0
    record: Record = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.record.get("step", 0) / self.job.run.steps

    def seconds_left(self, now: float) -> float | None:
        done = self.record.get("step", 0) - (self.begun or 0)
        if done <= 0:
            return None
        left: float = (now - self.since) / done * (self.job.run.steps - self.record["step"])
        return left


class Progress:
    """Watches the jobs of one study and shows them. Use as a context manager."""

    def __init__(
        self,
        jobs: list[Job],
        finished_before: int,
        console: Console | None = None,
        price: float | None = None,  # dollars per hour of all that the study runs on
        further: int = 0,  # runs of a search that are not chosen yet
    ) -> None:
        from rich.console import Console

        self.console = console or Console()
        self.jobs, self.before, self.price = jobs, finished_before, price
        self.total = len(jobs) + further
        self.flops = {job.run.identity: float(job.run.training_flops) for job in jobs}
        self.running: dict[str, _Running] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.began = self.spoke = time.monotonic()
        self.live: Live | None = None

    def __enter__(self) -> Progress:
        from rich.live import Live

        if self.console.is_terminal:
            self.live = Live(get_renderable=self._table, console=self.console, refresh_per_second=2)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.live.__exit__(*error)

    def started(self, job: Job) -> None:
        self.flops.setdefault(job.run.identity, float(job.run.training_flops))
        self.running[job.run.identity] = _Running(job, time.monotonic())

    def progressed(self, job: Job, records: list[Record]) -> None:
        running = self.running.setdefault(job.run.identity, _Running(job, time.monotonic()))
        if running.begun is None:
            running.begun = int(records[0]["step"])
        for record in records:
            running.record = {**running.record, **record}
        self._speak()

    def ended(self, job: Job, result: dict[str, Any]) -> None:
        self.running.pop(job.run.identity, None)
        self.results[job.run.identity] = result
        for warning in result.get("warnings", []):
            self.say(f"{job.label}: {warning}")
        if result["status"] in ("failed", "diverged", "alarmed", "pruned"):
            self.say(f"{job.label}: {result['status']} ({result.get('error')})")
        self._speak()

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)  # one line in a log, however wide

    def _speak(self) -> None:
        """One plain line per half minute, where there is no terminal to draw on."""
        if self.live or time.monotonic() - self.spoke < QUIET_SECONDS:
            return
        self.spoke = time.monotonic()
        self.console.print(self._summary(), highlight=False)
        sys.stdout.flush()

    def _summary(self) -> str:
        done = self.before + len(self.results)
        left = self._seconds_left()
        ending = "" if left is None else f", about {duration(left)} left"
        if self.price is not None:
            ending += f", {(time.monotonic() - self.began) / 3600 * self.price:.2f} dollars so far"
        return f"{done} of {self.before + self.total} runs done{ending}"

    def _seconds_left(self) -> float | None:
        """From the FLOPs done since the start, running points in part."""
        done = sum(self.flops[name] for name in self.results)
        done += sum(self.flops[name] * running.share for name, running in self.running.items())
        if done <= 0:
            return None
        known = sum(self.flops.values())
        ahead = max(0, self.total - len(self.flops)) * known / len(self.flops)
        return (time.monotonic() - self.began) * (known + ahead - done) / done

    def _table(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._summary(), title_justify="left", box=None, pad_edge=False)
        for name in ("point", "progress", "loss", "held out", "tokens/s", "of peak", "left"):
            table.add_column(name, justify="left" if name in ("point", "progress") else "right")
        if not self.running:  # before the first has started, and after the last has ended
            return Text(self._summary())
        now = time.monotonic()
        for running in list(self.running.values()):
            left = running.seconds_left(now)
            table.add_row(
                running.job.label,
                ProgressBar(total=1.0, completed=running.share, width=24),
                _number(running.record.get("train/loss"), ".3f"),
                _number(running.record.get("val/loss"), ".3f"),
                _number(running.record.get("tokens_per_second"), ",.0f"),
                _number(running.record.get("utilisation"), ".0%"),
                "" if left is None else duration(left),
            )
        return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def duration(seconds: float) -> str:
    """As people say it: 45 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def near(path: Path) -> Path:
    """As short as it can be typed from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
