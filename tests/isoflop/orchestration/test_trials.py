"""What does the process of a trial tell, and when does it begin?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from isoflop.orchestration import trials
from isoflop.orchestration.job import Job
from isoflop.orchestration.trials import Alone
from isoflop.run import Run

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]


def everything(work: Alone) -> tuple[list[int], dict[str, Any]]:
    """The steps of all looks until the last, and what that one says."""
    steps: list[int] = []
    while True:
        told = work.look()
        steps += [record["step"] for of in told["records"].values() for record in of]
        if told.get("done"):
            return steps, told


def test_it_begins_with_the_first_look_and_tells_all(make_run: MakeRun, make_job: MakeJob) -> None:
    job = make_job(make_run(tokens=2**10))
    work = Alone([job])
    time.sleep(0.3)
    assert not job.folder.exists(), "another process may be the one that carries it out"
    steps, told = everything(work)
    assert steps == list(range(job.run.steps + 1))
    assert told["results"][job.run.identity]["status"] == "finished"


def test_what_breaks_is_raised_to_whoever_looks(
    make_run: MakeRun, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*arguments: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(trials, "execute_together", breaks)
    with pytest.raises(MemoryError, match="no room"):
        Alone([make_job(make_run())]).look()


def test_a_study_that_has_ended_begins_nothing(make_run: MakeRun, make_job: MakeJob) -> None:
    job = make_job(make_run())
    job.stop_file.touch()
    _, told = everything(Alone([job]))
    assert told["results"] == {job.run.identity: {"status": "stopped"}}
    assert not job.folder.exists()
