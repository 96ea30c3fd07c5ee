"""What did a crash leave behind? Nodes that still cost, found by their names alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster import names
from cluster.file import read
from cluster.prime.account import account
from cluster.prime.api import Client
from cluster.prime.records import ENDED


def sweep(path: Path | None, ask: Callable[[str], bool], say: Callable[[str], None]) -> int:
    """End every node of a cluster's file (None: of all clusters that isoflop rented), after asking.
    Needs no ledger, no head and no Ray. Gives 0 if nothing is left."""
    wanted = None if path is None else read(path).name
    client = Client(account())
    left = [
        pod
        for pod in client.pods()
        if (identity := names.parse(pod.name))
        and wanted in (None, identity.cluster)
        and pod.status not in ENDED
    ]
    if not left:
        say("no nodes are left")
        return 0
    for pod in left:
        say(f"{pod.name}  {pod.status}  {pod.price:.2f} $/h")
    if not ask(f"end these {len(left)} nodes?"):
        return 1
    for pod in left:
        client.delete_pod(pod.id)
        say(f"ended {pod.name}")
    return 0
