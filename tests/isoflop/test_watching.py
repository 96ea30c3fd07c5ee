"""Does a limit stop the study when it is reached, and not before?"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from isoflop.design import UserError
from isoflop.orchestration.job import Job
from isoflop.run import Run
from isoflop.watching import Limited, Limits, Spare

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]


def test_flops_count_from_where_this_command_began(make_run: MakeRun, make_job: MakeJob) -> None:
    fresh, resumed = make_job(make_run()), make_job(make_run(seed=1))
    limited = Limited(Limits(flops=100.0), fresh.stop_file)
    limited.progressed(fresh, [{"step": 0, "flops": 0.0}, {"step": 1, "flops": 40.0}])
    limited.progressed(resumed, [{"step": 50, "flops": 5000.0}])
    limited.progressed(resumed, [{"step": 51, "flops": 5050.0}])
    assert limited.flops == 90.0 and not fresh.stop_file.exists()
    limited.progressed(fresh, [{"step": 2, "flops": 50.0}])
    assert fresh.stop_file.exists()


def test_time_passes_without_news(
    make_run: MakeRun, make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(make_run())
    with Limited(Limits(cost=0.001, price=36.0), job.stop_file):  # a tenth of a second
        deadline = time.monotonic() + 10
        while not job.stop_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert job.stop_file.exists()
    assert "dollars) have passed; the running points write a checkpoint" in capsys.readouterr().out


def test_a_study_that_ends_before_its_limit_is_left_alone(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    job = make_job(make_run())
    with Limited(Limits(hours=0.1 / 3600), job.stop_file):
        pass
    time.sleep(0.2)
    assert not job.stop_file.exists()


def test_the_tighter_of_hours_and_dollars_holds() -> None:
    assert Limits(hours=2.0, cost=3.0, price=6.0).seconds == 1800
    assert Limits(hours=0.25, cost=3.0, price=6.0).seconds == 900
    assert Limits(price=6.0).seconds is None
    with pytest.raises(UserError, match="--max-flops is -1"):
        Limits(flops=-1.0)


def test_spare_work_waits_until_a_core_is_idle(make_run: MakeRun, make_job: MakeJob) -> None:
    job, done = make_job(make_run()), []
    with Spare(lambda: done.append(1), runs=3, at_once=2) as spare:
        spare.ended(job, {})
        assert not done, "two are left, for two cores"
        spare.ended(job, {})
        spare.ended(job, {})
    assert done == [1]
    with Spare(lambda: done.append(2), runs=3, at_once=2):
        pass
    assert done == [1]
