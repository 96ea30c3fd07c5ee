"""Can a run be put away and taken out again, whatever happens to the disk meanwhile?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isoflop.data.rows import sample
from isoflop.objectives.autoregressive import NextToken
from isoflop.run import Run
from isoflop.training import checkpoint, optimizer
from isoflop.training.checkpoint import KEPT, Progress, load, save, write_json
from isoflop.training.distributed import Ranks
from isoflop.training.step import update
from models.interface import Model

MakeRun = Callable[..., Run]


@dataclass
class Trained:
    """A model and its optimizer after some steps on random tokens."""

    run: Run
    model: Model
    optim: torch.optim.Optimizer
    progress: Progress

    @staticmethod
    def fresh(run: Run, seed: int = 0) -> Trained:
        torch.manual_seed(seed)
        model = run.model.build()
        return Trained(run, model, optimizer.build(model, run.optimizer), Progress())

    def step(self, count: int = 1) -> Trained:
        for _ in range(count):
            step = self.progress.step
            batch = NextToken().batch(sample(2, 32, 257, seed=step))
            loss, _ = update(self.model, self.optim, NextToken(), batch, self.run, Ranks())
            self.progress.step += 1
            self.progress.seconds += 0.1
            self.progress.history.append({"step": step + 1, "train/loss": float(loss)})
        return self

    def save(self, folder: Path) -> Path:
        return save(folder, self.run, self.progress, self.model, self.optim)

    def load(self, folder: Path) -> list[str]:
        """Returns the warnings."""
        warnings: list[str] = []
        self.progress = load(folder, self.run, self.model, self.optim, warnings.append)
        return warnings

    def numbers(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""
        found = {f"weight {name}": value for name, value in self.model.state_dict().items()}
        for index, values in self.optim.state_dict()["state"].items():
            found |= {f"{index} {name}": torch.as_tensor(v) for name, v in values.items()}
        return found


def assert_same(one: Trained, other: Trained) -> None:
    left, right = one.numbers(), other.numbers()
    assert left.keys() == right.keys() and len(left) > 3
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name
    assert one.progress == other.progress


@pytest.fixture(params=["gpt2", "llama", "llama-tied"])
def run(request: pytest.FixtureRequest, make_run: MakeRun) -> Run:
    return make_run(request.param)


def test_what_is_saved_is_loaded(run: Run, tmp_path: Path) -> None:
    trained = Trained.fresh(run).step(3)
    assert trained.save(tmp_path) == tmp_path / "step-00000003"
    other = Trained.fresh(run, seed=9)
    assert other.load(tmp_path) == []
    assert_same(trained, other)
    assert_same(trained.step(2), other.step(2))


def test_nothing_there_is_a_fresh_start(run: Run, tmp_path: Path) -> None:
    trained = Trained.fresh(run)
    assert trained.load(tmp_path / "missing") == []
    assert trained.progress == Progress()
    assert_same(trained, Trained.fresh(run))


def test_a_checkpoint_is_of_safetensors_and_json(run: Run, tmp_path: Path) -> None:
    folder = Trained.fresh(run).step().save(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json"}
    for path in folder.glob("*.safetensors"):
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert header, "a safetensors file begins with the length of a JSON header"
    state = json.loads((folder / "state.json").read_text())
    assert state["identity"] == run.identity
    assert state["run"] == json.loads(json.dumps(run.as_json()))
    assert state["tokenizer"] == {"name": "bytes", "fingerprint": run.data.fingerprint}


def test_tied_weights_are_stored_once_and_stay_tied(make_run: MakeRun, tmp_path: Path) -> None:
    sizes = {}
    for name in ("llama-tied", "gpt2"):
        run = make_run(name)
        trained = Trained.fresh(run).step()
        folder = trained.save(tmp_path / name)
        sizes[name] = (folder / "model.safetensors").stat().st_size
        assert sizes[name] < 4 * run.model.parameters().all + 8_000
        other = Trained.fresh(run, seed=5)
        other.load(tmp_path / name)
        count = sum(p.numel() for p in other.model.parameters())
        assert count == run.model.parameters().all
        assert_same(trained.step(), other.step())


def test_only_the_newest_are_kept(make_run: MakeRun, tmp_path: Path) -> None:
    trained = Trained.fresh(make_run())
    for _ in range(KEPT + 3):
        trained.step().save(tmp_path)
    steps = range(4, KEPT + 4)
    assert sorted(os.listdir(tmp_path)) == [f"step-{step:08d}" for step in steps]


def test_saving_a_step_again_replaces_it(make_run: MakeRun, tmp_path: Path) -> None:
    trained = Trained.fresh(make_run()).step()
    trained.save(tmp_path)
    trained.progress.seconds = 77.0
    trained.save(tmp_path)
    other = Trained.fresh(make_run())
    other.load(tmp_path)
    assert other.progress.seconds == 77.0
    assert os.listdir(tmp_path) == ["step-00000001"]


FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "noise"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_gives_way_to_the_one_before(
    name: str, damage: str, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    trained = Trained.fresh(run).step(2)
    trained.save(tmp_path)
    before = Trained.fresh(run)
    before.load(tmp_path)
    file = trained.step().save(tmp_path) / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        bad = {"cut": content[: len(content) // 2], "empty": b"", "noise": b"\xff" * 500}
        file.write_bytes(bad[damage])
    other = Trained.fresh(run, seed=3)
    (warning,) = other.load(tmp_path)
    assert "step-00000003 cannot be read" in warning
    assert_same(other, before)


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"identity": 3}', '{"progress": {}}'])
def test_a_state_of_other_content_is_damage_too(
    content: str, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    trained = Trained.fresh(run).step()
    trained.save(tmp_path)
    (trained.step().save(tmp_path) / "state.json").write_text(content)
    other = Trained.fresh(run, seed=3)
    (warning,) = other.load(tmp_path)
    assert "step-00000002 cannot be read" in warning
    assert other.progress.step == 1


def test_all_damaged_is_a_fresh_start_with_as_many_warnings(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    trained = Trained.fresh(run)
    for _ in range(2):
        (trained.step().save(tmp_path) / "model.safetensors").write_bytes(b"")
    other = Trained.fresh(run)
    assert len(other.load(tmp_path)) == 2
    assert_same(other, Trained.fresh(run))


@pytest.mark.parametrize("dies_in", ["save_model", "save_file", "write_json"])
def test_a_death_while_saving_leaves_the_checkpoint_before(
    dies_in: str, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    run = make_run()
    trained = Trained.fresh(run).step()
    trained.save(tmp_path)
    saved = Trained.fresh(run)
    saved.load(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, dies_in, dies)
        trained.step().save(tmp_path)
    other = Trained.fresh(run, seed=3)
    assert other.load(tmp_path) == []
    assert_same(other, saved)
    trained.save(tmp_path)
    again = Trained.fresh(run, seed=3)
    assert again.load(tmp_path) == [] and again.progress.step == 2


def test_another_runs_checkpoint_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    mine, other = make_run(), make_run(seed=1)
    Trained.fresh(other).step().save(tmp_path)
    with pytest.raises(ValueError, match=f"step-00000001 was written by run {other.identity}"):
        Trained.fresh(mine).load(tmp_path)


def test_where_the_text_lies_does_not_matter(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    Trained.fresh(run).step().save(tmp_path)
    moved = Trained.fresh(replace(run, data=replace(run.data, source="/else/where")))
    assert moved.load(tmp_path) == [] and moved.progress.step == 1


def test_a_final_checkpoint_has_weights_only(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    trained = Trained.fresh(run).step(run.steps)
    folder = save(tmp_path, run, trained.progress, trained.model, None)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "state.json"}
    other = Trained.fresh(run, seed=3)
    assert other.load(tmp_path) == []
    assert other.progress == trained.progress
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": [1.5, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1.5, "ü"]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1.5, "ü"]}
    write_json(path, 2)
    assert path.read_text() == "2"


def test_numbers_survive_json_to_the_bit(make_run: MakeRun, tmp_path: Path) -> None:
    trained = Trained.fresh(make_run()).step()
    values = {"a": 0.1 + 0.2, "b": 1e-310, "c": float("inf"), "d": -0.0}
    trained.progress.history.append(values)
    trained.save(tmp_path)
    other = Trained.fresh(make_run())
    other.load(tmp_path)
    assert [v.hex() for v in other.progress.history[-1].values()] == [
        v.hex() for v in values.values()
    ]
