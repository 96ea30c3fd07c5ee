"""By which addresses do nodes reach each other?

public   every node has an address that all ports can be reached at, as virtual machines do
overlay  a WireGuard network of our own over whatever there is; see cluster/wireguard.sh

Separately rented nodes share no private network, even in one data center.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Any

KINDS = ("public", "overlay")
INTERFACE = "isoflop0"
_OVERLAY = ipaddress.ip_network("10.128.77.0/24")
SLOTS = 64  # nodes that an overlay can have
WIREGUARD_PORT = 51820


def chosen(provider: Mapping[str, Any]) -> str:
    """The `network` of the cluster's file. Raises ValueError for one that there is not."""
    kind = str(provider.get("network", "public"))
    if kind not in KINDS:
        raise ValueError(f"provider.network {kind!r}; allowed: {', '.join(KINDS)}")
    return kind


def address(kind: str, slot: int, public: str | None) -> str | None:
    """What the other nodes call a node."""
    return overlay(slot) if kind == "overlay" else public


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
    """What tells gloo and NCCL which interface to use."""
    if kind != "overlay":
        return {}
    return {"GLOO_SOCKET_IFNAME": INTERFACE, "NCCL_SOCKET_IFNAME": INTERFACE}
