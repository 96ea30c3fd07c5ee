"""Where do people look at runs? In MLflow; this and `tracked` are the files that import it.

The study's own run table is the record; MLflow is the viewer. So nothing waits for it: a `Tracker`
takes records at once and a thread of its own imports mlflow (seconds of CPU), creates the store,
and writes in batches. One process of a study tracks, its driver: SQLite takes one writer well and
several badly.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from isoflop.patience import PATIENCE, Patient

if TYPE_CHECKING:
    from mlflow.entities import Metric

Record = Mapping[str, float]
Steps = dict[str, set[int]]  # of each metric, as MLflow names it

BATCH = 1_000  # metrics per call: MLflow's own limit, and 40 times cheaper than one by one
FLUSH_SECONDS = 5.0
ABANDONED = 3600.0  # seconds after which nobody is making a store any more
ENDED = "isoflop.ended"  # tag of a run that has been told to its end
FIRST = "val/loss"  # MLflow's comparison opens with the metric that was written first
STATUS = {
    "finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED",
    "alarmed": "KILLED",
    "pruned": "KILLED",
}  # fmt: skip


def check(uri: str) -> None:
    """Raise ValueError with one clear sentence if nothing can be tracked at `uri`."""
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(f"no MLflow server answers at {uri} ({reason})") from None
    if not uri.startswith(("sqlite:///", "postgresql", "mysql")):
        raise ValueError(
            f"--tracking is {uri!r}; it must be the URL of an MLflow server (http://...) or of a "
            "database (sqlite:///file.db); MLflow no longer takes plain folders"
        )


class Tracker:
    """Writes one experiment (a study) to MLflow from a thread. No method blocks except `close`."""

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        self.uri = uri
        self._queue: queue.SimpleQueue[Callable[[Writer], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, args=(experiment, artifacts), name="tracking", daemon=True
        )
        self.error: BaseException | None = None
        self.experiment_id: str | None = None
        self._patient: Patient | None = None
        self._runs: dict[str, str] = {}
        self._thread.start()

    def start(
        self, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        """Open the run that `key` (a run's identity) stands for, or create it."""
        self._queue.put(lambda writer: writer.start(key, name, params, tags))

    def log(self, key: str, records: list[dict[str, float]]) -> None:
        """Records with "step" and any metrics; NaN and infinity are MLflow's to show. What was
        written before, of the same metric and step, is not written again."""
        self._queue.put(lambda writer: writer.log(key, records))

    def end(self, key: str, status: str, summary: Mapping[str, Any], artifacts: list[Path]) -> None:
        """Final values, files, and the status in MLflow's words."""
        self._queue.put(lambda writer: writer.end(key, status, summary, artifacts))

    def do(self, call: Callable[[Writer], None]) -> None:
        """Anything else, in its turn."""
        self._queue.put(call)

    @property
    def calls(self) -> int:
        """Calls made to the store so far."""
        return self._patient.calls if self._patient else 0

    def wait(self) -> None:
        """Until everything asked so far is written, or the store has failed."""
        done = threading.Event()
        self._queue.put(Writer.flush)
        self._queue.put(lambda writer: done.set())
        while self._thread.is_alive() and not done.wait(0.02):
            pass

    def close(self, timeout: float = 120.0) -> None:
        """Wait until everything is written. Raises RuntimeError if the store failed, or took
        nothing for `timeout` seconds."""
        self._queue.put(None)
        calls, deadline = self.calls, time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(min(1.0, timeout))
            if self.calls > calls:
                calls, deadline = self.calls, time.monotonic() + timeout
        if self._thread.is_alive():
            raise RuntimeError(
                f"MLflow at {self.uri} did not take the records within {timeout:.0f} s"
            )
        if self.error is not None:
            why = (str(self.error) or repr(self.error)).splitlines()[0]  # a page of SQL may follow
            raise RuntimeError(f"MLflow at {self.uri} failed: {why}") from self.error

    def links(self, server: str, keys: list[str]) -> dict[str, str]:
        """Where an MLflow server at `server` shows this study: its runs, charts, and comparison."""
        ids = [self._runs[key] for key in keys if key in self._runs]
        return links(server, str(self.experiment_id), ids)

    def _work(self, experiment: str, artifacts: Path) -> None:
        try:
            first = self._queue.get()  # before that, the import would slow the study's own start
            if first is None:
                return
            writer = Writer(self.uri, experiment, artifacts)
            self._patient = writer.client
            self.experiment_id = writer.experiment
            self._runs = writer.runs
            first(writer)
            self._drain(writer)
        except Exception as error:  # kept for close(): tracking must never end a training
            self.error = error

    def _drain(self, writer: Writer) -> None:
        while True:
            try:
                call = self._queue.get(timeout=FLUSH_SECONDS)
            except queue.Empty:
                writer.flush()
                continue
            if call is None:
                writer.flush()
                return
            call(writer)


def links(server: str, experiment: str, runs: list[str]) -> dict[str, str]:
    """Deep links into MLflow's pages. `workflowType` matters: without it new visitors land on an
    empty page about traces.
    """
    base = f"{server.rstrip('/')}/#"
    found = {
        "runs": f"{base}/experiments/{experiment}/runs?workflowType=machine_learning",
        "charts": f"{base}/experiments/{experiment}/runs"
        "?workflowType=machine_learning&compareRunsMode=CHART",
    }
    if len(runs) > 1:
        chosen, experiments = quote(json.dumps(runs)), quote(json.dumps([experiment]))
        found["compare"] = (
            f"{base}/compare-runs?runs={chosen}&experiments={experiments}"
            "&workflowType=machine_learning"
        )
    return found


# MLflow groups charts by what stands before the slash, groups in alphabetical order: losses come
# first, and bounds get a group of their own, or each chart of a rollout metric would be followed by
# two of its bounds.
SHOWN = {
    "val/loss": "loss/held out",
    "val/bits_per_byte": "loss/held out bits per byte",
    "train/loss": "loss/training",
    "capture/skipped": "skipped capture",
    "capture/later": "capture put off",
    "capture/late": "capture made later",
}


def shown(name: str) -> str:
    """A metric's name in MLflow."""
    if name.endswith((".low", ".high")):
        return name.replace("rollout/", "rollout bounds/")
    return SHOWN.get(name, name)


def _create(path: Path) -> None:
    """Make an SQLite store that is there whole or not at all, whoever is killed or does the same.
    MLflow goes through some sixty migrations, and a store that was left between two of them can
    never be opened again (github.com/mlflow/mlflow/issues/23721)."""
    from mlflow.tracking import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{path.name}.*"):
        if time.time() - old.stat().st_mtime > ABANDONED:
            old.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    MlflowClient(tracking_uri=f"sqlite:///{part}").search_experiments(max_results=1)
    try:
        os.link(part, path)  # unlike a rename it leaves the store of a study that was faster
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            part.rename(path)
    part.unlink(missing_ok=True)


class Writer:
    """The calls to MLflow, on the tracking thread alone.

    `ended`: how the runs that the store has whole ended, by identity, as the summary of `end` said
    it under `ENDED` when this driver began.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        for name in ("alembic", "mlflow"):  # a page of schema migrations on first use
            logging.getLogger(name).setLevel(logging.ERROR)
        # A call to a server that is away fails within seconds; `Patient` decides what then.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow.tracking import MlflowClient

        remote = uri.startswith("http")
        if uri.startswith("sqlite:///") and not any(mark in uri for mark in ("?", ":memory:")):
            _create(Path(uri.removeprefix("sqlite:///")).absolute())
        self.client = Patient(MlflowClient(tracking_uri=uri), PATIENCE if remote else 0.0)
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            location = None if remote else (artifacts / experiment).absolute().as_uri()
            self.experiment = str(
                self.client.create_experiment(experiment, artifact_location=location)
            )
        else:
            self.experiment = str(found.experiment_id)
        self.runs: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self._look()
        self.pending: dict[str, list[dict[str, float]]] = {}
        self.written: dict[str, Steps] = {}  # of runs under way
        self.summed: dict[str, dict[str, float]] = {}  # what `end` said of each run
        self.flushed = time.monotonic()

    def _look(self) -> None:
        """The experiment's runs by identity: a run that goes on is reopened, not made twice."""
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], page_token=token)
            for run in page:
                key = run.data.tags.get("isoflop.identity", "")
                self.runs[key] = run.info.run_id
                if run.info.status in STATUS.values() and ENDED in run.data.tags:
                    self.ended[key] = run.data.tags[ENDED]
            token = page.token
            if not token:
                return

    def start(
        self, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag

        if key in self.runs:
            self.client.update_run(self.runs[key], status="RUNNING")
            if key not in self.written:
                self.written[key] = self._steps(key)
            return
        everything = {"isoflop.identity": key, **tags}
        run = self.client.create_run(self.experiment, run_name=name)
        self.runs[key] = run.info.run_id
        self.client.log_batch(
            run.info.run_id,
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in everything.items()],
        )

    def _steps(self, key: str) -> Steps:
        """What another driver wrote of a run: a call for each metric, once."""
        known = self.client.get_run(self.runs[key]).data.metrics
        self.summed.setdefault(key, dict(known))
        return {
            name: {point.step for point in self.client.get_metric_history(self.runs[key], name)}
            for name in known
        }

    def log(self, key: str, records: list[dict[str, float]]) -> None:
        waiting = self.pending.setdefault(key, [])
        waiting.extend(records)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        while self.pending:
            key, records = next(iter(self.pending.items()))
            metrics = [metric for record in records for metric in self._fresh(key, record)]
            for start in range(0, len(metrics), BATCH):
                self.client.log_batch(self.runs[key], metrics=metrics[start : start + BATCH])
            del self.pending[key]
        self.flushed = time.monotonic()

    def _fresh(self, key: str, record: Mapping[str, float]) -> Iterator[Metric]:
        """What of a record is not written yet: a run that goes on from a checkpoint takes steps
        again."""
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(record["step"])
        written = self.written.setdefault(key, {})
        for name in sorted(record.keys(), key=lambda name: name != FIRST):
            if name == "step":
                continue
            steps = written.setdefault(shown(name), set())
            if step not in steps:
                steps.add(step)
                yield Metric(shown(name), float(record[name]), now, step)

    def end(self, key: str, status: str, summary: Mapping[str, Any], artifacts: list[Path]) -> None:
        from mlflow.entities import Metric, RunTag

        self.flush()
        written = self.written.pop(key, {})
        curves = {name for name, steps in written.items() if len(steps) > 1}  # seconds is one
        run, now = self.runs[key], int(time.time() * 1000)
        said = self.summed.setdefault(key, {})
        numbers = {
            name: float(value)
            for name, value in summary.items()
            if isinstance(value, int | float) and name not in curves and said.get(name) != value
        }
        said.update(numbers)
        texts = {k: v for k, v in summary.items() if isinstance(v, str)}
        self.client.log_batch(
            run,
            metrics=[Metric(name, value, now, 0) for name, value in numbers.items()],
            tags=[RunTag(name, value[:5000]) for name, value in texts.items()],
        )
        for path in artifacts:
            if path.is_dir():
                self.client.log_artifacts(run, str(path), path.name)
            elif path.exists():
                self.client.log_artifact(run, str(path))
        self.client.set_terminated(run, STATUS[status])


def serve(uri: str, port: int) -> int:
    """Replace this process by an MLflow server for the store at `uri`, on localhost only.

    Two processes instead of the default ten: no job runners (they serve features unused here), one
    worker.
    """
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    arguments = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", *arguments]
    print(f"MLflow for {uri} at http://127.0.0.1:{port}   (Ctrl-C ends it)", flush=True)
    os.execv(sys.executable, command)
