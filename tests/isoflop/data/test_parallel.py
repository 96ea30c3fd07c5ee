"""Is everything done once, whoever does it, and does nobody wait for the dead?"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoflop.data import parallel


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_is_done_once(processes: int) -> None:
    found = list(parallel.on(processes)(math.factorial, range(12)))
    assert sorted(found) == sorted(math.factorial(k) for k in range(12))


def test_jobs_are_taken_as_they_are_needed() -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = parallel.on(2)(math.factorial, jobs())
    next(results)
    assert taken <= 5
    results.close()  # type: ignore[attr-defined]
    assert taken <= 5


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_arrives_as_it_was(processes: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        list(parallel.on(processes)(math.factorial, [3, -1, 4]))


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(ChildProcessError, match="a worker process died"):
        list(parallel.on(2)(os._exit, [7, 7]))


def test_less_than_one_process_is_refused() -> None:
    with pytest.raises(ValueError, match="processes is 0"):
        parallel.on(0)


def test_small_texts_are_not_worth_a_process() -> None:
    assert parallel.worthwhile(0) == parallel.worthwhile(parallel.BYTES_PER_PROCESS) == 1
    cores = len(os.sched_getaffinity(0))
    assert parallel.worthwhile(10**15) == cores


def test_workers_end_with_a_killed_parent() -> None:
    code = (
        "import multiprocessing, os, signal, time\n"
        "from isoflop.data import parallel\n"
        "for _ in parallel.on(2)(time.sleep, [0, 0, 0, 0, 600, 600]):\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    pids = [int(pid) for pid in shown.stdout.split()]
    assert pids
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} still wait for work"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    """Running, and not merely waiting to be buried by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
