"""Do processes of a standing cluster stand ready, and for those alone who have its code?"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

import isoflop
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.ready import Node, Ready, raylets, ready

WAIT_SECONDS = 60.0
DRIVER = """
import json, os, sys, time
from isoflop.orchestration.cluster import cluster

with cluster(sys.argv[1]) as resources:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    @ray.remote(num_cpus=1)
    class Trial:
        def look(self):
            return os.getpid(), "torch" in sys.modules and "ray.tune" in sys.modules

    place = ray.util.placement_group([{"CPU": 1}] * 2)
    place.wait(60)
    time.sleep(1)  # between taking the cores and asking for processes, as on a slow machine
    here = Trial.options(scheduling_strategy=PlacementGroupSchedulingStrategy(place))
    trials = [here.remote() for _ in range(2)]
    looked = ray.get([trial.look.remote() for trial in trials])
time.sleep(2)  # a report is written meanwhile, and Ray ends what the study had
resources.ready.fill()
print(json.dumps(looked))
"""
STANDING = """
import sys
from isoflop.orchestration.cluster import cluster

with cluster(None, cpus=2, preload=False):
    import ray

    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


def study(address: str) -> list[tuple[int, bool]]:
    """What the processes of a study in a process of its own were when they came to it."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, address], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [tuple(look) for look in json.loads(done.stdout.splitlines()[-1])]


def standing(node: Node, but: set[int]) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        gone = not any(psutil.pid_exists(pid) for pid in but)
        if gone and node.idle == node.cores:
            return True
        time.sleep(0.2)
    return False


@pytest.fixture
def found(ray_cluster: Resources) -> Ready:
    import ray

    cluster = ready(ray.nodes(), "{}")
    assert cluster is not None
    return cluster


@pytest.fixture
def started() -> Iterator[tuple[str, Node]]:
    """A cluster that ends idle processes as soon as `ray start` would have it, and its node."""
    with subprocess.Popen(
        [sys.executable, "-c", STANDING],
        env={**os.environ, "RAY_idle_worker_killing_time_threshold_ms": "1000"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as head:  # fmt: skip
        assert head.stdout is not None and head.stdin is not None
        address = head.stdout.readline().strip()
        (raylet,) = (found for found in raylets() if found.ppid() == head.pid)
        yield address, Node(address="", raylet=raylet, cores=2)
        head.stdin.close()


def test_a_study_leaves_processes_for_the_next(started: tuple[str, Node]) -> None:
    address, node = started
    first = study(address)
    assert standing(node, {pid for pid, _ in first})
    waiting = {child.pid for child in node.raylet.children()}
    second = study(address)
    assert {pid for pid, _ in second} <= waiting  # they had been started for it
    assert all(loaded for _, loaded in second)


def test_they_have_nothing_that_may_be_edited_meanwhile() -> None:
    code = (
        "from isoflop.orchestration.ready import preload; preload(); import sys; "
        "import json; print(json.dumps(list(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(said.stdout)
    assert {"torch", "ray.tune"} <= set(loaded)
    own = [name for name in loaded if name.split(".")[0] in ("isoflop", "models", "cluster")]
    assert own == ["isoflop", "isoflop.orchestration", "isoflop.orchestration.ready"]


def test_who_has_other_code_ships_it(found: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(isoflop, "__file__", "/elsewhere/isoflop/__init__.py")
    assert ready(ray.nodes(), "{}") is None


def test_a_node_elsewhere_gets_the_code(found: Ready) -> None:
    import ray

    (here,) = ray.nodes()
    elsewhere = {**here, "RayletSocketName": "/tmp/ray/elsewhere/sockets/raylet"}
    assert ready([here, elsewhere], "{}") is None
    assert ready([here, {**here, "NodeManagerAddress": "192.0.2.77"}], "{}") is None
    gone = {**elsewhere, "Alive": False}
    assert ready([here, gone], "{}") is not None


def test_a_cluster_that_has_ended_gets_none(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost but time, so nothing is raised."""
    caplog.set_level("DEBUG", logger="isoflop.orchestration.ready")
    node = Node(address="127.0.0.1:1", raylet=psutil.Process(), cores=1)
    Ready(nodes=(node,), environment="{}").fill()
    assert "no processes stand ready" in caplog.text


def test_only_rays_own_processes_are_raylets(ray_cluster: Resources) -> None:
    assert {process.name() for process in raylets()} == {"raylet"}
