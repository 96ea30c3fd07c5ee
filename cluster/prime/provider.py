"""How does `ray up cluster/prime.yaml` rent? Ray's provider of nodes, over Prime Intellect.

provider:
  type: external
  module: cluster.prime.provider.PrimeNodes
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from cluster import launch, names, network
from cluster.ledger import Entry, Ledger
from cluster.names import Identity
from cluster.nodes import Node, Nodes
from cluster.prime import money
from cluster.prime.account import account
from cluster.prime.api import Client
from cluster.prime.fleet import Fleet, Refused
from cluster.prime.offers import wish
from cluster.prime.quote import quote, registered
from cluster.prime.records import Pod


class PrimeNodes(Nodes):
    """The nodes of one cluster, rented from Prime Intellect."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        with launch.sentences():
            self.machines = _machines(provider_config)
            self.network = network.chosen(provider_config, self.machines)
            self.fleet = fleet(provider_config, cluster_name, self.ledger)
        self._announced = launch.command() != "up"

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        with launch.sentences():
            found = super().non_terminated_nodes(tag_filters)
            if not self._announced and tag_filters == {TAG_RAY_NODE_KIND: "head"}:
                self._announced = True
                self._announce(found)
        return found

    def nodes_for_teardown(self, tag_filters: Mapping[str, str]) -> list[str]:
        """Also what is of no use but still costs."""
        kind = tag_filters.get(TAG_RAY_NODE_KIND)
        nodes = [node for pod in self.fleet.standing().values() for node in self._nodes(pod)]
        return [node.id for node in nodes if kind in (None, node.identity.kind)]

    def cleanup_cluster_resources(self) -> None:
        """The end of `ray down`: once more, since a head that lived on may have bought a node."""
        for pod in self.fleet.standing().values():
            self.fleet.end(pod.id)

    def _announce(self, heads: list[str]) -> None:
        """Ray's question comes next: with what the answer costs, or not at all."""
        types, head = self.provider_config["_types"], self.provider_config["_head"]
        several = _several(self.provider_config)
        launch.say(quote(types, head, self.fleet.limits, self.fleet.client, several=several))
        known = self.ledger.read().nodes
        if heads and not any(str(self._known(node).identity) in known for node in heads):
            raise ValueError(
                f"cluster {self.cluster_name} stands, and another machine started it: ray up would "
                f"replace its head. Copy ~/.isoflop/clusters/{self.cluster_name} from there, "
                "or end it with ray down"
            )

    def _look(self) -> dict[str, Node]:
        found = [node for pod in self.fleet.look().values() for node in self._nodes(pod)]
        return {node.id: node for node in found}

    def _create(self, node_config: dict[str, Any], tags: dict[str, str]) -> Node:
        kind, node_type = tags[TAG_RAY_NODE_KIND], tags[TAG_RAY_USER_NODE_TYPE]
        if not node_config:
            text = "the machines of the head's pod are all there are; none can be added"
            raise NodeLaunchException("Fixed", text, None)
        try:
            return self._node(self.fleet.buy(wish(node_config), kind, node_type, tags))
        except Refused as refused:
            raise NodeLaunchException(refused.category, str(refused), sys.exc_info()) from refused

    def _end(self, node: str) -> None:
        """A machine of a pod cannot be given back by itself: it goes with the pod."""
        if names.pod_of(node) == node:
            self.fleet.end(node)

    def _nodes(self, pod: Pod) -> list[Node]:
        """The machines of a pod: the first one is the pod's own node, the others are workers."""
        first = self._node(pod)
        others = range(1, len(pod.endpoints) if pod.ready else 1)
        return [first, *(self._machine(pod, first.identity, index) for index in others)]

    def _machine(self, pod: Pod, first: Identity, index: int) -> Node:
        types = self.provider_config["_types"].items()
        kind = next(name for name, values in types if not values["node_config"])
        nonce = names.machine(first.nonce, index)
        identity = replace(first, kind="worker", node_type=kind, nonce=nonce)
        endpoint = pod.endpoints[index]
        assert endpoint is not None, "a pod is ready when all its machines are"
        name = names.machine(pod.id, index)
        address = network.address(self.network, 0, endpoint.host, me=network.is_me(name))
        return Node(id=name, identity=identity, endpoint=endpoint, address=address)

    def _node(self, pod: Pod) -> Node:
        identity = names.parse(pod.name)
        assert identity is not None, pod.name
        endpoint = pod.endpoints[0] if pod.ready else None
        public = pod.addresses[0] or (endpoint.host if endpoint else None)
        slot = self._slot(pod, identity) if self.network == "overlay" else 0
        address = None
        if endpoint:
            address = network.address(self.network, slot, public, me=network.is_me(pod.id))
        return Node(id=pod.id, identity=identity, endpoint=endpoint, address=address, slot=slot)

    def _slot(self, pod: Pod, identity: Identity) -> int:
        """A node's place in the overlay, the same for as long as it stands."""
        if identity.kind == "head":
            return 1
        with self.ledger.change() as book:
            entry = book.nodes.setdefault(pod.name, Entry(asked=time.time(), id=pod.id))
            if entry.slot is None:
                entry.slot = network.free({e.slot for e in book.nodes.values() if e.slot})
            return entry.slot

    def _variables(self, node: Node) -> dict[str, str]:
        found = {**super()._variables(node), **network.variables(self.network)}
        if node.slot:
            known = [n for n in self._seen.values() if n.endpoint and n.slot]
            found["ISOFLOP_SLOT"] = str(node.slot)
            found["ISOFLOP_PEERS"] = ",".join(
                f"{n.slot}@{n.endpoint.host}" for n in known if n.endpoint
            )
        return found

    # The cluster's file

    @staticmethod
    @launch.sentences()
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Check the file before anything is asked for or bought, and add keys and token."""
        provider = cluster_config["provider"]
        money.limits(provider.get("limits"))
        launch.check(cluster_config)
        types = cluster_config["available_node_types"]
        provider["_types"], provider["_head"] = types, cluster_config["head_node_type"]
        network.chosen(provider, _wishes(provider, types))
        return launch.equipped(cluster_config, account=_head(cluster_config["cluster_name"]))

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The head's own copy, with the id of the key that its workers get."""
        key = registered(self.fleet.client, self.cluster_name)
        return launch.for_head(cluster_config, ssh_key_id=key)


