"""Which secrets does a cluster have? Its own SSH key and its own Ray token, made when first needed.

They lie in ~/.isoflop/clusters/NAME, readable by their owner only, and nowhere else on the laptop.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

from cluster.names import folder


def ssh_key(cluster: str) -> Path:
    """The private key for the nodes of a cluster (ed25519); the public one is beside it, in .pub.
    The head is given this key, never the user's own."""
    path = folder(cluster) / "ssh_key"
    if not path.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"isoflop-{cluster}"]
        subprocess.run([*command, "-f", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


def token(cluster: str) -> Path:
    """The file with the token that every process of the cluster must show to Ray."""
    path = folder(cluster) / "auth_token"
    if not path.exists():
        private(path, secrets.token_hex(32))
    return path


def private(path: Path, text: str) -> None:
    """Write a secret: whole or not at all, and never readable by others, not even for a moment."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(partial, path)
