"""Where do the points run? On a Ray cluster: this machine's own, started for the study, or a
standing one.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import isoflop
from isoflop.orchestration.ready import PRELOADING, Ready, environment, raylets, ready


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a cluster has to give, as Ray counts it."""

    cpus: int
    gpus: int
    ready: Ready | None = field(default=None, compare=False)  # of a standing one on this machine


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of a cluster."""

    name: str  # as its driver says
    memory: int  # bytes


ASK_SECONDS = 120.0  # for a process on a GPU's node to start and import torch
# What trials need. Ray starts a process for each core at once, before it knows what for: these
# import it while the driver imports its own.
PRELOADED = "isoflop.orchestration.trials,ray.tune"
GONE_SECONDS = 60.0  # for Ray to see that a node is gone

# Ray reads these when it starts; facts behind each in the comment.
ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` each worker would start through uv
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # default 2 s: as long as a small run
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",  # default 60 s: too short for a loaded laptop
    # Default 15: whatever else a machine does would come before the training, and its own driver.
    "RAY_worker_niceness": "0",
    # Default 1 s: the processes that stand ready would be ended where a trial takes the cores first
    # and asks for its process a moment later; so would the one that replaces a killed process.
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the announced default; else it warns
    # Runs train in a thread of their process. With the default, eight for each core, glibc gives
    # each new thread memory of its own, and a run of some seconds spent 5 % of them on its pages.
    "MALLOC_ARENA_MAX": "1",
}
OWN = ("RAY_TRAIN_", "MALLOC_")  # those that the processes of a standing cluster need, by name


@contextmanager
def cluster(
    address: str | None, cpus: int | None = None, preload: bool = True
) -> Iterator[Resources]:
    """Join the cluster at `address` ("auto": the one on this machine), or start a local one with
    `cpus` processors, whose processes load what trials need at once, and end it afterwards. Token
    authentication is Ray's default and stays on.

    Raises ValueError if nothing answers at `address`.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is not None:
        _check(address)
    import ray

    if ray.is_initialized():  # by whoever called: theirs to end
        yield _resources()
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    found = None
    if address is None:
        _start(cpus, preload, options)
    else:
        try:
            found = _join(address, options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"no Ray cluster answers at {address!r}: {error}") from error
    try:
        yield replace(_resources(), ready=found)
    finally:
        _leave()


def _check(address: str) -> None:
    """Raise ValueError at once where nothing listens (Ray would try for minutes), and use this
    user's token: given an address, Ray sends none unless the mode says so."""
    if (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return  # "auto", or a form that Ray itself understands
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {error}") from None


def _resources() -> Resources:
    import ray

    found = ray.cluster_resources()
    return Resources(cpus=int(found.get("CPU", 0)), gpus=int(found.get("GPU", 0)))


def gpu() -> Gpu | None:
    """One of the cluster that is joined; they are taken to be alike. None: nobody knows."""
    import ray

    def ask() -> Gpu | None:
        import torch

        if not torch.cuda.is_available():
            return None
        found = torch.cuda.get_device_properties(0)
        return Gpu(name=found.name, memory=int(found.total_memory))

    asked = ray.remote(num_cpus=0, num_gpus=0.01)(ask).remote()
    answer: Gpu | None = ray.get(asked, timeout=ASK_SECONDS)
    return answer


def left(gpu: bool) -> int:
    """Cores (or GPUs) of the nodes that still answer, once Ray too knows of those that do not.

    Ray takes a node for alive until it has missed five checks, some 15 s, and would place workers
    on it meanwhile; whether its raylet can be reached is known at once.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    answering = {node["NodeID"]: node for node in nodes if _answers(node)}
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        if {node["NodeID"] for node in ray.nodes() if node["Alive"]} <= set(answering):
            break
        time.sleep(0.5)
    kind = "GPU" if gpu else "CPU"
    return int(sum(node["Resources"].get(kind, 0) for node in answering.values()))


def _answers(node: dict[str, Any]) -> bool:
    try:
        place = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(place, timeout=5).close()
    except OSError:
        return False
    return True


def _start(cpus: int | None, preload: bool, options: dict[str, Any]) -> None:
    """A local cluster; once more if the machine was too loaded for Ray's fixed 30 s of patience."""
    import ray

    if preload and (cpus or os.cpu_count() or 1) <= PRELOADING:
        os.environ.setdefault("RAY_preload_python_modules", PRELOADED)
    for attempt in (1, 2):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
            return
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise


def _join(address: str, options: dict[str, Any]) -> Ready | None:
    """Where all of it is on this machine and has this code, its processes can stand ready; anywhere
    else the code is shipped with the study, which only its own processes have then."""
    import ray

    variables = {name: value for name, value in ENVIRONMENT.items() if name.startswith(OWN)}
    if raylets():
        ray.init(address=address, runtime_env=environment(variables), **options)
        written = ray.get_runtime_context().get_runtime_env_string()
        if found := ready(ray.nodes(), written):
            found.fill()
            return found
        _leave()
    ray.init(address=address, runtime_env=_shipped(variables), **options)
    return None


def _leave() -> None:
    """End Ray in this process. What Tune leaves goes before: another thread, whose turn it is to
    collect garbage, would ask Ray to let go of it, and Ray ends the whole process when it is asked
    after its end (pull request 19115 of ray-project/ray)."""
    import ray

    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def _shipped(variables: dict[str, str]) -> dict[str, Any]:
    """A cluster elsewhere gets this checkout's code, so that driver and workers agree. Modules,
    never the checkout as a whole: its folder platform/ is a source root and not importable.
    """
    import models

    packages = [isoflop.__file__, models.__file__]
    folders = [str(Path(str(file)).parent) for file in packages]
    return {"py_modules": folders, "env_vars": variables}
