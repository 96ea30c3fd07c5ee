"""Does MLflow hold what happened, once, and does nothing wait for it?"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from isoflop import patience, tracked, tracking
from isoflop.tracking import Tracker

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own deprecations are not ours


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module: creating its schema takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def records(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "train/loss": 5.0 - step, "val/loss": 5.1 - step} for step in steps]


def runs(store: str, experiment: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id]))


def test_a_run_with_its_curve_summary_and_files(store: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step-0.parquet").write_bytes(b"rows")
    (tmp_path / "run.json").write_text("{}")
    tracker = Tracker(store, "curve", tmp_path / "artifacts")
    tracker.start("a1", "gpt2 width=8", {"width": 8}, {"isoflop.kind": "run"})
    tracker.log("a1", records(0, 1, 2))
    tracker.end(
        "a1",
        "finished",
        {"loss": 3.1, "error": None},
        [tmp_path / "run.json", tmp_path / "rollouts"],
    )
    tracker.close()
    (run,) = runs(store, "curve")
    assert run.info.status == "FINISHED" and run.info.run_name == "gpt2 width=8"
    assert run.data.params == {"width": "8"}
    assert run.data.metrics["loss"] == 3.1 and run.data.metrics["loss/held out"] == pytest.approx(
        3.1
    )
    client = MlflowClient(store)
    curve = client.get_metric_history(run.info.run_id, "loss/training")
    assert [(point.step, point.value) for point in curve] == [(0, 5.0), (1, 4.0), (2, 3.0)]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"run.json", "rollouts"}


def test_a_run_that_goes_on_is_reopened_by_another_process(store: str, tmp_path: Path) -> None:
    """And holds each record once, whatever is told again."""
    from mlflow.tracking import MlflowClient

    for steps in ((0, 1), (1, 2)):  # step 1 is repeated from a checkpoint
        tracker = Tracker(store, "again", tmp_path)
        tracker.start("b2", "run", {"width": 8}, {})
        tracker.log("b2", records(*steps))
        tracker.log("b2", [{"step": 1, "rollout/distinct_2": 0.5}])  # of an earlier step
        tracker.close()
    (run,) = runs(store, "again")
    assert run.info.status == "RUNNING"
    assert run.data.metrics["loss/training"] == 3.0
    client = MlflowClient(store)
    for name, steps in (("loss/training", (0, 1, 2)), ("rollout/distinct_2", (1,))):
        curve = client.get_metric_history(run.info.run_id, name)
        assert tuple(point.step for point in curve) == steps


def test_failures_and_stops_are_shown_as_such(store: str, tmp_path: Path) -> None:
    tracker = Tracker(store, "ends", tmp_path)
    for status in ("failed", "diverged", "stopped", "finished"):
        tracker.start(status, status, {}, {})
        tracker.end(status, status, {"error": "why"}, [])
    tracker.close()
    shown = {run.info.run_name: run.info.status for run in runs(store, "ends")}
    assert shown == {
        "failed": "FAILED", "diverged": "FAILED", "stopped": "KILLED", "finished": "FINISHED",
    }  # fmt: skip


def test_more_metrics_than_one_call_takes(store: str, tmp_path: Path) -> None:
    tracker = Tracker(store, "many", tmp_path)
    tracker.start("m", "many", {}, {})
    tracker.log("m", records(*range(1_200)))
    tracker.close()
    (run,) = runs(store, "many")
    assert run.data.metrics["loss/training"] == 5.0 - 1_199


def test_nothing_waits_for_a_store_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be looked at" * 9)
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "broken", tmp_path)
    began = time.monotonic()
    tracker.start("c", "run", {}, {})
    tracker.log("c", records(0))
    assert time.monotonic() - began < 1
    with pytest.raises(RuntimeError, match=r"MLflow at sqlite:.* failed"):
        tracker.close()


KILLED = """
import os, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from isoflop.tracking import Tracker

made = 0

@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *rest):
    global made
    made += "CREATE TABLE" in statement
    if made > 20:
        os._exit(9)

