"""By which addresses do nodes reach each other?

public     every node has an address that all ports can be reached at, as virtual machines do
private    the machines of one multi-node pod, over the network that they share
overlay    a WireGuard network of our own over whatever there is; see cluster/wireguard.sh
tailscale  a Tailscale network that the nodes have joined already, as by an initialization command
auto       private for a multi-node pod, else overlay

Separately rented nodes share no private network, even in one data center. The addresses of private
and tailscale are known to the node alone, which finds its own:

    python -m cluster.network private [ADDRESS_OF_HEAD]
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

KINDS = ("public", "private", "overlay", "tailscale", "auto")
FOUND = ("private", "tailscale")  # by the node itself
INTERFACE = "isoflop0"
_OVERLAY = ipaddress.ip_network("10.128.77.0/24")
SLOTS = 64  # nodes that an overlay can have
WIREGUARD_PORT = 51820
# RFC 1918: other addresses that Python calls private are no networks between machines.
_PRIVATE = [ipaddress.ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
_OTHERS = re.compile(r"lo|docker|br-|veth|virbr|tailscale|wg|isoflop|cni|flannel")
Run = Callable[[list[str]], str]


def chosen(provider: Mapping[str, Any], machines: int = 1) -> str:
    """The `network` of the cluster's file; `machines`: of the head's pod. Raises ValueError for one
    that there is not, or that such a pod does not have."""
    kind = str(provider.get("network", "public"))
    if kind not in KINDS:
        raise ValueError(f"provider.network {kind!r}; allowed: {', '.join(KINDS)}")
    if kind == "auto":
        return "private" if machines > 1 else "overlay"
    if kind == "private" and machines < 2:
        raise ValueError(
            "provider.network: private is between the machines of one pod: set machines of the "
            "head's node_config to 2 or more; pods of their own share no private network"
        )
    if machines > 1 and kind != "private":
        raise ValueError(f"provider.network {kind}: a pod of {machines} machines takes private")
    return kind


def address(kind: str, slot: int, public: str | None, *, me: bool = False) -> str | None:
    """What the other nodes call a node. Where it must be found on the node itself, that can only be
    said of this one (`me`); elsewhere the public address stands in, and nobody connects to it."""
    if kind == "overlay":
        return overlay(slot)
    return here(kind) if me and kind in FOUND else public


def overlay(slot: int) -> str:
    """The address of a slot in the overlay: the head has slot 1."""
    return str(_OVERLAY[slot])


def free(used: Collection[int]) -> int:
    """The lowest slot for one more worker. Raises ValueError when there are none left."""
    for slot in range(2, SLOTS + 1):
        if slot not in used:
            return slot
    raise ValueError(f"the overlay has no slot left: {SLOTS} nodes are the most")


def variables(kind: str) -> dict[str, str]:
    """What the start of Ray must know on a node."""
    if kind in FOUND:
        return {"ISOFLOP_NETWORK": kind}
    if kind == "overlay":
        return {"GLOO_SOCKET_IFNAME": INTERFACE, "NCCL_SOCKET_IFNAME": INTERFACE}
    return {}


def here(kind: str, head: str | None = None, run: Run | None = None) -> str:
    """This node's own address in the network: on a worker, the one from which it reaches `head`.
    Raises ValueError where it has none."""
    run = run or _output
    if kind == "tailscale":
        lines = run(["tailscale", "ip", "-4"]).split()
        if not lines:
            raise ValueError(
                "provider.network: tailscale, but it is not up on this node: join it in "
                "initialization_commands (tailscale up --auth-key=file:...)"
            )
        return lines[0]
    if head:
        return _towards(head)
    for line in run(["ip", "-o", "-4", "addr", "show"]).splitlines():
        words = line.split()
        found = ipaddress.ip_interface(words[3]).ip
        if not _OTHERS.match(words[1]) and any(found in network for network in _PRIVATE):
            return str(found)
    raise ValueError("provider.network: private, but no interface of this node is in one")


def _towards(head: str) -> str:
    """Nothing is sent: the kernel is asked which address it would send from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((head, 6379))
        return str(asked.getsockname()[0])


def _output(command: list[str]) -> str:
    """What a command prints; nothing where it fails, or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def is_me(node: str) -> bool:
    """Whether this process runs on the node."""
    return os.environ.get("RAY_CLOUD_INSTANCE_ID") == node


def main() -> None:
    kind, *head = sys.argv[1:]
    try:
        print(here(kind, head[0] if head else None))
    except ValueError as error:
        sys.exit(f"network: {error}")


if __name__ == "__main__":
    main()
