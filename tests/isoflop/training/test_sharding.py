"""Is a model in shards the model, and can a run go on from shards without, and with them?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isoflop.captures import Spec
from isoflop.orchestration.job import Job, execute, result
from isoflop.rollouts.capture import read
from isoflop.run import Evaluation, Lion, Muon, Rollouts, Run
from isoflop.training.distributed import Ranks
from isoflop.training.means import Means
from isoflop.training.sharding import refuse, wanted
from models import ZOO

from .test_distributed import assert_agree, history, wait
from .test_loop import tiny

Start = Callable[[list[Job], int], list[subprocess.Popen[str]]]
SHARDS = Means(shard="on")


def stopped(job: Job, start: Callable[[], object]) -> None:
    job.stop_file.touch()
    start()
    job.stop_file.unlink()
    assert (result(job.folder) or {})["status"] == "stopped"


@pytest.mark.slow
def test_shards_and_one_process_agree(
    make_run: Callable[..., Run], make_job: Callable[..., Job], start_jobs: Start
) -> None:
    """Three models, one of them part by part; a run that shards began and one process ends, and the
    other way round."""
    names = ("gpt2", "llama-tied", "t5")
    alone = {name: make_job(make_run(name), f"{name}-1") for name in names}
    for job in alone.values():
        assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    sharded = {
        name: replace(make_job(job.run, f"{name}-2"), means=SHARDS) for name, job in alone.items()
    }
    sharded["t5"] = replace(sharded["t5"], means=Means(shard="on", micro_batch=1))
    begun = make_job(alone["gpt2"].run, "begun")
    left = replace(make_job(alone["gpt2"].run, "left"), means=SHARDS)
    stopped(begun, lambda: execute(begun, Ranks(), lambda records: None))
    stopped(left, lambda: wait(start_jobs([left], 2)))
    kept = left.folder / "checkpoints" / "step-00000001"
    assert {path.name for path in kept.iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "state.json"
    }  # fmt: skip
    one = alone["gpt2"].folder / "checkpoints" / "step-00000020" / "model.safetensors"
    shapes = {name: value.shape for name, value in load_file(one).items()}
    assert {n: v.shape for n, v in load_file(kept / "model.safetensors").items()} == shapes

    wait(start_jobs([*sharded.values(), replace(begun, means=SHARDS)], 2))
    plain = replace(left, means=Means())
    assert execute(plain, Ranks(), lambda records: None)["status"] == "finished"
    for name, job in sharded.items():
        ended = result(job.folder) or {}
        assert (ended["status"], ended["workers"], ended["sharded"]) == ("finished", 2, True)
        assert ended["accumulated"] == (2 if name == "t5" else 1)
        assert_agree(alone[name], job)
    assert_agree(alone["gpt2"], begun)
    assert_agree(alone["gpt2"], left)


@pytest.mark.slow
def test_every_model_of_the_zoo_trains_in_shards(
    make_run: Callable[..., Run], make_job: Callable[..., Job], start_jobs: Start
) -> None:
    """To the loss of one process; a router's balance is that of each rank's rows, in shards or
    not."""
    kinds = list(ZOO.values())
    jobs = [make_job(make_run(tiny(kind), tokens=4 * 128), kind.name) for kind in kinds]
    sharded = [
        replace(job, folder=job.folder.with_name(f"{kind.name}-2"), means=SHARDS)
        for job, kind in zip(jobs, kinds, strict=True)
    ]
    wait(start_jobs(sharded, 2))
    for job, other in zip(jobs, sharded, strict=True):
        alone, found = execute(job, Ranks(), lambda records: None), result(other.folder) or {}
        assert found["status"] == "finished", other.folder
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-3), other.folder


@pytest.mark.slow
def test_optimizers_and_averages_go_with_shards(
    make_run: Callable[..., Run], make_job: Callable[..., Job], start_jobs: Start
) -> None:
    """To what one process has, the averaged weights too; and a run that shards left goes on whole,
    as one that they take up does."""
    asked = {"name": "mean", "prompts": ("a", "def "), "seeds": 1, "new_tokens": 8}
    averaged = {
        "ema": 0.8,
        "evaluation": Evaluation(tokens=512, times=2, weights="ema"),
        "rollouts": Rollouts(
            captures=2,
            budget=1e6,
            specs=(Spec(**asked, weights="ema"), Spec(**asked | {"name": "raw"})),
        ),
    }
    lion = make_run("gpt2", optimizer=Lion(lr=3e-4), **averaged)
    muon = make_run("llama-tied", optimizer=Muon(lr=1e-3), **averaged)
    alone = [make_job(lion, "lion-1"), make_job(muon, "muon-1")]
    for job in alone:
        assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    sharded = [
        replace(make_job(run, f"{run.optimizer.name}-2"), means=SHARDS) for run in (lion, muon)
    ]
    begun = make_job(muon, "begun")
    left = replace(make_job(muon, "left"), means=SHARDS)
    stopped(begun, lambda: execute(begun, Ranks(), lambda records: None))
    stopped(left, lambda: wait(start_jobs([left], 2)))

    wait(start_jobs([*sharded, replace(begun, means=SHARDS)], 2))
    plain = replace(left, means=Means())
    assert execute(plain, Ranks(), lambda records: None)["status"] == "finished"
    for job in sharded:
        ended = result(job.folder) or {}
        assert (ended["status"], ended["sharded"]) == ("finished", True)
        assert set(read(job.folder / "rollouts")["spec"]) == {"mean", "raw"}
    assert_agree(alone[0], sharded[0], "losses")
    kept = "checkpoints/step-00000020/ema.safetensors"
    mine = load_file(alone[1].folder / kept)
    for other in (sharded[1], begun, left):
        assert_agree(alone[1], other)
        theirs = load_file(other.folder / kept)
        assert theirs.keys() == mine.keys()
        for name, values in mine.items():
            torch.testing.assert_close(theirs[name], values, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_shards_leave_out_a_step_together(
    make_run: Callable[..., Run], make_job: Callable[..., Job], start_jobs: Start
) -> None:
    """Gradients overflow float16 in what one rank holds; all ranks hear of it, as DDP's do."""
    run = make_run("gpt2", precision="float16")
    whole, shards = make_job(run, "whole"), make_job(run, "shards")
    for job in (whole, shards):
        stopped(job, lambda job=job: execute(job, Ranks(), lambda records: None))  # type: ignore[misc]
        (file,) = (job.folder / "checkpoints").glob("step-*/state.json")
        state = json.loads(file.read_text())
        state["progress"]["scale"]["scaler"]["scale"] = 2.0**30
        file.write_text(json.dumps(state))
    wait(start_jobs([whole, replace(shards, means=SHARDS)], 2))
    one, two = (result(job.folder) or {} for job in (whole, shards))
    assert (two["status"], two["sharded"]) == ("finished", True)
    assert 2 < two["steps_left_out"] == one["steps_left_out"] < 19
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    scales = [[record.get("loss_scale") for record in history(job)] for job in (whole, shards)]
    assert scales[0] == scales[1]


