"""Do the points of a study reach Ray, come back, survive, and stop?"""

import json
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from isoflop import record, tracked
from isoflop.benchmarks.orchestration import trainers
from isoflop.campaign import Campaign, Machine
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.job import Job, result
from isoflop.orchestration.points import run_points
from isoflop.orchestration.slots import Slots, slots
from isoflop.telling import Tracked
from isoflop.tracking import Tracker
from isoflop.training.loop import Record
from isoflop.watching import Both, Limits

from .conftest import tiny

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours


class Heard:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.records: list[Record] = []
        self.results: dict[str, dict[str, object]] = {}

    def started(self, job: Job) -> None:
        self.begun.append(job.run.identity)

    def progressed(self, job: Job, records: list[Record]) -> None:
        self.records += records

    def ended(self, job: Job, result: dict[str, object]) -> None:
        self.results[job.run.identity] = result


def campaign(corpus: Path, storage: Path, only: int | None = None, **changes: object) -> Campaign:
    study = tiny(corpus, **changes)
    points = list(study.points)[:only]
    return Campaign.prepare(study, Machine(storage=storage), points, [])


TWO = Slots(workers=1, at_once=2, gpu=False)


def test_a_study_end_to_end(
    ray_cluster: Resources, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = campaign(corpus, tmp_path)
    assert made.go() == 0
    shown = capsys.readouterr().out
    assert "16 runs to train, 2 at once (0 done before)" in shown
    assert str(tmp_path / "tiny" / "report.html") in shown

    table = record.table(made.jobs)
    assert set(table["status"]) == {"finished"}
    assert table["loss"].between(0, 6).all()
    assert len(record.rollouts(made.jobs)) == 16 * 2 * 2 * 2
    page = (tmp_path / "tiny" / "report.html").read_text()
    assert all(
        identity in page or label in page
        for identity, label in zip(table["run"], table["label"], strict=True)
    )

    before = {
        job.run.identity: (job.folder / "result.json").stat().st_mtime_ns for job in made.jobs
    }
    assert campaign(corpus, tmp_path).go() == 0
    assert "nothing to train" in capsys.readouterr().out
    after = {job.run.identity: (job.folder / "result.json").stat().st_mtime_ns for job in made.jobs}
    assert after == before

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    points = [run for run in runs if run.data.tags["isoflop.kind"] == "run"]
    assert len(points) == 16 and len(runs) == 17
    assert {run.info.status for run in runs} == {"FINISHED"}
    logged = {run.data.tags["isoflop.identity"]: run.data.metrics["loss"] for run in points}
    assert logged == dict(zip(table["run"], table["loss"], strict=True))
    curve = client.get_metric_history(points[0].info.run_id, "loss/training")
    assert len(curve) > 5
    assert {"utilisation", "system/process_memory_megabytes"} <= points[0].data.metrics.keys()


def test_captures_that_runs_put_off_are_made_when_all_are_trained(
    ray_cluster: Resources, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny(corpus)
    points, within = list(study.points)[:2], ["rollouts.budget=0.001"]
    made = Campaign.prepare(study, Machine(storage=tmp_path), points, within)
    assert made.go() == 0
    assert "rollouts that the budget of 2 runs put off are made now" in capsys.readouterr().out
    table = record.table(made.chosen)
    assert (table["capture_share"] <= 0.02).all(), "the budget is kept"
    assert (table["captures_later"] == 2).all() and (table["captures_waiting"] == 0).all()
    assert (table["later_seconds"] > 0).all() and table["rollout/entropy"].notna().all()
    assert len(record.rollouts(made.chosen)) == 2 * 2 * 2 * 2

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    steps = {job.run.identity: job.run.steps for job in made.chosen}
    for run in client.search_runs([experiment.experiment_id], "tags.`isoflop.kind` = 'run'"):
        assert run.info.status == "FINISHED"
        entropies = client.get_metric_history(run.info.run_id, "rollout/entropy")
        assert [one.step for one in entropies] == [0, steps[run.data.tags["isoflop.identity"]]]
        assert len(client.list_artifacts(run.info.run_id, "rollouts")) == 3  # and the references

    ended = made.chosen[0].folder / "result.json"  # as if it had been stopped before
    values = json.loads(ended.read_text())
    ended.write_text(json.dumps({**values, "captures_waiting": [0]}))
    assert made.go() == 0
    assert "0 runs to train" in capsys.readouterr().out
    assert json.loads(ended.read_text())["captures_waiting"] == []


def test_a_run_that_raises_is_recorded_and_the_others_go_on(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    made = campaign(corpus, tmp_path, only=3)
    made.jobs[1].folder.mkdir(parents=True)
    (made.jobs[1].folder / "checkpoints").write_text("a file where a folder must be")
    heard = Heard()
    run_points(made.chosen, TWO, tmp_path / "ray", heard)
    ended = [result(job.folder) or {} for job in made.chosen]
    assert [values["status"] for values in ended] == ["finished", "failed", "finished"]
    assert "Traceback" in ended[1]["traceback"]
    assert heard.results.keys() == {job.run.identity for job in made.chosen}


def test_biggest_first_and_bit_equal_to_a_run_without_ray(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    from isoflop.orchestration.job import execute
    from isoflop.training.distributed import Ranks

    made = campaign(corpus, tmp_path, only=4)
    heard = Heard()
    run_points(made.chosen, replace(TWO, at_once=1), tmp_path / "ray", heard)
    sizes = {job.run.identity: job.run.training_flops for job in made.chosen}
    assert [sizes[name] for name in heard.begun] == sorted(sizes.values(), reverse=True)
    job = made.chosen[2]
    alone = execute(replace(job, folder=tmp_path / "alone"), Ranks(), lambda records: None)
    assert alone["loss"] == (result(job.folder) or {})["loss"]


def test_a_killed_worker_goes_on_from_its_checkpoint(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    made = campaign(corpus, tmp_path, only=2, tokens=300_000)
    job = replace(made.chosen[1], run=replace(made.chosen[1].run, checkpoints=_often()))
    heard = Heard()
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            checkpoints = list(job.folder.glob("checkpoints/step-*/state.json"))
            pids = [p for p in trainers() if checkpoints]
            if pids:
                killed.extend(pids)
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "killed", tmp_path / "artifacts")
    run_points([job], TWO, tmp_path / "ray", Both(heard, Tracked(tracker, made.study)))
    thread.join(timeout=10)
    tracker.close()
    assert killed, "a trial was killed while it trained"
    ended = result(job.folder) or {}
    assert ended["status"] == "finished" and ended["process"] not in killed
    history = json.loads((job.folder / "history.json").read_text())
    steps = [r["step"] for r in history]
    assert steps == sorted(set(steps)), "no step is recorded twice"
    assert [r["step"] for r in heard.records].count(0) <= 1, "it did not begin anew"
    # What the process had told nobody yet, of its last second, is tracked all the same.
    table = tracked.histories(f"sqlite:///{tmp_path / 'mlflow.db'}", "killed")
    evaluated = [r["step"] for r in history if "val/loss" in r]
    assert [r["step"] for r in table[job.run.identity] if "val/loss" in r] == evaluated
    assert _curve(tmp_path / "mlflow.db", "tokens") == steps


def _curve(database: Path, metric: str) -> list[int]:
    """The steps that MLflow holds of the only run's metric, as often as it holds them."""
    query = "SELECT step FROM metrics WHERE key = ? ORDER BY step"
    with closing(sqlite3.connect(database)) as store:
        return [step for (step,) in store.execute(query, (metric,))]


def _often() -> object:
    from isoflop.run import Checkpoints

    return Checkpoints(seconds=0.2)


def test_a_stop_file_ends_the_study_at_checkpoints(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    made = campaign(corpus, tmp_path, only=6, tokens=2_000_000)
    made.folder.mkdir(parents=True, exist_ok=True)
    heard = Heard()

    def ask() -> None:
        while not heard.records:
            time.sleep(0.05)
        made.chosen[0].stop_file.touch()

    threading.Thread(target=ask, daemon=True).start()
    began = time.monotonic()
    run_points(made.chosen, TWO, tmp_path / "ray", heard)
    assert time.monotonic() - began < 60
    assert {values["status"] for values in heard.results.values()} == {"stopped"}
    saved = [job for job in made.chosen if list(job.folder.glob("checkpoints/step-*"))]
    assert saved, "what ran has written a checkpoint"
    assert len(record.unfinished(made.chosen)) == 6


@pytest.mark.slow
def test_a_limit_ends_the_study_at_checkpoints_and_the_same_command_goes_on(
    ray_cluster: Resources, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = campaign(corpus, tmp_path, only=2, tokens=40_000)
    everything = sum(float(job.run.training_flops) for job in made.chosen)
    half = replace(made, limits=Limits(flops=everything / 2, price=2.0))
    assert half.go() == 130
    shown = capsys.readouterr().out
    assert "FLOPs are trained" in shown and "the same command goes on" in shown
    left = record.unfinished(made.chosen)
    assert left and any(list(job.folder.glob("checkpoints/step-*")) for job in left)
    made.plan()
    assert made.go() == 0
    shown = capsys.readouterr().out
    assert "planned " in shown and "times that" in shown
    assert not record.unfinished(made.chosen)


def test_slots_fill_the_machine_and_refuse_what_does_not_fit() -> None:
    eight = Resources(cpus=8, gpus=0)
    assert slots(eight, workers=1, at_once=None).at_once == 8
    assert slots(eight, workers=3, at_once=None).at_once == 2
    assert slots(eight, workers=1, at_once=2).at_once == 2
    assert slots(Resources(cpus=64, gpus=4), workers=2, at_once=None) == Slots(
        workers=2, at_once=2, gpu=True
    )
    with pytest.raises(ValueError, match="--workers 9 needs 9 cores; the cluster has 8"):
        slots(eight, workers=9, at_once=None)


@pytest.mark.slow
def test_two_workers_through_ray_train_agree_with_one(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    one = campaign(corpus, tmp_path / "one", only=1)
    run_points(one.chosen, TWO, tmp_path / "ray", Heard())
    two = campaign(corpus, tmp_path / "two", only=1)
    heard = Heard()
    run_points(two.chosen, slots(ray_cluster, workers=2, at_once=None), tmp_path / "ray", heard)
    first, second = (result(made.chosen[0].folder) or {} for made in (one, two))
    assert second["status"] == "finished" and second["workers"] == 2
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert heard.records, "the records of rank 0 reach the driver"
