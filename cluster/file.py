"""What does a cluster's file say, and which nodes does it have now? Without Ray's launcher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster import names
from cluster.keys import ssh_key
from cluster.prime.records import Endpoint


@dataclass(frozen=True, kw_only=True)
class Target:
    """A node that commands can be run on."""

    id: str
    name: str
    kind: str  # head or worker
    endpoint: Endpoint


@dataclass(frozen=True, kw_only=True)
class File:
    """A cluster's file, as far as it matters here."""

    name: str
    provider: dict[str, Any]
    types: dict[str, Any]
    key: Path  # that opens its nodes
    head: str = ""  # the type of the head

    @property
    def hosts(self) -> Path:
        """Where the nodes' host keys are pinned."""
        return names.folder(self.name) / "known_hosts"

    @property
    def least(self) -> int:
        """Nodes with processors that stand before anything asks for more: head and min_workers."""
        counts = {name: values.get("min_workers") or 0 for name, values in self.types.items()}
        counts[self.head] = 1
        with_processors = (n for n, v in self.types.items() if v.get("resources", {}).get("CPU"))
        return sum(int(counts[name]) for name in with_processors)


def read(path: Path) -> File:
    """Raises ValueError if there is no such file, or it is none of a cluster."""
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"no cluster's file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict) or not {"cluster_name", "provider"} <= config.keys():
        raise ValueError(f"{path} has no cluster_name and provider: no cluster's file")
    names.check_cluster(config["cluster_name"])
    key = (config.get("auth") or {}).get("ssh_private_key")
    return File(
        name=config["cluster_name"],
        provider=config["provider"],
        types=config.get("available_node_types") or {},
        key=Path(key).expanduser() if key else ssh_key(config["cluster_name"]),
        head=str(config.get("head_node_type") or ""),
    )


def targets(file: File) -> list[Target]:
    """The nodes that are ready, the head first. Raises ValueError if no head is."""
    found = _listed(file) if "nodes" in file.provider else _rented(file)
    found.sort(key=lambda target: (target.kind != "head", target.name))
    if not found or found[0].kind != "head":
        raise ValueError(f"cluster {file.name} has no head that is ready: ray up starts one")
    return found


def _listed(file: File) -> list[Target]:
    from cluster.static import listed

    nodes = listed(file.provider["nodes"], file.name).values()
    return [
        Target(id=n.id, name=str(n.identity), kind=n.identity.kind, endpoint=n.endpoint)
        for n in nodes
        if n.endpoint
    ]


def _rented(file: File) -> list[Target]:
    from cluster.prime.account import account
    from cluster.prime.api import Client

    found = []
    for pod in Client(account()).pods():
        identity = names.parse(pod.name)
        if not identity or identity.cluster != file.name:
            continue
        if identity.kind == "head" and not pod.ready:
            state = f"{pod.status} {pod.installation}".strip()
            raise ValueError(f"the head of cluster {file.name} is not ready yet: {state}")
        if not pod.ready:
            continue
        for index, endpoint in enumerate(pod.endpoints):
            if endpoint is not None:
                kind = "worker" if index else identity.kind
                name = names.machine(pod.name, index)
                node = names.machine(pod.id, index)
                found.append(Target(id=node, name=name, kind=kind, endpoint=endpoint))
    return found
