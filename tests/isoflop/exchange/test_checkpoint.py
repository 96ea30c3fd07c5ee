"""Does a run's folder say all that is needed to use its model, and refuse what does not fit?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoflop.data.prepare import Prepared
from isoflop.exchange.checkpoint import load_checkpoint
from isoflop.orchestration.job import Job, execute
from isoflop.run import Run
from isoflop.training.distributed import Ranks

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]


@pytest.fixture
def finished(make_run: MakeRun, make_job: MakeJob) -> Job:
    job = make_job(make_run("llama-tied", tokens=2 * 128))
    assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    return job


def test_a_moved_folder_needs_no_study_and_no_text(
    finished: Job, bytes_text: Prepared, tmp_path: Path
) -> None:
    (step,) = (finished.folder / "checkpoints").iterdir()
    moved = shutil.copytree(step, tmp_path / "elsewhere")
    loaded = load_checkpoint(moved)
    assert loaded.run == finished.run and loaded.step == 2 and not loaded.model.training
    assert loaded.tokenizer.hash == bytes_text.tokenizer_hash
    assert loaded.run.data.fingerprint == bytes_text.fingerprint
    weights = load_file(moved / "model.safetensors")
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    again = load_checkpoint(finished.folder)
    ids = torch.arange(16).unsqueeze(0)
    torch.testing.assert_close(again.model(ids), loaded.model(ids))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoding.json", "there is no tokenizer here"),
        ("model.safetensors", "model.safetensors cannot be read"),
        ("state.json", "holds no state.json"),
    ],
)
def test_what_is_missing_is_named(name: str, message: str, finished: Job) -> None:
    (path,) = finished.folder.glob(f"checkpoints/*/{name}")
    path.unlink()
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [("more", "holds 'extra'"), ("less", "lacks 'norm.weight'"), ("other", "norm.weight is \\(3")],
)
def test_weights_that_do_not_fit_are_named(change: str, message: str, finished: Job) -> None:
    (path,) = finished.folder.glob("checkpoints/*/model.safetensors")
    weights = load_file(path)
    if change == "more":
        weights["extra"] = torch.zeros(1)
    elif change == "less":
        del weights["norm.weight"]
    else:
        weights["norm.weight"] = torch.zeros(3)
    save_file(weights, path)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(finished.folder)


def test_an_unknown_key_of_the_run_is_named(finished: Job) -> None:
    (path,) = finished.folder.glob("checkpoints/*/state.json")
    state = json.loads(path.read_text())
    state["run"]["model"]["wings"] = 2
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"model\.wings is unknown"):
        load_checkpoint(finished.folder)


def test_another_run_than_wrote_it_is_refused(finished: Job) -> None:
    (path,) = finished.folder.glob("checkpoints/*/state.json")
    state = json.loads(path.read_text())
    state["run"]["seed"] = 7
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="describes another run"):
        load_checkpoint(finished.folder)
