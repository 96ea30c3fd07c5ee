"""Is it said how far a study is, on a terminal and in a log?"""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from isoflop import progress as module
from isoflop.orchestration.job import Job
from isoflop.progress import Progress, duration
from isoflop.run import Run

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]


class Clock:
    """Time passes when the test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def jobs(make_run: MakeRun, make_job: MakeJob) -> list[Job]:
    """Two equally expensive runs of 20 steps."""
    return [make_job(make_run(seed=seed), str(seed), arch="gpt2", seed=seed) for seed in (0, 1)]


def watch(jobs: list[Job], before: int = 0, terminal: bool = False) -> tuple[Progress, io.StringIO]:
    page = io.StringIO()
    console = Console(file=page, force_terminal=terminal, width=100, color_system=None)
    return Progress(jobs, before, console), page


def test_a_log_gets_a_line_per_half_minute(jobs: list[Job], clock: Clock) -> None:
    progress, page = watch(jobs, before=3)
    with progress:
        progress.started(jobs[0])
        for step in range(1, 11):
            clock.now += 4
            progress.progressed(jobs[0], [{"step": step, "train/loss": 5.0}])
        assert page.getvalue() == "3 of 5 runs done, about 2 min 8 s left\n", "32 s for 8 of 40"
        clock.now += 40
        progress.ended(jobs[0], {"status": "finished"})
    assert page.getvalue().splitlines()[1:] == ["4 of 5 runs done, about 1 min 20 s left"]


def test_a_log_stays_quiet_before_anything_is_known(jobs: list[Job], clock: Clock) -> None:
    progress, page = watch(jobs)
    with progress:
        clock.now += 100
        progress.started(jobs[0])
        progress.progressed(jobs[0], [{"step": 0}])
    assert page.getvalue() == "0 of 2 runs done\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_failures_are_said_aloud_in_one_line(terminal: bool, jobs: list[Job], clock: Clock) -> None:
    progress, page = watch(jobs, terminal=terminal)
    error = "ValueError: [red]x[/red] " + "long " * 30
    with progress:
        progress.started(jobs[0])
        progress.ended(jobs[0], {"status": "failed", "error": error})
        progress.ended(jobs[1], {"status": "diverged", "error": "loss not finite at step 3"})
    shown = page.getvalue()
    assert f"arch=gpt2 seed=0: failed ({error})" in shown
    assert "arch=gpt2 seed=1: diverged (loss not finite at step 3)" in shown


def test_a_terminal_gets_a_table_of_what_runs(jobs: list[Job], clock: Clock) -> None:
    progress, page = watch(jobs, before=1, terminal=True)
    with progress:
        for job in jobs:
            progress.started(job)
        progress.progressed(jobs[0], [{"step": 0}])
        clock.now += 10
        records = [
            {"step": 4, "train/loss": 4.4444, "val/loss": 3.3333, "tokens_per_second": 12345.6},
            {"step": 5, "train/loss": 2.2222, "tokens_per_second": 12345.6},
        ]
        progress.progressed(jobs[0], records)
        assert progress.live is not None
        progress.live.refresh()
    shown = page.getvalue()
    for part in ("1 of 3 runs done, about 1 min 10 s left", "arch=gpt2 seed=0", "arch=gpt2 seed=1",
                 "2.222", "3.333", "12,346", "30 s"):  # fmt: skip
        assert part in shown, part


def test_a_resumed_run_is_judged_by_what_it_did_here(jobs: list[Job], clock: Clock) -> None:
    """From step 10 to 12 in 4 s: 16 s are left, not the 3 that all 12 steps in 4 s would give."""
    progress, _ = watch(jobs, terminal=True)
    with progress:
        progress.started(jobs[0])
        progress.progressed(jobs[0], [{"step": 10}])
        clock.now += 4
        progress.progressed(jobs[0], [{"step": 12}])
        assert progress.running[jobs[0].run.identity].seconds_left(clock.now) == pytest.approx(16)


def test_news_of_a_run_that_never_started_is_taken(jobs: list[Job], clock: Clock) -> None:
    """After a restart of its process, Ray may report first."""
    progress, _ = watch(jobs)
    with progress:
        progress.progressed(jobs[1], [{"step": 3}])
        progress.ended(jobs[0], {"status": "stopped"})
    assert list(progress.running) == [jobs[1].run.identity]


@pytest.mark.parametrize(("seconds", "said"), [
    (0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"),
    (3599.7, "1 h 0 min"), (7500, "2 h 5 min"), (1e6, "277 h 46 min"),
])  # fmt: skip
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said
