"""What does orchestration add to a grid of short runs, and how soon does a killed run go on?

The same grid is carried out by the ways in `contestants`, one after the other, each as a program
of its own: wall time from its start to the last result, and to its exit (isoflop then has its
report and its tracking too). Machines have moods: the plain loop goes before isoflop and after it,
and ratios are to the mean of the two of the same round. The others train `PEER_POINTS` of the runs,
and what all would take follows from when the first began and what each further one cost.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoflop.benchmarks.contestants import base, campaign
from isoflop.campaign import Machine
from isoflop.orchestration.cluster import cluster
from isoflop.orchestration.job import Job
from isoflop.orchestration.points import run_points
from isoflop.orchestration.slots import slots
from isoflop.plan import throughput
from isoflop.run import Checkpoints, Run
from isoflop.training.loop import Record
from models.interface import Config

ATTACHED, AGAIN = "isoflop, attached", "plain, again"
GOALS = {"isoflop": 1.35, ATTACHED: 1.10}  # of the plain loop
PEERS, PEER_POINTS = ("joblib", "tune"), 8
STANDING_SECONDS = 10.0  # until a cluster is done with what a study left it to do
# What isoflop sets for clusters of its own, as it is where `ray start` makes one.
RAYS_OWN = {"RAY_idle_worker_killing_time_threshold_ms": "1000"}
WAIT_SECONDS = 300.0  # for a killed run to go on


@dataclass(frozen=True, kw_only=True)
class Took:
    """Wall seconds of one way, and when each run began and ended in them."""

    trained: float  # to the last result
    ended: float  # to the program's exit
    spans: list[tuple[float, float]]
    processes: int

    @property
    def training(self) -> float:
        """The runs themselves, spread evenly over the processes."""
        return sum(end - start for start, end in self.spans) / self.processes

    @property
    def further(self) -> float:
        """What each run adds beyond itself, once the first has begun."""
        first = min(start for start, _ in self.spans)
        return (self.trained - first - self.training) * self.processes / len(self.spans)

    def of(self, points: int) -> float:
        """Seconds to the last result, had so many runs like these been trained."""
        more = points - len(self.spans)
        own = self.training * self.processes / len(self.spans)
        return self.trained + more * (own + self.further) / self.processes


def show(points: int, seconds: float, rounds: int) -> int:
    """Measure everything and print it; 1 if a way failed."""
    if points < 2 or seconds <= 0 or rounds < 1:
        raise ValueError(
            f"--points {points} --seconds {seconds} --rounds {rounds}: at least 2 points, 1 round, "
            "and a time above 0"
        )
    at_once = len(os.sched_getaffinity(0))
    tokens = _tokens(seconds)
    print(f"{points} runs of about {seconds:g} s, {at_once} at once ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        campaign(1, tokens, Machine(storage=storage))  # the text is prepared before any clock runs
        took = [_round(storage / str(k), points, tokens, at_once) for k in range(rounds)]
        _print(took, points)
        _tracking(storage / "0" / "plain", storage, seconds)
        # In a process of its own, as a study: Ray reads what to preload once in a process.
        arguments = (storage, 8 * tokens, at_once)
        own = multiprocessing.get_context("spawn").Process(target=_recovery, args=arguments)
        own.start()
        own.join()
    return own.exitcode or 0


def _tokens(seconds: float) -> int:
    """So many that a run of the grid takes about `seconds` on one core of this machine."""
    shared = base()
    model: Config = shared["model"]
    batch: int = shared["batch_tokens"]
    rate = throughput([Run(**shared, tokens=batch)])[model]
    return max(batch, int(rate / model.flops_per_token().training * seconds))


@contextmanager
def _standing(at_once: int) -> Iterator[str]:
    """The address of a cluster like those that `ray start` makes."""
    import ray

    os.environ.update(RAYS_OWN)
    try:
        with cluster(None, cpus=at_once, preload=False):
            yield str(ray.get_runtime_context().gcs_address)
    finally:
        for name in RAYS_OWN:
            del os.environ[name]


def _round(folder: Path, points: int, tokens: int, at_once: int) -> dict[str, Took]:
    took = {}
    for way in ("plain", "isoflop"):
        took[way] = _take(folder / way, way, points, tokens, at_once)
    with _standing(at_once) as address:
        _take(folder / "before", "isoflop", at_once, tokens // 4, at_once, address)
        time.sleep(STANDING_SECONDS)
        took[ATTACHED] = _take(folder / "attached", "isoflop", points, tokens, at_once, address)
    took[AGAIN] = _take(folder / "again", "plain", points, tokens, at_once)
    for way in PEERS:
        took[way] = _take(folder / way, way, min(points, PEER_POINTS), tokens, at_once)
    return took


def _take(storage: Path, way: str, points: int, tokens: int, at_once: int, *address: str) -> Took:
    storage.mkdir(parents=True)
    (storage / "data").symlink_to(storage.parents[1] / "data")
    words = [way, str(storage), str(points), str(tokens), str(at_once), *address]
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "isoflop.benchmarks.contestants", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    ended = time.time() - began
    results = [json.loads(path.read_text()) for path in storage.glob("bench/runs/*/result.json")]
    if done.returncode or len(results) != points:
        said = f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        raise RuntimeError(f"{way} trained {len(results)} of {points} runs:\n{said}")
    spans = [(values["started"] - began, values["ended"] - began) for values in results]
    return Took(
        trained=max(end for _, end in spans), ended=ended, spans=spans,
        processes=at_once,
    )  # fmt: skip


def _print(rounds: list[dict[str, Took]], points: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("way")
    for name in ("first run", "all runs", "exit", "of plain", "goal", "a further run", "runs' own"):
        table.add_column(name, justify="right")
    for way in rounds[0]:
        mine = [took[way] for took in rounds]
        ratio = statistics.median(took[way].of(points) / _plain(took) for took in rounds)
        first = statistics.median(min(start for start, _ in took.spans) for took in mine)
        trained = statistics.median(took.of(points) for took in mine)
        ended, further, own = (
            statistics.median(getattr(took, name) for took in mine)
            for name in ("ended", "further", "training")
        )
        fewer = len(mine[0].spans) < points
        table.add_row(
            way, f"{first:.1f} s", f"{'~' if fewer else ''}{trained:.1f} s",
            "" if fewer else f"{ended:.1f} s", f"{ratio:.2f}",
            f"{GOALS[way]:.2f}" if way in GOALS else "", f"{further:.2f} s",
            "" if fewer else f"{own:.1f} s",
        )  # fmt: skip
    Console(width=max(100, Console().width)).print(table)
    moods = [took[AGAIN].trained / took["plain"].trained for took in rounds]
    print(f"the plain loop again: {', '.join(f'{mood:.2f}' for mood in moods)} times the first")


def _plain(took: dict[str, Took]) -> float:
    return (took["plain"].trained + took[AGAIN].trained) / 2


def _tracking(folder: Path, storage: Path, seconds: float) -> None:
    """MLflow's calls for the records of the grid's runs: how many a second, and their share."""
    from isoflop.tracking import Tracker

    histories = [json.loads(path.read_text()) for path in folder.glob("bench/runs/*/history.json")]
    tracker = Tracker(f"sqlite:///{storage / 'calls.db'}", "bench", storage / "artifacts")
    tracker.start("warm", "warm", {}, {})  # mlflow's import and the schema are paid once a study
    tracker.wait()
    before, cpu, began = tracker.calls, time.process_time(), time.perf_counter()
    for key, history in enumerate(histories):
        tracker.start(str(key), str(key), {"seed": key}, {})
        for record in history:
            tracker.log(str(key), [record])
        tracker.end(str(key), "finished", {"loss": history[-1]["val/loss"]}, [])
    tracker.wait()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    calls, runs = tracker.calls - before, len(histories)
    tracker.close()
    print(
        f"MLflow: {calls} calls in {wall:.1f} s, {calls / wall:.0f} a second; {cpu / runs:.3f} "
        f"CPU s a run, {cpu / runs / seconds:.1%} of {seconds:g} s (goal: under 2 %)"
    )


@dataclass
class _Killer:
    """A watcher that kills the trial's process once it has saved, and sees when it goes on."""

    job: Job
    killed: float | None = None
    back: float | None = None

    def started(self, job: Job) -> None: ...

    def progressed(self, job: Job, records: list[Record]) -> None:
        if self.killed is not None and self.back is None:
            self.back = time.monotonic()

    def ended(self, job: Job, result: dict[str, Any]) -> None: ...

    def kill(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            saved = list(self.job.folder.glob("checkpoints/step-*/state.json"))
            pids = trainers() if saved else []
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            if pids:
                self.killed = time.monotonic()
                return
            time.sleep(0.05)


def _recovery(storage: Path, tokens: int, at_once: int) -> None:
    """From SIGKILL of the process that trains to the first record after it."""
    made = campaign(1, tokens, Machine(storage=storage / "recovery"))
    (job,) = made.chosen
    job = replace(job, run=replace(job.run, checkpoints=Checkpoints(seconds=0.2)))
    killer = _Killer(job)
    thread = threading.Thread(target=killer.kill, daemon=True)
    thread.start()
    with cluster(None, cpus=at_once) as resources:
        run_points([job], slots(resources, 1, 1), storage / "ray", killer)
    thread.join()
    if killer.killed is None or killer.back is None:
        print("recovery: the run ended before it could be killed; give it more --seconds")
        return
    print(f"recovery: {killer.back - killer.killed:.1f} s from kill -9 to the next record")


def trainers() -> list[int]:
    """This process's descendants that carry out a trial."""
    return titled("ResourceTrainable.train")  # as Tune names it, whatever it is


def titled(title: str) -> list[int]:
    """This process's descendants that Ray has given such a title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if title.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return [pid for pid in found if os.getpid() in _ancestors(pid)]


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            break
        pid = int(next(line for line in status.splitlines() if line.startswith("PPid")).split()[1])
        found.append(pid)
    return found
