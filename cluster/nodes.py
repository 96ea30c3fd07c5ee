"""What does Ray's launcher ask of rented nodes, whoever rents them out?

Ray keeps its state in tags, which nobody stores for it: they go into the ledger of the machine that
wrote them. A machine without them reads kind and type from a node's name.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    STATUS_UNINITIALIZED,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster import launch, names
from cluster.keys import ssh_key
from cluster.ledger import Entry, Ledger
from cluster.names import Identity, folder
from cluster.prime.records import Endpoint
from cluster.ssh import Runner

# Ray's launcher fills in two empty fields and then warns about them, every five seconds.
logging.getLogger("ray.autoscaler._private.util").addFilter(
    lambda record: "Dropping the empty legacy field" not in record.getMessage()
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of the cluster."""

    id: str
    identity: Identity
    endpoint: Endpoint | None  # of SSH; None until it answers
    address: str | None  # that the other nodes use
    slot: int = 0  # in the overlay, where there is one

    @property
    def ready(self) -> bool:
        return self.endpoint is not None and self.address is not None


class Nodes(NodeProvider):  # type: ignore[misc]  # Ray's classes are untyped
    """Ray's interface, over `_look`, `_create` and `_end`. Ray calls it from several threads."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        names.check_cluster(cluster_name)
        self.ledger = Ledger(folder(cluster_name) / "ledger.json")
        self._seen: dict[str, Node] = {}
        self._when = float("-inf")
        self._lock = threading.Lock()

    @abstractmethod
    def _look(self) -> dict[str, Node]:
        """Every node that stands. Raises rather than leave one out."""

    @abstractmethod
    def _create(self, node_config: dict[str, Any], tags: dict[str, str]) -> Node:
        """One more node. Raises NodeLaunchException."""

    @abstractmethod
    def _end(self, node: str) -> None: ...

    def _variables(self, node: Node) -> dict[str, str]:
        """What every command on a node finds in its environment."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_CLOUD_INSTANCE_ID": node.id,
            "ISOFLOP_NODE_ADDRESS": node.address or "",
            "ISOFLOP_CLUSTER": self.cluster_name,
        }

    # Ray's questions

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        with self._lock:
            self._seen = self._look()
            self._when = time.monotonic()
            seen = list(self._seen.values())
        wanted = tag_filters.items()
        return [node.id for node in seen if wanted <= self._tags(node).items()]

    def is_running(self, node_id: str) -> bool:
        node = self._seen.get(node_id)
        return node is not None and node.ready

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._seen

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags(self._known(node_id))

    def external_ip(self, node_id: str) -> str | None:
        node = self._fresh(node_id)
        return None if node is None or node.endpoint is None else node.endpoint.host

    def internal_ip(self, node_id: str) -> str | None:
        node = self._fresh(node_id)
        return None if node is None else node.address

    def set_node_tags(self, node_id: str, tags: Mapping[str, str]) -> None:
        node = self._known(node_id)
        before = self._tags(node)
        with self.ledger.change() as book:
            entry = book.nodes.setdefault(str(node.identity), Entry(asked=time.time(), id=node.id))
            entry.tags = {**before, **tags}

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        made = {}
        for _ in range(count):
            node = self._create(node_config, dict(tags))
            made[node.id] = {"name": str(node.identity)}
            with self._lock:
                self._seen[node.id] = node
        return made

    def terminate_node(self, node_id: str) -> None:
        self._end(node_id)
        with self._lock:
            self._seen.pop(node_id, None)

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The first that Ray asks of a file, before it checks it."""
        return launch.filled(cluster_config)

    def get_command_runner(
        self,
        log_prefix: str,
        node_id: str,
        auth_config: dict[str, Any],
        cluster_name: str,
        process_runner: Any,
        use_internal_ip: bool,
        docker_config: dict[str, Any] | None = None,
    ) -> Runner:
        if docker_config and docker_config.get("container_name"):
            raise ValueError("docker: is not supported on rented nodes; use node_config.image")
        return Runner(
            endpoint=lambda: self._endpoint(node_id),
            variables=lambda: self._variables(self._known(node_id)),
            hosts=folder(cluster_name) / "known_hosts",
            log_prefix=log_prefix,
            node_id=node_id,
            provider=self,
            auth_config={"ssh_user": "root", "ssh_private_key": str(ssh_key(cluster_name))}
            | auth_config,
            cluster_name=cluster_name,
            process_runner=process_runner,
            use_internal_ip=use_internal_ip,
        )

    # How they are answered

    def _endpoint(self, node_id: str) -> Endpoint | None:
        node = self._fresh(node_id)
        return node.endpoint if node is not None and node.ready else None

    def _known(self, node_id: str) -> Node:
        if node_id not in self._seen:
            self.non_terminated_nodes({})
        if node_id not in self._seen:
            raise ValueError(f"node {node_id} of cluster {self.cluster_name} has ended")
        return self._seen[node_id]

    def _fresh(self, node_id: str) -> Node | None:
        """A node, looked at again while it is not ready: Ray asks for its address until it has one.
        At most once a second, so that many waiting threads make one question."""
        node = self._seen.get(node_id)
        if (node is None or not node.ready) and time.monotonic() - self._when > 1:
            self.non_terminated_nodes({})
        return self._seen.get(node_id)

    def _tags(self, node: Node) -> dict[str, str]:
        """What Ray wrote; where nothing is written, what the name says. A node that this machine
        did not set up counts as set up once it is ready: another machine did."""
        entry = self.ledger.read().nodes.get(str(node.identity))
        status = STATUS_UP_TO_DATE if node.ready else STATUS_UNINITIALIZED
        known = {
            TAG_RAY_NODE_KIND: node.identity.kind,
            TAG_RAY_USER_NODE_TYPE: node.identity.node_type,
        }
        if entry is not None and entry.tags:
            return {**known, **entry.tags}
        return {**known, TAG_RAY_NODE_STATUS: status}
