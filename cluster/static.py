"""What if the nodes are rented already? A list of SSH targets, used as Ray asks for nodes.

provider:
  type: external
  module: cluster.static.StaticNodes
  nodes:                         # the first one is the head
    - {ssh: "root@192.0.2.1 -p 2201", type: head, address: 10.0.0.1}
    - {ssh: "root@192.0.2.2 -p 2202", type: gpu, address: 10.0.0.2}
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from cluster import launch
from cluster.ledger import Entry
from cluster.names import Identity
from cluster.nodes import Node, Nodes
from cluster.prime.records import endpoint

_HOST = re.compile(r"[\w.:-]+")


class StaticNodes(Nodes):
    """Nodes of a list. Which of them are used, the ledger of the machine that asked for them says:
    the laptop's has the head, the head's has the workers."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self.nodes = listed(provider_config.get("nodes"), cluster_name)

    def nodes_for_teardown(self, tag_filters: Mapping[str, str]) -> list[str]:
        """Those that the laptop's own ledger has; the head's workers end with the head."""
        return self.non_terminated_nodes(tag_filters)

    def _look(self) -> dict[str, Node]:
        used = {entry.id for entry in self.ledger.read().nodes.values()}
        if self.provider_config.get("on_head"):
            used.add(next(iter(self.nodes)))
        return {i: node for i, node in self.nodes.items() if i in used}

    def _create(self, node_config: dict[str, Any], tags: dict[str, str]) -> Node:
        wanted = tags[TAG_RAY_NODE_KIND], tags[TAG_RAY_USER_NODE_TYPE]
        with self.ledger.change() as book:
            used = {entry.id for entry in book.nodes.values()}
            for node in self.nodes.values():
                kind = node.identity.kind, node.identity.node_type
                if node.id not in used and kind == wanted:
                    book.nodes[str(node.identity)] = Entry(asked=time.time(), tags=tags, id=node.id)
                    return node
        text = f"all nodes of type {wanted[1]} in provider.nodes are used"
        raise NodeLaunchException("AllUsed", text, None)

    def _end(self, node: str) -> None:
        with self.ledger.change() as book:
            book.nodes.pop(str(self.nodes[node].identity), None)

    @staticmethod
    @launch.sentences()
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Check the file, add token and key. The user's own SSH key must be named: whoever rented
        the nodes put one there."""
        launch.check(cluster_config)
        nodes = listed(cluster_config["provider"].get("nodes"), cluster_config["cluster_name"])
        unknown = {n.identity.node_type for n in nodes.values()}
        unknown -= cluster_config["available_node_types"].keys()
        if unknown:
            raise ValueError(f"provider.nodes: type {', '.join(sorted(unknown))} is not described")
        key = (cluster_config.get("auth") or {}).get("ssh_private_key")
        if not key or not Path(key).expanduser().is_file():
            raise ValueError(f"auth.ssh_private_key {key!r} must be the file of a private key")
        return launch.equipped(cluster_config)

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        return launch.for_head(cluster_config, on_head=True)


def listed(items: object, cluster: str) -> dict[str, Node]:
    """The nodes of `provider.nodes`, the head first. Raises ValueError naming what is wrong."""
    if not isinstance(items, list) or not items:
        raise ValueError("provider.nodes must list at least one node: {ssh: user@host -p port}")
    nodes = {}
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not item.keys() <= {"ssh", "type", "address"}:
            raise ValueError(f"provider.nodes[{number}] {item!r}: ssh, type and address are known")
        found = endpoint(str(item.get("ssh") or ""))
        if found is None:
            raise ValueError(f"provider.nodes[{number}]: ssh must be given, as user@host -p port")
        address = str(item.get("address") or found.host)
        if not _HOST.fullmatch(address):
            raise ValueError(f"provider.nodes[{number}]: address {address!r} is not an address")
        identity = Identity(
            cluster=cluster,
            kind="worker" if number else "head",
            node_type=str(item.get("type") or ("gpu" if number else "head")),
            nonce=hashlib.sha256(str(item["ssh"]).encode()).hexdigest()[:10],
        )
        node = f"static-{identity.nonce}"
        if node in nodes:
            raise ValueError(f"provider.nodes[{number}]: {item['ssh']!r} is listed twice")
        nodes[node] = Node(id=node, identity=identity, endpoint=found, address=address)
    return nodes
