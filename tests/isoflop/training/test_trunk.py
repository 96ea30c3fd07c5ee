"""Does a branch end where it would have ended alone, to the bit, whatever happens on the way?"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoflop.orchestration.job import Job, execute, result
from isoflop.orchestration.together import WAIT
from isoflop.run import Evaluation, Rollouts, Run, Schedule
from isoflop.training.distributed import Ranks
from isoflop.training.optimizer import cooldown_start, learning_rate
from isoflop.training.trunk import leaves, stem
from isoflop.trunks import Ordered, attached, clear, steps_saved

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]
STABLE = Schedule(decay="wsd", warmup_steps=4, cooldown=0.25, final=0.0)


def jobs(make_run: MakeRun, make_job: MakeJob, where: str = "", **changes: Any) -> list[Job]:
    """20, 40 and 80 steps of one size."""
    made = []
    for steps in (20, 40, 80):
        run = make_run("llama", tokens=steps * 128, schedule=STABLE, **changes)
        made.append(make_job(run, folder=f"{where}{steps}", steps=steps))
    return made


def carry_out(job: Job) -> dict[str, Any]:
    values = execute(job, Ranks(), lambda records: None)
    assert values["status"] == "finished", values.get("traceback")
    return values


def weights(job: Job) -> bytes:
    (final,) = (job.folder / "checkpoints").glob("step-*")
    return (final / "model.safetensors").read_bytes()


def test_the_rate_is_stable_and_then_falls_to_its_end() -> None:
    schedule = replace(STABLE, warmup_steps=10, final=0.1)
    rates = [learning_rate(schedule, step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == 2.0
    assert set(rates[9:75]) == {2.0}
    assert cooldown_start(schedule, 100) == 75 and rates[75] < 2.0
    assert rates[-1] == pytest.approx(0.2)
    falls = [a - b for a, b in itertools.pairwise(rates[75:])]
    assert max(falls) == pytest.approx(min(falls))


def test_runs_of_one_trunk_differ_in_length_alone(make_run: MakeRun) -> None:
    base = make_run("llama", tokens=20 * 128, schedule=STABLE)
    same = [
        replace(base, tokens=40 * 128),
        replace(base, evaluation=Evaluation(tokens=64, times=1)),
        replace(base, rollouts=Rollouts(prompts=("a",))),
        replace(base, schedule=replace(STABLE, cooldown=0.5)),
    ]
    assert {stem(run) for run in same} == {stem(base)}
    others = [
        replace(base, seed=1),
        replace(base, ema=0.9),
        replace(base, optimizer=replace(base.optimizer, lr=1e-3)),
        replace(base, schedule=replace(STABLE, warmup_steps=5)),
        make_run("gpt2", tokens=20 * 128, schedule=STABLE),
    ]
    assert len({stem(run) for run in [base, *others]}) == 1 + len(others)
    for schedule in (Schedule(), Schedule(decay="wsd", warmup=0.1), Schedule(decay="constant")):
        assert stem(replace(base, schedule=schedule)) is None


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}], ids=["raw", "ema"])
def test_a_branch_ends_with_the_bits_of_a_run_alone(
    changes: dict[str, Any], make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    alone = jobs(make_run, make_job, "alone-", **changes)
    expected = [carry_out(job) for job in alone]
    left = attached(jobs(make_run, make_job, "shared-", **changes), tmp_path)
    assert [job.trunk.forks if job.trunk else None for job in left] == [(), (), (15, 30)]
    found = [carry_out(job) for job in reversed(left)][::-1]
    assert [values["shared_steps"] for values in found] == [15, 30, 0]
    for job, other, values, wanted in zip(left, alone, found, expected, strict=True):
        assert weights(job) == weights(other)
        assert values["loss"] == wanted["loss"]
        history = json.loads((job.folder / "history.json").read_text())
        steps = [record["step"] for record in history]
        assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == job.run.steps
    trunk_history = json.loads((left[2].folder / "history.json").read_text())
    assert [r["train/loss"] for r in trunk_history if "train/loss" in r] == [
        r["train/loss"]
        for r in json.loads((alone[2].folder / "history.json").read_text())
        if "train/loss" in r
    ], "leaving forks changes nothing in the records of the trunk"
    assert (tmp_path / "trunks").exists()
    clear(left, tmp_path)
    assert not (tmp_path / "trunks").exists()


def test_a_trunk_that_is_stopped_and_a_branch_that_is_stopped_go_on(
    make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    alone = jobs(make_run, make_job, "alone-")
    for job in alone:
        carry_out(job)
    left = attached(jobs(make_run, make_job, "shared-"), tmp_path)
    for job in reversed(left):
        job.stop_file.touch()  # every start ends at the first record
        for _ in range(3):
            assert execute(job, Ranks(), lambda records: None)["status"] == "stopped"
        job.stop_file.unlink()
        carry_out(job)
    assert [weights(job) for job in left] == [weights(job) for job in alone]
    assert [(result(job.folder) or {})["shared_steps"] for job in left] == [15, 30, 0]


def test_without_its_fork_a_run_trains_alone_or_from_an_earlier_one(
    make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    short, middle, long = attached(jobs(make_run, make_job), tmp_path)
    carry_out(long)
    assert long.trunk is not None
    shutil.rmtree(long.trunk.folder / "step-00000030")
    assert carry_out(middle)["shared_steps"] == 15
    shutil.rmtree(long.trunk.folder / "step-00000015")
    assert carry_out(short)["shared_steps"] == 0
    for job, other in zip((short, middle), jobs(make_run, make_job, "alone-"), strict=False):
        carry_out(other)
        assert weights(job) == weights(other)


def test_a_damaged_fork_is_said_and_done_without(
    make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    short, _, long = attached(jobs(make_run, make_job), tmp_path)
    carry_out(long)
    assert long.trunk is not None
    (long.trunk.folder / "step-00000015" / "model.safetensors").write_bytes(b"torn")
    values = carry_out(short)
    assert values["shared_steps"] == 0
    assert any("cannot be read" in line for line in values["warnings"])


def test_branches_wait_for_their_fork_and_no_longer(
    make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    single = make_job(make_run("gpt2"), folder="single")
    short, middle, long = attached(jobs(make_run, make_job), tmp_path)
    ordered = Ordered([short, middle, long, single])
    assert ordered() is long
    assert ordered() is single
    assert ordered() is WAIT
    assert long.trunk is not None
    (long.trunk.folder / "step-00000015").mkdir(parents=True)
    assert ordered() is short
    assert ordered() is WAIT
    ordered.ended(long, {"status": "failed"})
    assert ordered() is middle
    assert ordered() is None
    assert steps_saved([short, middle, long, single]) == {
        short.run.identity: 15,
        middle.run.identity: 30,
    }
    assert leaves(long.run) == 60


def test_a_run_that_has_no_one_to_share_with_is_left_as_it_is(
    make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    made = jobs(make_run, make_job)
    assert attached(made[:1], tmp_path) == made[:1]
    plain = [make_job(make_run("llama", tokens=n * 128), folder=str(n)) for n in (20, 40)]
    assert attached(plain, tmp_path) == plain
    warm = replace(STABLE, warmup_steps=15)
    late = [
        make_job(make_run("llama", tokens=n * 128, schedule=warm), folder=f"w{n}") for n in (16, 18)
    ]
    assert attached(late, tmp_path) == late, "they leave before the rate is stable"
