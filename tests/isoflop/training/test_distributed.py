"""Do several processes train the run that one would?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from isoflop.orchestration.job import Job, execute, result
from isoflop.rollouts.capture import read
from isoflop.run import Rollouts, Run
from isoflop.training.distributed import Ranks, agree, mean, wrap
from isoflop.training.loop import Record
from isoflop.training.means import Means

Start = Callable[[list[Job], int], list[subprocess.Popen[str]]]


def weights(job: Job) -> dict[str, Tensor]:
    path = job.folder / "checkpoints" / "step-00000020" / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def history(job: Job) -> list[Record]:
    records: list[Record] = json.loads((job.folder / "history.json").read_text())
    return records


def wait(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def assert_agree(one: Job, two: Job, what: Literal["weights", "losses"] = "weights") -> None:
    """To rounding: float32 sums in another order, carried through 20 steps of AdamW. Its sign is
    all that Lion takes of a gradient, also of one that is 0 but for rounding (biases of keys): then
    losses alone."""
    for left, right in zip(history(one), history(two), strict=True):
        for name in ("train/loss", "val/loss", "val/bits_per_byte", "gradient_norm"):
            assert (name in left) == (name in right)
            if name in left:
                assert left[name] == pytest.approx(right[name], rel=1e-5), (left["step"], name)
        for name in ("step", "tokens", "flops", "learning_rate"):
            assert left.get(name) == right.get(name)
    if what == "losses":
        return
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, weights(two)[name], rtol=1e-3, atol=1e-4)


def test_one_process_and_two_agree(
    make_run: Callable[..., Run], make_job: Callable[..., Job], start_jobs: Start, tmp_path: Path
) -> None:
    """For both architectures, with rollouts, for a run that one began and two finish, and where
    each rank's share goes through the model row by row."""
    asked = Rollouts(prompts=("a", "b"), seeds=2, new_tokens=8, captures=3, budget=1e6)
    pairs = []
    for name in ("gpt2", "llama"):
        run = make_run(name, rollouts=asked if name == "llama" else Rollouts())
        pairs.append((make_job(run, f"{name}-1"), make_job(run, f"{name}-2")))
    begun = make_job(make_run("gpt2"), "begun")
    for one, _ in pairs:
        assert execute(one, Ranks(), lambda records: None)["status"] == "finished"
    begun.stop_file.touch()
    assert execute(begun, Ranks(), lambda records: None)["status"] == "stopped"
    begun.stop_file.unlink()

    parts = replace(make_job(pairs[0][0].run, "parts"), means=Means(micro_batch=1))

    wait(start_jobs([*(two for _, two in pairs), begun, parts], 2))
    assert (result(parts.folder) or {})["accumulated"] == 2
    for one, two in [*pairs, (pairs[0][0], begun), (pairs[0][0], parts)]:
        ended = result(two.folder)
        assert ended is not None and (ended["status"], ended["workers"]) == ("finished", 2)
        assert_agree(one, two)
    rows = read(pairs[1][1].folder / "rollouts")
    captured = rows.groupby("step").size().to_dict()
    assert {captured[0], captured[20]} == {4}, "rank 0 alone captures"


def test_a_process_alone_needs_no_group() -> None:
    model = nn.Linear(2, 2)
    assert wrap(model, Ranks()) is model
    assert mean(torch.tensor(2.5), Ranks()) == 2.5
    assert agree(True, Ranks()) is True and agree(False, Ranks()) is False
    assert Ranks().leads and not Ranks(rank=1, world=2).leads
