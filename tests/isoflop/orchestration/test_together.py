"""Do runs that train as one come back as if each had trained alone?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.job import Job, execute, result
from isoflop.orchestration.points import run_points
from isoflop.orchestration.slots import Slots
from isoflop.orchestration.together import WAIT, Packing, execute_together, packs
from isoflop.run import AdamW, Run
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record
from isoflop.training.means import Means
from isoflop.training.trunk import Trunk

from .test_points import Heard

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]
THREE = Means(together=3)


def rates(make_run: MakeRun, make_job: MakeJob, count: int, **changes: Any) -> list[Job]:
    runs = [make_run(optimizer=AdamW(lr=1e-3 * (n + 1))) for n in range(count)]
    return [replace(make_job(run, str(n)), **changes) for n, run in enumerate(runs)]


def silent(job: Job, records: list[Record]) -> None: ...


def test_what_is_put_together(make_run: MakeRun, make_job: MakeJob) -> None:
    jobs = rates(make_run, make_job, 7, means=THREE)
    other = replace(make_job(make_run(tokens=50 * 128), "other"), means=THREE)
    forked = replace(jobs[0], trunk=Trunk(folder=jobs[0].folder, stem="stem"))
    found = packs([*jobs, other], at_once=1, gpu=False)
    assert [len(pack) for pack in found] == [3, 3, 1, 1]
    assert [other] in found
    names = [job.run.identity for pack in found for job in pack]
    assert sorted(names) == sorted(job.run.identity for job in [*jobs, other])
    assert [len(pack) for pack in packs(jobs[:3], at_once=3, gpu=False)] == [1, 1, 1]
    assert [forked] in packs([forked, *jobs[1:]], at_once=1, gpu=False)


def test_by_default_on_a_gpu_only(make_run: MakeRun, make_job: MakeJob) -> None:
    jobs = rates(make_run, make_job, 9)
    assert [len(pack) for pack in packs(jobs, at_once=1, gpu=False)] == [1] * 9
    assert sorted(len(pack) for pack in packs(jobs, at_once=1, gpu=True)) == [1, 8]
    assert {len(pack) for pack in packs(jobs, at_once=3, gpu=True)} == {3}


def test_what_comes_one_by_one_is_put_together(make_run: MakeRun, make_job: MakeJob) -> None:
    """As many as are allowed at the time; what has another shape is kept for the next."""
    alike = rates(make_run, make_job, 6, means=THREE)
    other = replace(make_job(make_run(tokens=50 * 128), "other"), means=THREE)
    given = iter([*alike[:2], other, *alike[2:4], WAIT, *alike[4:], None, None])
    allowed = iter([3, 3, 3, 1, 3, 3])
    packing = Packing(lambda: next(given), lambda: next(allowed), gpu=False)
    assert packing() == alike[:2]
    assert packing() == [other], "of another shape"
    assert packing() == alike[2:4], "while the next is waited for"
    assert packing() == alike[4:5] and packing() == alike[5:]
    assert packing() is None


def test_each_leaves_what_it_leaves_alone(make_run: MakeRun, make_job: MakeJob) -> None:
    jobs = rates(make_run, make_job, 3)
    told: dict[str, int] = {}

    def hear(job: Job, records: list[Record]) -> None:
        told[job.run.identity] = told.get(job.run.identity, 0) + len(records)

    values = execute_together(jobs, Ranks(), hear)
    for job, ended in zip(jobs, values, strict=True):
        alone = execute(replace(job, folder=job.folder / "alone"), Ranks(), lambda records: None)
        assert ended["status"] == "finished" and ended["together"] == 3
        assert ended["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert result(job.folder) == ended
        left = {path.name for path in (job.folder / "alone").iterdir()}
        assert left <= {path.name for path in job.folder.iterdir()}
    assert set(told.values()) == {21}  # 20 steps, and what came before the first
    again = execute_together(jobs, Ranks(), hear)
    assert again == values, "what has ended is not done again"


def test_one_that_cannot_begin_stops_no_other(make_run: MakeRun, make_job: MakeJob) -> None:
    jobs = rates(make_run, make_job, 3)
    jobs[1].folder.mkdir(parents=True)
    (jobs[1].folder / "checkpoints").write_text("a file where a folder must be")
    values = execute_together(jobs, Ranks(), silent)
    assert [each["status"] for each in values] == ["finished", "failed", "finished"]
    assert all("trained alone" in each["warnings"][0] for each in values)


def test_through_ray(
    ray_cluster: Resources, make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    jobs = rates(make_run, make_job, 5, means=THREE)
    heard = Heard()
    run_points(jobs, Slots(workers=1, at_once=2, gpu=False), tmp_path / "ray", heard)
    assert sorted(heard.begun) == sorted(job.run.identity for job in jobs)
    assert heard.results.keys() == set(heard.begun)
    ended = [result(job.folder) or {} for job in jobs]
    assert {each["status"] for each in ended} == {"finished"}
    assert sorted(each.get("together", 1) for each in ended) == [2, 2, 3, 3, 3]
