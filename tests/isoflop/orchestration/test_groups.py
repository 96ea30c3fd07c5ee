"""Do the workers of one run serve the next, and is a dead one replaced?"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isoflop.benchmarks.orchestration import titled
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.groups import Post
from isoflop.orchestration.job import Job, result
from isoflop.orchestration.points import run_points
from isoflop.orchestration.slots import Slots, slots
from isoflop.run import Checkpoints, Run

from .test_points import Heard, campaign

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours
RANK = "RayTrainWorker"


def test_every_rank_takes_the_same_jobs_and_waits_for_them(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    jobs = [make_job(make_run(seed=seed), str(seed)) for seed in (0, 1)]

    async def rank(post: Post) -> list[Job]:
        taken: list[Job] = []
        while (job := await post.take(len(taken))) is not None:
            taken.append(job)
        return taken

    async def scene() -> list[list[Job]]:
        post = Post()
        ranks = [asyncio.create_task(rank(post)) for _ in range(2)]
        for job in [*jobs, None]:
            await asyncio.sleep(0)
            await post.put(job)
        return await asyncio.gather(*ranks)

    assert asyncio.run(scene()) == [jobs, jobs]


def test_news_come_at_the_end_of_a_job_or_of_the_patience() -> None:
    async def scene() -> None:
        post = Post()
        await post.tell([{"step": 1}])
        began = time.monotonic()
        assert await post.news(0, 0.05) == ([{"step": 1}], None)
        assert 0.04 < time.monotonic() - began < 5
        waiting = asyncio.create_task(post.news(0, 60.0))
        await asyncio.sleep(0.01)
        await post.tell([{"step": 2}])
        await post.end(0, {"status": "finished"})
        assert await waiting == ([{"step": 2}], {"status": "finished"})
        assert time.monotonic() - began < 30, "not after the minute"

    asyncio.run(scene())


@pytest.mark.slow
def test_a_group_is_kept_from_point_to_point_and_goes_in_the_end(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    one = campaign(corpus, tmp_path / "one", only=3)
    run_points(one.chosen, Slots(workers=1, at_once=2, gpu=False), tmp_path / "ray", Heard())
    two = campaign(corpus, tmp_path / "two", only=3)
    heard = Heard()
    run_points(two.chosen, slots(ray_cluster, workers=2, at_once=None), tmp_path / "ray", heard)
    alone, together = ([result(job.folder) or {} for job in c.chosen] for c in (one, two))
    assert [values["status"] for values in together] == ["finished"] * 3
    assert {values["workers"] for values in together} == {2}
    assert len({values["process"] for values in together}) == 1, "one group did them all"
    for first, second in zip(alone, together, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert {record["step"] for record in heard.records} >= {0, 1}, "rank 0's records come through"
    deadline = time.monotonic() + 60
    while titled(RANK) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not titled(RANK), "nothing of it holds a core when the study is over"


@pytest.mark.slow
def test_a_killed_worker_of_a_group_costs_what_was_not_saved(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    """One of two ranks is killed; a new group goes on with the run, and does the next one too."""
    made = campaign(corpus, tmp_path, only=2, tokens=200_000)
    jobs = [
        replace(job, run=replace(job.run, checkpoints=Checkpoints(seconds=0.2)))
        for job in made.chosen
    ]
    first = max(jobs, key=lambda job: job.run.training_flops)
    heard, killed = Heard(), list[int]()

    def kill() -> None:
        while not list(first.folder.glob("checkpoints/step-*/state.json")):
            time.sleep(0.05)
        killed.append(titled(RANK)[-1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run_points(jobs, slots(ray_cluster, workers=2, at_once=None), tmp_path / "ray", heard)
    thread.join(timeout=10)
    ended = [result(job.folder) or {} for job in jobs]
    assert [(values["status"], values["workers"]) for values in ended] == [("finished", 2)] * 2
    assert killed and len({values["process"] for values in ended}) == 1
    steps = [r["step"] for r in json.loads((first.folder / "history.json").read_text())]
    assert steps == sorted(set(steps)) and steps[0] == 0
    assert [r["step"] for r in heard.records].count(0) == 2, "no run began anew"