tracker = Tracker(sys.argv[1], "killed", sys.argv[2])
tracker.start("a", "run", {}, {})
tracker.close()
"""


def test_a_store_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    dead = subprocess.run([sys.executable, "-c", KILLED, store, str(tmp_path)], timeout=120)
    assert dead.returncode == 9
    assert [p.name for p in tmp_path.glob(".mlflow.db.*[0-9]")] and not list(tmp_path.glob("m*"))
    tracker = Tracker(store, "killed", tmp_path)
    tracker.start("a", "run", {}, {})
    tracker.end("a", "finished", {}, [])
    tracker.close()
    assert [run.info.status for run in runs(store, "killed")] == ["FINISHED"]


def test_two_studies_make_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    path, look = tmp_path / "mlflow.db", MlflowClient.search_experiments

    def slow(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
        path.write_text("the other's")
        return look(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "search_experiments", slow)
    tracking._create(path)
    assert path.read_text() == "the other's"
    assert os.listdir(tmp_path) == ["mlflow.db"]


def test_nothing_is_lost_while_a_server_is_away(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third call fails before it arrives; all that was tracked is there afterwards, once."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    real, count = MlflowClient.log_batch, 0

    def flaky(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count % 3:
            raise MlflowException("API request failed with exception: connection refused")
        return real(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tracking.Writer, "__init__", _patient(tracking.Writer.__init__))
    tracker = Tracker(store, "away", tmp_path)
    began = time.monotonic()
    tracker.start("a", "away", {"width": 8}, {})
    tracker.log("a", records(0, 1, 2))
    assert time.monotonic() - began < 1, "nobody waits for it"
    tracker.end("a", "finished", {"loss": 1.5}, [])
    tracker.close()
    (run,) = runs(store, "away")
    assert run.info.status == "FINISHED" and run.data.params == {"width": "8"}
    curve = MlflowClient(store).get_metric_history(run.info.run_id, "loss/training")
    assert [(p.step, p.value) for p in curve] == [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert count == 9, "three calls, each at its third attempt"


def _patient(begin: Any) -> Any:
    """A database as patiently written as a server."""

    def init(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        self.client.patience = 60.0

    return init


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back_has_everything(tmp_path: Path) -> None:
    """A real one, killed for a quarter of a minute in the middle of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    server = _serve(tmp_path, port)
    tracker = Tracker(uri, "down", tmp_path)
    tracker.start("a", "run", {}, {})
    tracker.log("a", records(0))
    tracker.wait()
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    for step in (1, 2, 3):
        tracker.log("a", records(step))
    (tmp_path / "result.json").write_text("{}")
    tracker.end("a", "finished", {"loss": 2.0}, [tmp_path / "result.json"])
    time.sleep(15)
    server = _serve(tmp_path, port)
    try:
        tracker.close()
        (run,) = runs(uri, "down")
        assert run.info.status == "FINISHED" and run.data.metrics["loss"] == 2.0
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        curve = client.get_metric_history(run.info.run_id, "loss/training")
        assert [point.step for point in curve] == [0, 1, 2, 3]
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["result.json"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """MLflow's own server in a process group of its own, once it answers."""
    words = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--port", str(port),
             "--artifacts-destination", str(folder / "kept"), "--workers", "1"]  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            tracking.check(f"http://127.0.0.1:{port}")
            return server
        except ValueError:
            assert server.poll() is None, "the server has ended"
            time.sleep(0.5)
    raise AssertionError("no server within three minutes")


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=rf"no MLflow server answers at http://127.0.0.1:{port}"):
        tracking.check(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "ftp://host"])
def test_stores_that_mlflow_does_not_take(uri: str) -> None:
    with pytest.raises(ValueError, match="it must be the URL of an MLflow server"):
        tracking.check(uri)


def test_links_open_model_training_and_hold_every_run() -> None:
    found = tracking.links("http://127.0.0.1:5000/", "7", ["r1", "r2"])
    assert found["runs"].startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    assert "compareRunsMode=CHART" in found["charts"]
    assert all("workflowType=machine_learning" in link for link in found.values())
    assert 'runs=["r1", "r2"]' in unquote(found["compare"])
    assert "compare" not in tracking.links("http://127.0.0.1:5000", "7", ["r1"])


