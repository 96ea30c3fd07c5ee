"""Names, keys, lists of nodes and networks: is what is wrong refused before anything happens?"""

from __future__ import annotations

import base64
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import keys, launch, names, network, wireguard
from cluster.backup import backup
from cluster.names import Identity
from cluster.static import StaticNodes, listed

CLUSTERS = st.from_regex(r"[a-z][a-z0-9]{0,4}(-[a-z0-9]{1,4}){0,3}", fullmatch=True)
TYPES = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,8}", fullmatch=True)


@given(CLUSTERS.filter(lambda name: len(name) <= 20), TYPES, st.sampled_from(["head", "worker"]))
def test_a_name_says_what_a_node_is(cluster: str, node_type: str, kind: str) -> None:
    identity = names.new(cluster, kind, node_type)
    assert names.parse(str(identity)) == identity
    assert set(str(identity)) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
    )
    assert len(str(identity)) <= 60


@pytest.mark.parametrize("name", ["", "isoflop", "isoflop-a-h-t-0", "isoflop-a-x-t-0123456789"])
def test_other_names_are_nobodys(name: str) -> None:
    assert names.parse(name) is None


@pytest.mark.parametrize("name", ["", "A", "a_b", "a--b", "1a", "a" * 21, "../x", "a/b"])
def test_names_that_no_cluster_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="cluster_name"):
        names.folder(name)


def test_secrets_are_made_once_and_for_the_owner_alone(home: Path) -> None:
    token, key = keys.token("lab"), keys.ssh_key("lab")
    assert keys.token("lab").read_text() == token.read_text() and len(token.read_text()) == 64
    assert keys.token("other").read_text() != token.read_text()
    assert (key.with_suffix(".pub")).read_text().startswith("ssh-ed25519 ")
    for path in (token, key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(names.folder("lab").stat().st_mode) == 0o700


def test_every_node_of_the_overlay_knows_all_others() -> None:
    token, count = "t" * 64, network.SLOTS
    files = {
        slot: wireguard.configuration(token, slot, {1: "192.0.2.1"}, public=lambda key: f"P{key}")
        for slot in (1, 2, count)
    }
    own = {slot: wireguard.private_key(token, slot) for slot in files}
    for slot, text in files.items():
        assert text.count("[Peer]") == count - 1 and f"PrivateKey = {own[slot]}\n" in text
        for other, key in own.items():
            peer = f"PublicKey = P{key}\nAllowedIPs = {network.overlay(other)}/32\n"
            assert (peer in text) == (other != slot)
        assert text.count("Endpoint = 192.0.2.1:51820") == (slot != 1)
    assert wireguard.private_key("other", 1) != own[1]
    assert len({network.overlay(slot) for slot in range(1, count + 1)}) == count
    for slot in (0, count + 1):
        with pytest.raises(ValueError, match="slot"):
            wireguard.configuration(token, slot, {})


def test_slots_and_peers() -> None:
    assert network.free({2, 3, 5}) == 4
    with pytest.raises(ValueError, match="64 nodes"):
        network.free(range(2, 65))
    assert wireguard.peers("1@192.0.2.1,3@host") == {1: "192.0.2.1", 3: "host"}
    assert wireguard.peers("") == {}
    with pytest.raises(ValueError, match="SLOT@HOST"):
        wireguard.peers("1@a b")
    assert network.address("public", 3, "192.0.2.1") == "192.0.2.1"


@pytest.mark.skipif(shutil.which("wg") is None, reason="needs wireguard-tools")
def test_wireguard_takes_our_keys() -> None:
    key = wireguard.public_key(wireguard.private_key("t" * 64, 1))
    assert len(base64.b64decode(key)) == 32


BAD_NODES: list[tuple[Any, str]] = [
    (None, "at least one node"),
    ([], "at least one node"),
    ([{"ssh": "root@h", "port": 3}], "ssh, type and address"),
    ([{"type": "gpu"}], "ssh must be given"),
    ([{"ssh": "h; rm -rf /"}], "user@host"),
    ([{"ssh": "root@h", "address": "$(id)"}], "not an address"),
    ([{"ssh": "root@h"}, {"ssh": "root@h"}], "listed twice"),
]


@pytest.mark.parametrize(("nodes", "said"), BAD_NODES)
def test_a_wrong_list_of_nodes_is_named(nodes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        listed(nodes, "lab")


def test_listed_nodes_are_used_once_each_and_freed() -> None:
    nodes = [{"ssh": f"root@192.0.2.{i} -p {2200 + i}"} for i in (1, 2, 3)]
    head = {"ray-node-type": "head", "ray-user-node-type": "head"}
    gpu = {"ray-node-type": "worker", "ray-user-node-type": "gpu"}
    provider = StaticNodes({"nodes": nodes}, "lab")
    assert provider.non_terminated_nodes({}) == []
    (first,) = provider.create_node({}, head, 1)
    assert provider.external_ip(first) == "192.0.2.1" and provider.is_running(first)
    on_head = StaticNodes({"nodes": nodes, "on_head": True}, "lab")
    assert len(on_head.create_node({}, gpu, 2)) == 2
    with pytest.raises(Exception, match="all nodes of type gpu"):
        on_head.create_node({}, gpu, 1)
    (one, two) = on_head.non_terminated_nodes({"ray-node-type": "worker"})
    on_head.terminate_node(one)
    assert on_head.non_terminated_nodes({"ray-node-type": "worker"}) == [two]
    assert on_head.is_terminated(one)
    on_head.set_node_tags(two, {"x": "y"})
    assert StaticNodes({"nodes": nodes}, "lab").node_tags(two)["x"] == "y"


def test_parts_that_rented_nodes_lack_are_refused() -> None:
    good: dict[str, Any] = {"cluster_name": "lab", "available_node_types": {"gpu": {}}}
    launch.check(good)
    for change, said in (
        ({"docker": {"container_name": "x"}}, "image"),
        ({"setup_commands": ["x"]}, "twice"),
        ({"available_node_types": {"ray.worker": {}}}, "node type"),
    ):
        with pytest.raises(ValueError, match=said):
            launch.check({**good, **change})


def test_a_backup_is_whole_while_others_write(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    writer = sqlite3.connect(database)
    writer.execute("create table runs (name text)")
    writer.execute("insert into runs values ('done')")
    writer.commit()
    writer.execute("insert into runs values ('not yet')")
    place = backup(database, str(tmp_path / "there"))
    uri = (
        backup(database, (tmp_path / "uri").as_uri()) if (tmp_path / "uri").mkdir() is None else ""
    )
    writer.close()
    for copy in (Path(place), tmp_path / "uri" / "mlflow.db"):
        reader = sqlite3.connect(copy)
        assert reader.execute("select name from runs").fetchall() == [("done",)]
        reader.close()
    assert uri.endswith("/uri/mlflow.db")
    with pytest.raises(ValueError, match="no file"):
        backup(tmp_path / "none.db", str(tmp_path))


def test_the_identity_of_a_list_does_not_change() -> None:
    (node,) = listed([{"ssh": "root@192.0.2.1"}], "lab").values()
    assert node.identity == Identity(
        cluster="lab", kind="head", node_type="head", nonce=node.identity.nonce
    )
    assert listed([{"ssh": "root@192.0.2.1"}], "lab").keys() == {node.id}
