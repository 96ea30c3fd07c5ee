"""How do nodes without open ports between them form one network? WireGuard, with nothing exchanged.

    python -m cluster.wireguard > /etc/wireguard/isoflop0.conf      on a node; see wireguard.sh

Every node has a slot. The keys of all slots follow from the cluster's token, which every node has,
so each node knows every other from the start, those that are rented later too: whoever comes new
knows the addresses of those before it and speaks first.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.network import SLOTS, WIREGUARD_PORT, overlay

_PEER = re.compile(r"(\d+)@([\w.:-]+)")


def private_key(token: str, slot: int) -> str:
    """The key of a slot, as WireGuard writes keys: HMAC-SHA256 of the slot under the token.
    WireGuard itself fixes the bits that Curve25519 asks for."""
    message = f"isoflop wireguard slot {slot}".encode()
    return base64.b64encode(hmac.new(token.encode(), message, hashlib.sha256).digest()).decode()


def public_key(private: str) -> str:
    """By WireGuard's own tool; the key goes through its input, never its command line."""
    done = subprocess.run(
        ["wg", "pubkey"], input=private, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def configuration(
    token: str,
    slot: int,
    hosts: Mapping[int, str],
    public: Callable[[str], str] = public_key,
) -> str:
    """A node's file for wg-quick: its own key, and every other slot as a peer, with an endpoint
    where its host is known. Raises ValueError for a slot that there is not."""
    if not 1 <= slot <= SLOTS or not token:
        raise ValueError(f"slot {slot}: 1 to {SLOTS} are allowed, and a token is needed")
    lines = [
        "[Interface]",
        f"PrivateKey = {private_key(token, slot)}",
        f"Address = {overlay(slot)}/24",
        f"ListenPort = {WIREGUARD_PORT}",
        "MTU = 1420",
    ]
    for other in range(1, SLOTS + 1):
        if other == slot:
            continue
        key = public(private_key(token, other))
        lines += ["", "[Peer]", f"PublicKey = {key}", f"AllowedIPs = {overlay(other)}/32"]
        if other in hosts:
            lines.append(f"Endpoint = {hosts[other]}:{WIREGUARD_PORT}")
            lines.append("PersistentKeepalive = 15")
    return "\n".join(lines) + "\n"


def peers(text: str) -> dict[int, str]:
    """ "1@192.0.2.1,3@192.0.2.9" as hosts by slot. Raises ValueError."""
    found = {}
    for word in filter(None, text.split(",")):
        match = _PEER.fullmatch(word)
        if not match:
            raise ValueError(f"peer {word!r} is not of the form SLOT@HOST")
        found[int(match[1])] = match[2]
    return found


def main() -> None:
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    slot = int(os.environ["ISOFLOP_SLOT"])
    hosts = {s: h for s, h in peers(os.environ.get("ISOFLOP_PEERS", "")).items() if s != slot}
    print(configuration(token, slot, hosts), end="")


if __name__ == "__main__":
    main()
