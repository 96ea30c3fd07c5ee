"""Is a pod of several machines one order and one end, and yet a node for each machine?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from cluster import names
from cluster.file import File, targets
from cluster.prime.fake import KEY, Market, offer
from cluster.prime.provider import PrimeNodes
from cluster.prime.quote import quote

HEAD = {"gpu": "H100_80GB", "count": 8, "machines": 2, "price": 20}
LIMITS = {"dollars_per_hour": 60, "dollars": 100, "hours": 9}


def config(head: dict[str, Any] | None = None, **machine: Any) -> dict[str, Any]:
    other = {"node_config": {}, "min_workers": 1, "max_workers": 1, **machine}
    return {
        "cluster_name": "lab",
        "provider": {"type": "external", "network": "private", "limits": LIMITS},
        "head_node_type": "head",
        "available_node_types": {"head": {"node_config": head or HEAD}, "machine": other},
    }


@pytest.fixture
def prime(address: str, market: Market, monkeypatch: pytest.MonkeyPatch) -> PrimeNodes:
    monkeypatch.setenv("PRIME_API_KEY", KEY)
    monkeypatch.setenv("PRIME_API_BASE_URL", address)
    market.offers += [offer("pair", gpuCount=16, price=36.0)]
    market.machines["pair"] = 2
    full = PrimeNodes.bootstrap_config(config())
    return PrimeNodes(full["provider"], "lab")


TAGS = {TAG_RAY_NODE_KIND: "head", TAG_RAY_USER_NODE_TYPE: "head"}


def test_one_order_gives_a_head_and_its_workers(prime: PrimeNodes, market: Market) -> None:
    prime.create_node(HEAD, TAGS, 1)
    (pod,) = market.pods
    assert market.bodies[pod]["pod"]["maxPrice"] == 40, "20 for each machine"
    for _ in range(3):  # until it is ready
        found = prime.non_terminated_nodes({})
    assert found == [pod, f"{pod}-m1"]
    assert prime.non_terminated_nodes({TAG_RAY_NODE_KIND: "head"}) == [pod]
    worker = prime.node_tags(f"{pod}-m1")
    assert (worker[TAG_RAY_NODE_KIND], worker[TAG_RAY_USER_NODE_TYPE]) == ("worker", "machine")
    assert prime.external_ip(pod) != prime.external_ip(f"{pod}-m1")
    assert prime._variables(prime._known(pod))["ISOFLOP_NETWORK"] == "private"


def test_machines_end_with_their_pod_alone(prime: PrimeNodes, market: Market) -> None:
    prime.create_node(HEAD, TAGS, 1)
    (pod,) = market.pods
    for _ in range(3):
        prime.non_terminated_nodes({})
    prime.set_node_tags(f"{pod}-m1", {"ray-node-status": "up-to-date"})
    prime.terminate_node(f"{pod}-m1")
    assert prime.non_terminated_nodes({}) == [pod, f"{pod}-m1"], "it stands, and is paid for"
    assert prime.node_tags(f"{pod}-m1")["ray-node-status"] == "up-to-date"
    with pytest.raises(NodeLaunchException, match="machines of the head's pod"):
        prime.create_node({}, {**TAGS, TAG_RAY_NODE_KIND: "worker"}, 1)
    assert prime.nodes_for_teardown({}) == [pod, f"{pod}-m1"]
    prime.terminate_node(pod)
    assert market.pods == {} and prime.nodes_for_teardown({}) == []


def test_each_machine_can_be_reached_from_the_laptop(
    prime: PrimeNodes, market: Market, tmp_path: Path
) -> None:
    prime.create_node(HEAD, TAGS, 1)
    for _ in range(3):
        prime.non_terminated_nodes({})
    file = File(name="lab", provider={}, types={}, key=tmp_path)
    assert [(t.kind, t.name[-2:]) for t in targets(file)][1:] == [("worker", "m1")]
    assert len({t.endpoint.host for t in targets(file)}) == 2


def test_the_price_is_of_all_machines(prime: PrimeNodes) -> None:
    types, fleet = prime.provider_config["_types"], prime.fleet
    shown = quote(types, "head", fleet.limits, fleet.client, several=True)
    assert "head: 36.00 $/h each (1; 2 machines with 16 H100_80GB" in shown
    assert "40 $/h at most" in shown and "together: 36.00 $/h at first" in shown
    assert "machine:" not in shown


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (config({**HEAD, "machines": 0}), "machines 0: at least one"),
        (config(max_workers=3), "min_workers and max_workers 1"),
        (config({"gpu": "CPU_NODE", "price": 1}), "a node_config for machine"),
        (config({"gpu": "CPU_NODE", "price": 1}, node_config=HEAD), "only the head's pod"),
    ],
)
def test_a_file_that_cannot_be_is_refused(
    wrong: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIME_API_KEY", KEY)
    with pytest.raises(ValueError, match=said):
        PrimeNodes.bootstrap_config(wrong)


def test_names_of_machines() -> None:
    assert names.machine("pod7", 0) == names.pod_of("pod7") == "pod7"
    assert names.machine("pod7", 3) == "pod7-m3" and names.pod_of("pod7-m3") == "pod7"
