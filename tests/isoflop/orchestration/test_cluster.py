"""Is a cluster that is not there said at once, and is a standing one used?"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time

import pytest

from isoflop.orchestration.cluster import Resources, cluster

TAKING = """
import json, os, time
from isoflop.orchestration.cluster import cluster
from isoflop.orchestration.ready import raylets

with cluster(None, cpus=2, preload=False):
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    @ray.remote(num_cpus=1)
    class Trial:
        def pid(self):
            return os.getpid()

    def idle():
        mine = (raylet for raylet in raylets() if raylet.ppid() == os.getpid())
        children = (child for raylet in mine for child in raylet.children())
        return [child.pid for child in children if "ray::IDLE" in " ".join(child.cmdline())]

    deadline = time.monotonic() + 60
    while len(idle()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    stood = idle()
    time.sleep(1.5)  # while the driver imports what it needs
    place = ray.util.placement_group([{"CPU": 1}] * 2)
    place.wait(60)
    time.sleep(1)  # between taking the cores and asking for processes, as on a slow machine
    here = Trial.options(scheduling_strategy=PlacementGroupSchedulingStrategy(place))
    trials = [here.remote() for _ in range(2)]
    print(json.dumps([stood, ray.get([trial.pid.remote() for trial in trials])]))
"""


def test_nothing_at_the_address_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with (
        pytest.raises(ValueError, match=rf"no Ray cluster answers at '127.0.0.1:{port}'"),
        cluster(f"127.0.0.1:{port}"),
    ):
        raise AssertionError("there is no cluster to work on")
    assert time.monotonic() - began < 10


def test_a_cluster_that_this_process_has_is_used_and_left_standing(ray_cluster: Resources) -> None:
    import ray

    with cluster(None) as found:
        assert found == ray_cluster
    assert ray.is_initialized()


def test_trials_are_as_important_as_their_driver(ray_cluster: Resources) -> None:
    """Ray's own default gives way to everything else on the machine."""
    import ray

    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


def test_a_run_takes_up_the_memory_of_the_one_before(ray_cluster: Resources) -> None:
    """Though each trains in a thread of its own."""
    import ray

    def faults() -> list[int]:
        """Pages that the kernel had to give, to each of some threads one after another."""
        import resource
        import threading

        import torch

        from isoflop.training.process import settle

        given = []

        def train() -> None:
            settle(1)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(3):
                torch.ones(40, 2**18)  # 40 MB, as parts of which a step is made
                [torch.ones(2**18) for _ in range(40)]
            given.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

        for _ in range(6):
            thread = threading.Thread(target=train)
            thread.start()
            thread.join()
        return given

    first, *others = ray.get(ray.remote(faults).remote())
    assert first > 5_000
    assert statistics.median(others) < first / 10


def test_processes_that_ray_started_first_are_there_when_the_cores_are_taken() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKING], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    stood, used = json.loads(done.stdout.splitlines()[-1])
    assert len(used) == 2 and set(used) <= set(stood)
