"""Which ssh command line reaches a node, and no other machine in its place?"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from cluster.prime.records import Endpoint


def options(node: str, hosts: Path) -> dict[str, str]:
    """SSH's options that pin a node's host key: trusted once, refused when it changes."""
    return {
        "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": str(hosts),
        "HostKeyAlias": node,
        "HashKnownHosts": "no",
    }


def exports(variables: Mapping[str, object]) -> str:
    """Shell text that sets variables, each text exactly as it is, everything else as JSON: that is
    how `ray start` reads the resources and labels of a node's type."""
    return "".join(
        f"export {name}={shlex.quote(value if isinstance(value, str) else json.dumps(value))}; "
        for name, value in variables.items()
    )


def command(endpoint: Endpoint, node: str, key: Path, hosts: Path, *more: str) -> list[str]:
    """The ssh command line for a node, for use outside of Ray's launcher."""
    chosen = {**options(node, hosts), "IdentitiesOnly": "yes", "ServerAliveInterval": "15"}
    pairs = [part for name, value in chosen.items() for part in ("-o", f"{name}={value}")]
    target = f"{endpoint.user}@{endpoint.host}"
    return ["ssh", "-i", str(key), "-p", str(endpoint.port), *pairs, *more, target]
