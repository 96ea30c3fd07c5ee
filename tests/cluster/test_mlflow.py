"""Does the record of runs outlive the head? mlflow.sh as heads start it, on SQLite and Postgres."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from cluster.remote import free_port

ROOT = Path(__file__).parents[2]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = pytest.mark.slow


class Server:
    """mlflow.sh on a head with a home of its own."""

    def __init__(self, home: Path, **settings: str) -> None:
        home.mkdir(exist_ok=True)
        self.port = free_port()
        self.environment = {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ISOFLOP_MLFLOW_PORT": str(self.port),
            **settings,
        }

    def script(self, verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "cluster" / "mlflow.sh"), verb],
            env=self.environment, capture_output=True, text=True, timeout=180,
        )  # fmt: skip

    def ask(self, path: str, values: Any = None, put: bytes | None = None) -> Any:
        """The server's answer; asked again until it listens."""
        data = put if values is None else json.dumps(values).encode()
        method = "GET" if data is None else ("PUT" if put else "POST")
        kind = {"Content-Type": "text/plain" if put else "application/json"}
        url = f"http://127.0.0.1:{self.port}/api/2.0/{path}"
        end = time.monotonic() + 120
        while True:
            try:
                request = urllib.request.Request(url, data, kind, method=method)
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.read()
            except urllib.error.HTTPError:
                raise
            except OSError:
                assert time.monotonic() < end, "MLflow does not answer"
                time.sleep(0.5)


def write(server: Server) -> str:
    """One finished run with a metric and an artifact; where its artifact is asked for."""
    made = json.loads(server.ask("mlflow/experiments/create", {"name": "scaling"}))
    identity = made["experiment_id"]
    created = server.ask("mlflow/runs/create", {"experiment_id": identity, "start_time": 1})
    run = json.loads(created)["run"]["info"]
    assert run["artifact_uri"].startswith("mlflow-artifacts:"), "served, not written by clients"
    metric = {"run_id": run["run_id"], "key": "loss", "value": 1.5, "timestamp": 1}
    server.ask("mlflow/runs/log-metric", metric)
    server.ask("mlflow/runs/update", {"run_id": run["run_id"], "status": "FINISHED"})
    place = f"mlflow-artifacts/artifacts/{identity}/{run['run_id']}/artifacts/report.txt"
    server.ask(place, put=b"what it found")
    return place


def read(server: Server, place: str) -> tuple[str, float, bytes]:
    run = place.split("/")[3]
    found = json.loads(server.ask(f"mlflow/runs/get?run_id={run}"))["run"]
    return found["info"]["status"], found["data"]["metrics"][0]["value"], server.ask(place)


def test_a_new_head_takes_up_the_runs_of_one_that_is_gone(tmp_path: Path) -> None:
    storage = str(tmp_path / "storage")
    first = Server(tmp_path / "first", ISOFLOP_STORAGE=storage)
    started = first.script("start")
    assert started.returncode == 0, started.stderr
    try:
        place = write(first)
        assert first.script("backup").returncode == 0
    finally:
        first.script("stop")
    shutil.rmtree(tmp_path / "first")  # as nodes go
    second = Server(tmp_path / "second", ISOFLOP_STORAGE=storage)
    assert "a head before this one" in second.script("start").stdout
    try:
        assert read(second, place) == ("FINISHED", 1.5, b"what it found")
    finally:
        second.script("stop")


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Postgres with a password, and the home whose .pgpass has it."""
    if not POSTGRES:
        pytest.skip("not installed: postgresql")
    try:
        sqlalchemy.create_engine("postgresql://")
    except ModuleNotFoundError as error:
        pytest.skip(f"not installed, as it would be on a head: {error.name}")
    data, port, home = tmp_path / "data", free_port(), tmp_path / "head"
    password, tool = tmp_path / "password", str(POSTGRES[-1])
    data.mkdir()
    home.mkdir()
    password.write_text("secret")
    as_user = ["setpriv", "--reuid=nobody", "--clear-groups"] if os.geteuid() == 0 else []
    if as_user:  # it does not run as root
        for path in (data, password):
            shutil.chown(path, "nobody")
        for path in [tmp_path, *tmp_path.parents[:3]]:
            path.chmod(path.stat().st_mode | 0o011)
    subprocess.run(
        [*as_user, f"{tool}/initdb", "-D", str(data), "-U", "lab", "-A", "scram-sha-256",
         f"--pwfile={password}"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = subprocess.Popen(
        [*as_user, f"{tool}/postgres", "-D", str(data), "-p", str(port), "-k", str(data)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (home / ".pgpass").write_text(f"127.0.0.1:{port}:*:lab:secret\n")
    (home / ".pgpass").chmod(0o600)
    try:
        yield f"postgresql://lab@127.0.0.1:{port}/postgres", home
    finally:
        server.terminate()
        server.wait()


def test_a_database_server_by_its_url(postgres: tuple[str, Path], tmp_path: Path) -> None:
    url, home = postgres
    server = Server(home, ISOFLOP_STORE=url, ISOFLOP_STORAGE=str(tmp_path / "storage"))
    for _ in range(20):  # until it accepts
        started = server.script("start")
        if started.returncode == 0:
            break
        time.sleep(1)
    assert started.returncode == 0, (home / "mlflow" / "server.log").read_text()
    try:
        place = write(server)
        assert read(server, place) == ("FINISHED", 1.5, b"what it found")
        assert server.script("backup").returncode == 0, "its own business"
    finally:
        server.script("stop")


def test_a_password_in_the_url_is_refused(tmp_path: Path) -> None:
    server = Server(tmp_path / "home", ISOFLOP_STORE="postgresql://lab:secret@host/db")
    refused = server.script("start")
    assert refused.returncode != 0 and ".pgpass" in refused.stderr
    assert "secret" not in refused.stderr
