"""Does MLflow end up with all that a study recorded, whoever died before it was told?"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from isoflop import record, tracking
from isoflop.campaign import Campaign, Machine
from isoflop.design import Study, grid
from isoflop.orchestration.job import execute, result
from isoflop.run import AdamW, Evaluation, Rollouts, Run, Text
from isoflop.telling import COMPLETE, Telling, complete
from isoflop.tracked import experiment, histories
from isoflop.training.distributed import Ranks
from models import GPT2Config

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own deprecations are not ours


def run(*, width: int, seed: int) -> Run:
    return Run(
        model=GPT2Config(context=32, width=width, depth=1, heads=2),
        data=Text(source="nowhere", tokenizer="bytes"),
        tokens=2_000,
        batch_tokens=128,
        optimizer=AdamW(lr=1e-2),
        evaluation=Evaluation(tokens=256, times=2),
        rollouts=Rollouts(prompts=("def ",), seeds=2, new_tokens=8, budget=1),
        seed=seed,
    )


@pytest.fixture
def ended(text_folder: Path, tmp_path: Path) -> Campaign:
    """All runs of a study have ended, and nobody has told MLflow of any."""
    points = grid(width=[8, 16, 24], seed=[0])
    study = Study(name="untold", run=run, points=points, family="width", budget="seed")
    made = Campaign.prepare(
        study, Machine(storage=tmp_path), list(study.points), [f"data={text_folder}"], quiet=True
    )
    for job in made.jobs:
        execute(job, Ranks(), lambda records: None)
    return made


def _state(store: str) -> tuple[int, int]:
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as opened:
        (count,), (same,) = (
            opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
            for table in ("metrics", "(SELECT DISTINCT run_uuid, key, step FROM metrics)")
        )
    return count, same


def test_what_a_killed_driver_had_not_told_is_told_by_the_next_command(
    ended: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ended.machine.tracking_uri
    first, second, _ = ended.jobs
    killed = Telling(replace(ended, jobs=[]))
    killed.watcher.started(first)  # it dies in the midst of this one,
    killed.watcher.progressed(first, record.records(first.folder)[:3])
    for _ in range(2):  # has all of this one, whose captures were put off; nothing of the third
        killed.watcher.started(second)
        killed.watcher.ended(second, result(second.folder) or {})
    killed.tracker.close()
    assert sorted(experiment(store, "untold")["status"]) == ["finished", "running"]
    assert not complete(ended)

    assert ended.go() == 0
    assert "isoflop ui" in capsys.readouterr().out
    known = experiment(store, "untold").set_index("run")
    assert set(known["status"]) == {"finished"} and len(known) == 3
    for job in ended.jobs:
        values = result(job.folder) or {}
        assert known["loss"][job.run.identity] == values["loss"]
        way = [r["step"] for r in histories(store, "untold")[job.run.identity] if "val/loss" in r]
        assert way == [r["step"] for r in record.records(job.folder) if "val/loss" in r]
    count, distinct = _state(store)
    assert count == distinct, "nothing is written twice"

    database = Path(store.removeprefix("sqlite:///"))
    written = database.stat().st_mtime_ns
    assert ended.go() == 0
    assert "isoflop ui" not in capsys.readouterr().out
    assert database.stat().st_mtime_ns == written, "there was nothing to tell"


def test_another_store_is_told_of_the_runs_that_were(ended: Campaign, tmp_path: Path) -> None:
    assert ended.go() == 0
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert replace(ended, machine=replace(ended.machine, tracking=other)).go() == 0
    one, two = (experiment(store, "untold") for store in (ended.machine.tracking_uri, other))
    assert sorted(one["run"]) == sorted(two["run"]) and len(two) == 3
    assert "other" not in (ended.folder / COMPLETE).read_text(), "an address may hold a password"
    assert not complete(ended), "it is of the other store"
    assert ended.go() == 0 and complete(ended)
    (tmp_path / "mlflow.db").unlink()
    assert not complete(ended), "somebody removed the store"


def test_a_store_that_fails_is_said_and_asked_again(
    ended: Campaign, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(tracking.Writer, "end", full)
        assert ended.go() == 0
    shown = capsys.readouterr().out
    assert "no space left" in shown and "the same command tells it what it lacks" in shown
    assert not (ended.folder / COMPLETE).exists()
    assert ended.go() == 0
    assert set(experiment(ended.machine.tracking_uri, "untold")["status"]) == {"finished"}
    assert json.loads((ended.folder / COMPLETE).read_text())
