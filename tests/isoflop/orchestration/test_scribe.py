"""Does another process write what the trainer would have, without ever making it wait?"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from isoflop.captures import Spec
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.job import Job, execute, result
from isoflop.orchestration.points import run_points
from isoflop.orchestration.scribe import (
    Beside,
    Desk,
    Offer,
    Scribe,
    Weights,
    beside,
    weights,
)
from isoflop.orchestration.slots import Slots
from isoflop.rollouts.capture import read
from isoflop.run import Checkpoints, Rollouts, Run
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record
from isoflop.training.means import Means

from .test_points import Heard

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]
ASKED = Rollouts(prompts=("", "def "), seeds=2, new_tokens=8, captures=4, budget=1e6)
KEY = ["step", "spec", "prompt_id", "sample_id"]


def quiet(records: list[Record]) -> None: ...


def rows(folder: Path) -> pd.DataFrame:
    found = read(folder / "rollouts").drop(columns="seconds")
    return found.sort_values(KEY).reset_index(drop=True)


def test_only_the_newest_waits_but_ends_are_kept() -> None:
    desk = Desk()
    for step, kept in ((0, True), (1, False), (2, False), (3, False), (9, True)):
        desk.put(Offer(step, {}, kept))
    taken = [desk.take() for _ in range(3)]
    assert [offer.step if offer else None for offer in taken] == [0, 9, None]


@pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours
def test_a_scribe_writes_what_the_trainer_would(
    ray_cluster: Resources, make_run: MakeRun, make_job: MakeJob
) -> None:
    run = make_run(rollouts=ASKED)
    alone, helped = make_job(run, "alone"), replace(make_job(run, "helped"), beside=True)
    results = [execute(alone, Ranks(), quiet), execute(helped, Ranks(), quiet, beside)]
    assert [found["status"] for found in results] == ["finished", "finished"], results
    assert results[0]["loss"] == results[1]["loss"], "to the bit"
    assert results[0]["rollouts"] == results[1]["rollouts"], "the end is waited for"
    mine, theirs = rows(alone.folder), rows(helped.folder)
    known = [json.loads((job.folder / "history.json").read_text()) for job in (alone, helped)]
    told = [
        {r["step"]: r["rollout/entropy"] for r in history if "rollout/entropy" in r}
        for history in known
    ]
    assert set(told[1]) == set(theirs["step"]) and told[1].items() <= told[0].items()
    assert [r["step"] for r in known[1]] == [r["step"] for r in known[0]], "in order, once each"
    assert {0, 20} <= set(theirs["step"]) <= set(mine["step"])
    both = mine[mine["step"].isin(theirs["step"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_scribe_writes_what_shards_learn(
    ray_cluster: Resources, make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    """Which no rank has whole."""
    specs = (Spec(name="mean", prompts=("a", "def "), seeds=2, new_tokens=8, weights="ema"),)
    asked = Rollouts(prompts=("a", "def "), seeds=2, new_tokens=8, budget=1e6, specs=specs)
    run = make_run("llama-tied", ema=0.5, rollouts=asked)
    alone = make_job(run, "alone")
    assert execute(alone, Ranks(), quiet)["status"] == "finished"
    shards = replace(make_job(run, "shards"), beside=True, means=Means(shard="on"))
    run_points([shards], Slots(workers=2, at_once=1, gpu=False), tmp_path / "ray", Heard())
    ended = result(shards.folder) or {}
    assert (ended["status"], ended["workers"], ended["sharded"]) == ("finished", 2, True)
    mine, theirs = rows(alone.folder), rows(shards.folder)
    assert {0, 20} <= set(theirs["step"])
    written = [
        frame[frame["step"] == 0]["completion_ids"].map(list).tolist() for frame in (mine, theirs)
    ]
    assert len(written[0]) == 8
    assert written[0] == written[1]


class Slow:
    """A scribe whose captures wait until they may."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.may = threading.Event()

    def offer(self, step: int, found: object, kept: bool) -> None:
        self.desk.put(Offer(step, {}, kept))

    def finish(self) -> dict[int, Record]:
        return {step: {"rollout/entropy": 1.0} for step in (0, 20)}


def test_a_slow_scribe_never_makes_training_wait(make_run: MakeRun, make_job: MakeJob) -> None:
    job = replace(make_job(make_run(rollouts=ASKED)), beside=True)
    slow = Slow()
    ended = execute(
        job, Ranks(), quiet, lambda job, ranks: Beside(job, ranks, slow.offer, slow.finish)
    )
    assert ended["status"] == "finished" and ended["rollouts"]["rollout/entropy"] == 1.0
    assert [offer.step for offer in slow.desk.waiting] == [0, 20]
    assert history(job)[-1]["capture/dropped"] == 2


class Died(Exception):
    """The trainer, or all of its machine."""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in the midst of step 0"])
def test_a_scribe_that_dies_with_its_trainer_loses_nothing_that_is_kept(
    make_run: MakeRun, make_job: MakeJob, busy: bool
) -> None:
    """What it had measured stands in its notes; step 0 can be drawn again."""
    run = make_run(rollouts=ASKED, checkpoints=Checkpoints(seconds=0.0))
    alone, helped = make_job(run, "alone"), make_job(run, "helped")
    execute(alone, Ranks(), quiet)
    helped = replace(helped, beside=True)

    def dying(job: Job, ranks: Ranks) -> Beside:
        scribe = Scribe(job, job.prepared)

        def offer(step: int, found: dict[str, Weights], kept: bool) -> None:
            if not (busy and step == 0):
                scribe.offer(step, found, kept)
                scribe.finish()
            if step > 10:
                raise Died

        return Beside(job, ranks, offer, scribe.finish)

    def living(job: Job, ranks: Ranks) -> Beside:
        scribe = Scribe(job, job.prepared)
        return Beside(job, ranks, scribe.offer, scribe.finish)

    assert execute(helped, Ranks(), quiet, dying)["status"] == "failed"
    assert (helped.folder / "beside.json").exists()
    assert execute(helped, Ranks(), quiet, living)["status"] == "finished"
    assert not (helped.folder / "beside.json").exists()
    mine, theirs = rows(alone.folder), rows(helped.folder)
    assert {0, 20} <= set(theirs["step"]) and len(set(theirs["step"])) >= 3
    told = [{r["step"]: r["rollout/entropy"] for r in history(job) if "rollout/entropy" in r}
            for job in (alone, helped)]  # fmt: skip
    assert set(told[1]) == set(theirs["step"]) and told[1].items() <= told[0].items()
    both = mine[mine["step"].isin(theirs["step"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, theirs)


def history(job: Job) -> list[Record]:
    found: list[Record] = json.loads((job.folder / "history.json").read_text())
    return found


def test_weights_are_copies(make_run: MakeRun) -> None:
    model = make_run().model.build()
    copied = weights(model)
    before = {name: values.copy() for name, values in copied.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(np.array_equal(copied[name], before[name]) for name in copied)


def test_an_error_of_a_scribe_is_told(make_run: MakeRun, make_job: MakeJob) -> None:
    job = make_job(make_run(rollouts=ASKED))
    scribe = Scribe(job, job.prepared)
    scribe.offer(0, {"raw": {"nonsense": np.zeros(1)}}, True)
    with pytest.raises(RuntimeError, match="beside the training failed"):
        scribe.finish()
