"""Does every node get the address that the others reach it at, in each kind of network?"""

from __future__ import annotations

from typing import Any

import pytest

from cluster import network

ADDRESSES = """\
1: lo    inet 127.0.0.1/8 scope host lo
2: eth0    inet 203.0.113.7/24 brd 203.0.113.255 scope global eth0
3: docker0    inet 172.17.0.1/16 scope global docker0
4: ens7    inet 10.15.0.4/20 brd 10.15.15.255 scope global ens7
"""


@pytest.mark.parametrize(
    ("given", "machines", "kind"),
    [(None, 1, "public"), ("overlay", 1, "overlay"), ("tailscale", 1, "tailscale"),
     ("private", 2, "private"), ("auto", 2, "private"), ("auto", 1, "overlay")],
)  # fmt: skip
def test_the_kind_is_chosen_or_detected(given: str | None, machines: int, kind: str) -> None:
    assert network.chosen({"network": given} if given else {}, machines) == kind


@pytest.mark.parametrize(
    ("given", "machines", "said"),
    [("pigeon", 1, "allowed: public, private"), ("private", 1, "share no private network"),
     ("public", 2, "a pod of 2 machines takes private")],
)  # fmt: skip
def test_what_cannot_be_is_refused(given: str, machines: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        network.chosen({"network": given}, machines)


def test_a_head_finds_the_network_between_machines() -> None:
    assert network.here("private", run=lambda command: ADDRESSES) == "10.15.0.4"
    alone = "\n".join(ADDRESSES.splitlines()[:3])
    with pytest.raises(ValueError, match="no interface of this node"):
        network.here("private", run=lambda command: alone)


def test_a_worker_takes_the_address_that_it_reaches_the_head_from() -> None:
    assert network.here("private", "127.0.0.2", run=lambda command: ADDRESSES) == "127.0.0.1"


def test_tailscale_must_be_up() -> None:
    assert network.here("tailscale", run=lambda command: "100.64.0.9\n") == "100.64.0.9"
    with pytest.raises(ValueError, match="not up on this node"):
        network.here("tailscale")  # there is no such command here


def test_only_the_node_itself_knows_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "here", lambda kind: f"own of {kind}")
    for kind in network.FOUND:
        assert network.variables(kind) == {"ISOFLOP_NETWORK": kind}
        assert network.address(kind, 0, "192.0.2.1") == "192.0.2.1"
        assert network.address(kind, 0, "192.0.2.1", me=True) == f"own of {kind}"
    assert network.address("public", 0, "192.0.2.1", me=True) == "192.0.2.1"


def test_a_node_knows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", "pod1-m1")
    assert network.is_me("pod1-m1") and not network.is_me("pod1")


def test_it_answers_on_a_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[Any, str] = {("private", "10.0.0.1"): "10.0.0.2"}
    monkeypatch.setattr(network, "here", lambda kind, head=None: answers[kind, head])
    monkeypatch.setattr("sys.argv", ["network", "private", "10.0.0.1"])
    network.main()
    assert capsys.readouterr().out == "10.0.0.2\n"
