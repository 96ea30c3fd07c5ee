"""Can all nodes of the cluster reach each other, and how fast? One all-reduce over all of them.

    python -m cluster.connectivity --nodes 3 --megabytes 64

It waits for the nodes that the cluster's file promises: those that happen to be there would pass
while the others are still rented. Ray itself works over connections that a training run does not
use, so a cluster whose nodes all count as alive may still be of no use: here every node takes part
in what DDP does at each step.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An all-reduce of some bytes over all nodes."""

    nodes: int
    backend: str
    megabytes: int
    seconds: float  # median of one

    @property
    def gigabytes_per_second(self) -> float:
        """Bus bandwidth: what each link carries in a ring, 2 (n-1)/n of the bytes (as NCCL's own
        tests count it), so that clusters of different size compare."""
        return 2 * (self.nodes - 1) / self.nodes * self.megabytes / 1000 / self.seconds


def listening() -> tuple[str, int]:
    """This node's address as Ray has it, and a free port of those that are open between nodes."""
    import ray

    address = ray.util.get_node_ip_address()
    for port in range(10_990, 10_900, -1):
        with socket.socket() as tried:
            try:
                tried.bind((address, port))
            except OSError:
                continue
            return address, port
    raise ValueError(f"no free port at {address}")


def take_part(
    rank: int, world: int, meeting: tuple[str, int], megabytes: int, *, gpu: bool, patience: float
) -> float:
    """One node's part. Gives the median seconds of an all-reduce; raises RuntimeError when the
    others do not come within `patience` seconds, or when the sum is wrong."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=f"tcp://{meeting[0]}:{meeting[1]}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=patience),
    )
    try:
        tensor = torch.ones(megabytes * 250_000, device="cuda" if gpu else "cpu")
        times = []
        for _ in range(6):
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(tensor)
            if gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        if not bool((tensor == float(world) ** 6).all()):
            raise RuntimeError(f"rank {rank}: the sum over {world} nodes is wrong")
        return sorted(times[1:])[2]  # the first one makes the connections
    finally:
        dist.destroy_process_group()


def assembled(
    wanted: int,
    alive: Callable[[], int],
    say: Callable[[str], None],
    *,
    patience: float = 1800,
    pause: float = 5,
) -> None:
    """Wait until so many nodes are there. Raises ValueError when they do not come in time."""
    end, before = time.monotonic() + patience, -1
    while (now := alive()) < wanted:
        if time.monotonic() > end:
            raise ValueError(
                f"{now} of {wanted} nodes after {patience / 60:.0f} minutes; `ray status` on the "
                "head says why (isoflop cluster attach), and submit --no-check does not wait"
            )
        if now != before:
            say(f"{now} of {wanted} nodes are there; waiting for the others")
        before = now
        time.sleep(pause)


def present() -> list[dict[str, Any]]:
    """The nodes that can take part."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def measure(megabytes: int, patience: float = 60) -> Measured | None:
    """All-reduce over one process on every node of the Ray cluster that this process has joined;
    None if it has one node only. NCCL over those with a GPU if there are several, else gloo. Raises
    ValueError naming the nodes that did not answer."""
    import ray

    nodes = present()
    with_gpu = [node for node in nodes if node["Resources"].get("GPU", 0) >= 1]
    chosen, gpu = (with_gpu, True) if len(with_gpu) > 1 else (nodes, False)
    if len(chosen) < 2:
        return None
    meeting = ray.get(_on(listening, chosen[0], gpu=False).remote())
    parts = [
        _on(take_part, node, gpu=gpu).remote(
            rank, len(chosen), meeting, megabytes, gpu=gpu, patience=patience
        )
        for rank, node in enumerate(chosen)
    ]
    ready, late = ray.wait(parts, num_returns=len(parts), timeout=2 * patience)
    try:
        seconds = max(ray.get(ready, timeout=patience))
    except Exception as error:  # whatever gloo, NCCL and Ray raise for a connection that fails
        raise ValueError(_failure(chosen, parts, late) + f": {error}") from error
    if late:
        raise ValueError(_failure(chosen, parts, late))
    backend = "nccl" if gpu else "gloo"
    return Measured(nodes=len(chosen), backend=backend, megabytes=megabytes, seconds=seconds)


def _on(function: Any, node: dict[str, Any], *, gpu: bool) -> Any:
    """The function as a task of that node alone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    remote = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=0)(function)
    return remote.options(scheduling_strategy=where)


def _failure(nodes: Sequence[dict[str, Any]], parts: Sequence[Any], late: Sequence[Any]) -> str:
    silent = [n["NodeManagerAddress"] for n, p in zip(nodes, parts, strict=True) if p in late]
    who = ", ".join(silent or [node["NodeManagerAddress"] for node in nodes])
    return (
        f"the nodes cannot train together ({who}). Not all ports are open between them: set "
        "provider.network: overlay, or rent from a provider of virtual machines"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=1, help="that must be there first")
    options = parser.parse_args()
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    try:
        assembled(options.nodes, lambda: len(present()), lambda text: print(text, flush=True))
        found = measure(options.megabytes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if found is None:
        print("one node: nothing to connect")
        return
    print(
        f"{found.nodes} nodes, {found.backend}, all-reduce of {found.megabytes} MB: "
        f"{1000 * found.seconds:.1f} ms, {found.gigabytes_per_second:.2f} GB/s per link"
    )


if __name__ == "__main__":
    main()
