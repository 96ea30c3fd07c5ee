"""Whose is a rented node? Its name says so: the API keeps no tags, and a name outlives a laptop.

isoflop-CLUSTER-KIND-TYPE-NONCE      KIND: h for the head, w for workers
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

PREFIX = "isoflop"
_CLUSTER = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_NAME = re.compile(
    rf"{PREFIX}-(?P<cluster>{_CLUSTER.pattern})-(?P<kind>[hw])-(?P<type>{_TYPE.pattern})"
    r"-(?P<nonce>[0-9a-f]{10})"
)
KINDS = {"head": "h", "worker": "w"}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a node is, as its name says."""

    cluster: str
    kind: str  # head or worker
    node_type: str
    nonce: str

    def __str__(self) -> str:
        return f"{PREFIX}-{self.cluster}-{KINDS[self.kind]}-{self.node_type}-{self.nonce}"


def new(cluster: str, kind: str, node_type: str) -> Identity:
    """A name that no node has had. Raises ValueError for words that no name can hold."""
    check_cluster(cluster)
    check_type(node_type)
    nonce = secrets.token_hex(5)
    return Identity(cluster=cluster, kind=kind, node_type=node_type, nonce=nonce)


def parse(name: str) -> Identity | None:
    """The identity in a name; None for a node that isoflop did not rent."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    kind = next(kind for kind, letter in KINDS.items() if letter == found["kind"])
    return Identity(
        cluster=found["cluster"], kind=kind, node_type=found["type"], nonce=found["nonce"]
    )


def machine(pod: str, index: int) -> str:
    """What the nodes of a pod of several machines are called: the first one as the pod itself."""
    return f"{pod}-m{index}" if index else pod


def pod_of(node: str) -> str:
    """The pod of a node. Only a whole pod can be rented or given back."""
    return re.sub(r"-m\d+$", "", node)


def check_cluster(name: str) -> None:
    if not _CLUSTER.fullmatch(name) or len(name) > 20:
        raise ValueError(
            f"cluster_name {name!r}: lower case letters, digits and single dashes are allowed, "
            "a letter first, 20 at most"
        )


def check_type(name: str) -> None:
    if not _TYPE.fullmatch(name) or len(name) > 16:
        raise ValueError(
            f"node type {name!r}: letters and digits are allowed, a letter first, 16 at most"
        )


def folder(cluster: str) -> Path:
    """Where this machine keeps what it knows of a cluster: ledger, keys, pinned hosts."""
    check_cluster(cluster)
    path = Path.home() / ".isoflop" / "clusters" / cluster
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