def fleet(provider: Mapping[str, Any], cluster: str, ledger: Ledger) -> Fleet:
    """The nodes of a cluster, as its file says. Raises ValueError without a key or limits."""
    client = Client(account())
    return Fleet(
        client,
        ledger,
        cluster,
        money.limits(provider.get("limits")),
        several=_several(provider),
        ssh_key=lambda: provider.get("ssh_key_id") or registered(client, cluster),
    )


def _wishes(provider: Mapping[str, Any], types: Mapping[str, Any]) -> int:
    """The machines of the head's pod, once every node type has been checked. Raises ValueError."""
    empty = [name for name, values in types.items() if not values["node_config"]]
    for name, values in types.items():
        try:
            wanted = wish(values["node_config"]) if name not in empty else None
        except ValueError as error:
            raise ValueError(f"available_node_types.{name}.{error}") from error
        if wanted and wanted.machines > 1 and name != provider["_head"]:
            raise ValueError(
                f"available_node_types.{name}: machines {wanted.machines}: only the head's pod can "
                "have several, since other pods do not reach its network"
            )
    machines = _machines(provider)
    others = [types[name] for name in empty]
    fits = [(v.get("min_workers"), v.get("max_workers")) == (machines - 1,) * 2 for v in others]
    if (machines > 1 and (fits != [True] or len(types) != 2)) or (machines == 1 and empty):
        raise ValueError(
            f"available_node_types: a head of {machines} machines takes "
            + (f"one other type, with an empty node_config and min_workers and max_workers "
               f"{machines - 1}" if machines > 1 else f"a node_config for {', '.join(empty)}")
        )  # fmt: skip
    return machines


def _machines(provider: Mapping[str, Any]) -> int:
    """Of the head's pod, by a checked file; 1 where nothing is known of it yet."""
    types, head = provider.get("_types") or {}, provider.get("_head")
    return wish(types[head]["node_config"]).machines if head in types else 1


def _several(provider: Mapping[str, Any]) -> bool:
    """Whether nodes must reach each other: not if the head is all there is."""
    return len(provider.get("_types") or ()) != 1


def _head(cluster: str) -> Any:
    """The head's account: PRIME_HEAD_API_KEY, a key that may only rent, or else the user's own."""
    own = account()
    key = os.environ.get("PRIME_HEAD_API_KEY")
    if not key and launch.command() == "up":
        launch.say(
            "The head gets your API key. Better: one with the scopes Instances and Availability "
            "only, and an end, in PRIME_HEAD_API_KEY"
        )
    values = {"api_key": key or own.key, "team_id": own.team, "base_url": own.address}
    return launch.head_account(cluster, values)
