"""Which processes of a standing cluster stand ready for the next study? Of a cluster on this
machine whose processes import the very code that the driver runs: as many as its cores, up to
`PRELOADING`, with torch and Ray Tune loaded (2 s of CPU time each), and nothing of isoflop's own,
so that no study meets code of an earlier one.

A process that served a study ends with it. So each study has others started: when it joins, those
that are missing, which load while the driver does; and when it leaves, for the study after it.
"""

from __future__ import annotations

import gc
import logging
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import isoflop

if TYPE_CHECKING:
    from collections.abc import Iterator

PRELOADING = 8  # processes at most: each has some 300 MB, whether or not a run needs it
HOOK = "isoflop.orchestration.ready.preload"
ASK_SECONDS = 20.0  # for an interpreter to say which code it would import
RPC_SECONDS = 10.0
# Ray ends processes that nobody asks for as soon as all cores are taken, and a study takes them a
# moment before it asks for its processes.
KEPT_SECONDS = 24 * 3600
WHERE = """
from importlib.util import find_spec
for name in ("isoflop", "models"):
    print(find_spec(name).origin)
"""

log = logging.getLogger(__name__)


def preload() -> None:
    """What each process does first; Ray calls it by name. All of it stays, so that Python need not
    look for garbage in it, now or while a run trains."""
    gc.disable()
    import ray.tune  # noqa: F401
    import torch  # noqa: F401

    gc.freeze()
    gc.enable()


def environment(variables: dict[str, str]) -> dict[str, Any]:
    """The runtime environment of a study's processes, the same for all studies: Ray gives a process
    to those only who ask for the environment that it was started with."""
    return {"env_vars": variables, "worker_process_setup_hook": HOOK}


def raylets() -> list[psutil.Process]:
    """Ray's own process of each node that runs on this machine."""
    return [process for process in psutil.process_iter() if _name(process) == "raylet"]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node on this machine."""

    address: str  # of its raylet
    raylet: psutil.Process
    cores: int

    @property
    def idle(self) -> int:
        """Its processes that stand ready already."""
        return sum(1 for child in _children(self.raylet) if _stands_ready(child))


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The nodes of a cluster that is joined, all of them on this machine."""

    nodes: tuple[Node, ...]
    environment: str  # as Ray wrote it down

    def fill(self) -> None:
        """Have each node start what is missing; returns at once. Ray has a call for it, but none in
        Python. What fails is no loss but of time: the next study starts its processes itself."""
        try:
            for node in self.nodes:
                missing = min(node.cores, PRELOADING) - node.idle
                if missing > 0:
                    _prestart(node.address, missing, self.environment)
        except Exception as error:
            log.debug("no processes stand ready: %s", error)


def ready(nodes: Sequence[dict[str, Any]], environment: str) -> Ready | None:
    """`nodes` as Ray tells them. None: some are elsewhere, or would import other code."""
    import ray

    address = ray.util.get_node_ip_address()
    here = {_option(raylet, "--raylet_socket_name"): raylet for raylet in raylets()}
    found = []
    for node in nodes:
        if not node["Alive"]:
            continue
        raylet = here.get(node["RayletSocketName"])
        mine = raylet is not None and node["NodeManagerAddress"] == address
        if raylet is None or not mine or not _same_code(raylet):
            return None
        cores = int(node["Resources"].get("CPU", 0))
        port = node["NodeManagerPort"]
        found.append(Node(address=f"{address}:{port}", raylet=raylet, cores=cores))
    return Ready(nodes=tuple(found), environment=environment)


def _prestart(address: str, number: int, environment: str) -> None:
    from ray._private.grpc_utils import init_grpc_channel  # it knows of tokens and of TLS
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.Language.Value("PYTHON"), num_workers=number,
        keep_alive_duration_secs=KEPT_SECONDS,
    )  # fmt: skip
    request.runtime_env_info.serialized_runtime_env = environment
    with init_grpc_channel(address) as channel:
        stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        stub.PrestartWorkers(request, timeout=RPC_SECONDS)


def _same_code(raylet: psutil.Process) -> bool:
    """Whether a process that it starts would import this process's packages."""
    import models

    python = _option(raylet, "--python_worker_command").split(" ")[0]
    try:
        said = subprocess.run(
            [python, "-c", WHERE], env=raylet.environ(), cwd=raylet.cwd(), timeout=ASK_SECONDS,
            capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
    except (psutil.Error, OSError, subprocess.SubprocessError):
        return False
    mine = [Path(str(package.__file__)) for package in (isoflop, models)]
    return len(said) == len(mine) and all(
        Path(theirs).resolve() == own.resolve() for theirs, own in zip(said, mine, strict=True)
    )


def _option(process: psutil.Process, name: str) -> str:
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")


def _children(process: psutil.Process) -> Iterator[psutil.Process]:
    try:
        yield from process.children()
    except psutil.Error:  # it has ended
        return


def _stands_ready(process: psutil.Process) -> bool:
    try:
        return "IDLE" in " ".join(process.cmdline()[:1]) and HOOK in process.environ().values()
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""