def test_an_experiment_is_read_back_as_a_table(store: str, tmp_path: Path) -> None:
    """By SQL and by MLflow's own search alike: params as numbers, last metrics, no deleted run."""
    import pandas as pd
    from mlflow.tracking import MlflowClient

    tracker = Tracker(store, "table", tmp_path / "artifacts")
    for key, width, status in (
        ("a1", 8, "finished"),
        ("b2", 16, "diverged"),
        ("c3", 32, "stopped"),
    ):
        described = {"axis.arch": "gpt2", "width": width, "loss": "cross entropy"}
        tracker.start(key, f"run {key}", described, {"isoflop.kind": "run"})
        tracker.log(key, records(0, 1))
        loss = 3.0 if status == "finished" else float("nan")
        tracker.end(key, status, {"loss": loss, "tokens": 1e6 * width}, [])
    tracker.start("study", "the study", {}, {"isoflop.kind": "study"})
    tracker.close()
    client = MlflowClient(store)
    (gone,) = [run for run in runs(store, "table") if run.data.tags["isoflop.identity"] == "c3"]
    client.delete_run(gone.info.run_id)
    fast = tracked.experiment(store, "table").sort_values("run").reset_index(drop=True)
    assert fast["run"].tolist() == ["a1", "b2"]
    assert fast["status"].tolist() == ["finished", "failed"]
    assert fast["width"].tolist() == [8, 16] and fast["axis.arch"].tolist() == ["gpt2"] * 2
    assert fast["tokens"].tolist() == [8e6, 1.6e7] and fast["loss/held out"].iloc[0] > 4
    heads, values = tracked._by_search(store, "table")
    assert {head["run"] for head in heads} == {"a1", "b2", "study"} and values["params"]
    sql_heads, sql_values = tracked._by_sql(store.removeprefix("sqlite:///"), "table")
    key = pd.DataFrame(heads).sort_values("id").reset_index(drop=True)
    assert key.equals(pd.DataFrame(sql_heads).sort_values("id").reset_index(drop=True))
    for kind in ("params", "metrics"):
        pairs = [{(r, k): v for r, k, v in found[kind]} for found in (values, sql_values)]
        assert set(pairs[0]) == set(pairs[1])
        assert all(v == pairs[1][k] or v != v for k, v in pairs[0].items())


def test_the_way_of_each_run_is_read_back(store: str, tmp_path: Path) -> None:
    """By SQL and by MLflow's client alike; a step that was taken twice counts once."""
    tracker = Tracker(store, "ways", tmp_path / "artifacts")
    for key in ("a1", "b2"):
        tracker.start(key, key, {}, {"isoflop.kind": "run"})
        for step in (0, 10, 20, 20):
            record = {
                "step": step,
                "tokens": 64.0 * step,
                "flops": 1e6 * step,
                "val/loss": 5 - step,
            }
            tracker.log(key, [record, {"step": step + 5, "train/loss": 4.0, "tokens": 1.0}])
        tracker.log(key, [{"step": 30, "val/loss": float("nan")}])
    tracker.start("study", "the study", {}, {"isoflop.kind": "study"})
    tracker.close()
    found = tracked.histories(store, "ways")
    assert set(found) == {"a1", "b2"}
    told = [record for record in found["a1"] if "val/loss" in record]
    assert told == [
        {"step": s, "tokens": 64.0 * s, "flops": 1e6 * s, "val/loss": 5.0 - s} for s in (0, 10, 20)
    ]
    assert tracked.histories(store, "absent") == {}
    rows = tracked._steps_by_sql(store.removeprefix("sqlite:///"), "ways")
    assert sorted(rows) == sorted(tracked._steps_by_client(store, "ways"))


def test_what_is_no_experiment_is_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no experiment 'other'; there are: "):
        tracked.experiment(store, "other")
    with pytest.raises(ValueError, match="there is no MLflow database"):
        tracked.experiment(f"sqlite:///{tmp_path / 'absent.db'}", "grid")
    (tmp_path / "text.db").write_text("not a database, though it is long enough to look at" * 20)
    with pytest.raises(ValueError, match="is no MLflow database"):
        tracked.experiment(f"sqlite:///{tmp_path / 'text.db'}", "grid")
    with pytest.raises(ValueError, match="must be the URL of an MLflow server"):
        tracked.experiment("file:///mlruns", "grid")


def test_laws_are_fitted_from_an_experiment(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from isoflop import cli

    tracker = Tracker(store, "laws", tmp_path / "artifacts")
    for size in (1e6, 4e6, 1.6e7, 6.4e7):
        for tokens in (1e8, 4e8, 1.6e9):
            loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.3
            key = f"{size:g}-{tokens:g}"
            described = {"params_without_input_embedding": size, "tokens": tokens}
            tracker.start(key, key, described, {"isoflop.kind": "run"})
            tracker.end(key, "finished", {"loss": loss}, [])
    tracker.close()
    with pytest.raises(SystemExit) as end:
        words = ["--form", "chinchilla", "--resamples", "20", "--no-report"]
        cli.main(["fit", f"mlflow:{store}#laws", *words])
    assert end.value.code == 0 and "12 runs of laws" in capsys.readouterr().out