@pytest.mark.slow
def test_rollouts_of_shards_are_those_of_the_model(
    make_run: Callable[..., Run], make_job: Callable[..., Job], start_jobs: Start
) -> None:
    """Before the first step to the letter, and they change no bit of the loss."""
    asked = Rollouts(prompts=("a", "def ", "b"), seeds=2, new_tokens=8, captures=3, budget=1e6)
    silent = replace(make_job(make_run("llama-tied"), "silent"), means=SHARDS)
    alone = make_job(make_run("llama-tied", rollouts=asked), "alone")
    shards = replace(alone, folder=alone.folder.with_name("shards"), means=SHARDS)
    assert execute(alone, Ranks(), lambda records: None)["status"] == "finished"
    wait(start_jobs([silent, shards], 2))
    ended = result(shards.folder) or {}
    assert (ended["status"], ended["workers"], ended["sharded"]) == ("finished", 2, True)
    assert_agree(alone, shards)
    one, two = (read(job.folder / "rollouts") for job in (alone, shards))
    assert sorted(two.groupby("step").size().items()) == sorted(one.groupby("step").size().items())
    first = [rows[rows["step"] == 0]["completion_ids"].map(list).tolist() for rows in (one, two)]
    assert first[0] == first[1]
    known = json.loads((shards.folder / "rollouts" / "references.json").read_text())
    assert (
        known.keys()
        == json.loads((alone.folder / "rollouts" / "references.json").read_text()).keys()
    )
    losses = [[r.get("train/loss") for r in history(job)] for job in (silent, shards)]
    assert losses[0] == losses[1]


def test_what_does_not_go_with_shards_is_named(make_run: Callable[..., Run]) -> None:
    for run, means, world, said in (
        (make_run(), SHARDS, 1, "--workers is 1; for a model in shards it must be at least 2"),
        (make_run(evaluation=Evaluation(noise_scale=True)), SHARDS, 2, "noise_scale is True"),
        (make_run(), Means(shard="on", compile="on"), 2, "--compile is on"),
    ):
        with pytest.raises(ValueError, match=said):
            refuse(run, world, means)
    refuse(make_run(), 2, SHARDS)


def test_a_processors_model_is_not_sharded_by_itself(make_run: Callable[..., Run]) -> None:
    assert not wanted(make_run(), Ranks(world=2), Means())
    assert not wanted(make_run(), Ranks(device="cuda"), Means()), "alone"
    assert wanted(make_run(), Ranks(world=2), SHARDS)
    assert not wanted(make_run(), Ranks(world=2), Means(shard="off"))


def test_the_choice_is_no_part_of_a_run(make_run: Callable[..., Run], tmp_path: Path) -> None:
    assert "shard" not in json.dumps(make_run().as_json())
