"""Is a cluster's file right, and what does Ray's launcher need beyond it? Keys, token, mounts.

Everything is checked before the first request. Secrets never stand in the file, nor in the copies
that Ray makes of it: only the paths of the files that hold them do.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import names
from cluster.keys import private, ssh_key, token
from cluster.prime.errors import ApiError

TOKEN = "~/.ray/auth_token"
ACCOUNT = "~/.prime/config.json"
# Ray's launcher reads these without asking whether they are there.
_EMPTY: dict[str, Any] = {
    "file_mounts": {},
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError for names that no node can have, and for parts that rented nodes lack."""
    names.check_cluster(config["cluster_name"])
    for name in config["available_node_types"]:
        names.check_type(name)
    if (config.get("docker") or {}).get("container_name"):
        raise ValueError("docker: rented containers run no docker; use node_config.image instead")
    if config.get("setup_commands"):
        raise ValueError(
            "setup_commands: Ray runs them twice on workers; "
            "use head_setup_commands and worker_setup_commands"
        )


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file with an empty value for all that it leaves out."""
    return copy.deepcopy({**_EMPTY, **config})


def equipped(config: Mapping[str, Any], *, account: Path | None = None) -> dict[str, Any]:
    """The file with this cluster's key and token in their places; `account`: a file with the API
    key that the head is given."""
    full = filled(config)
    cluster = full["cluster_name"]
    auth = full.setdefault("auth", {})
    auth.setdefault("ssh_user", "root")
    auth.setdefault("ssh_private_key", str(ssh_key(cluster)))
    mounts = {TOKEN: str(token(cluster))}
    if account is not None:
        mounts[ACCOUNT] = str(account)
    full["file_mounts"] = {**full["file_mounts"], **mounts}
    return full


def for_head(config: Mapping[str, Any], **provider: Any) -> dict[str, Any]:
    """The copy that the head works from. What it mounts, it hands on to its workers: so not the
    account, which only the head uses."""
    own: dict[str, Any] = copy.deepcopy(dict(config))
    own["file_mounts"].pop(ACCOUNT, None)
    own["provider"].update(provider)
    return own


def head_account(cluster: str, values: Mapping[str, str | None]) -> Path:
    """The head's API key, in a file that only its owner reads."""
    path = names.folder(cluster) / "head_account.json"
    text = json.dumps({name: value for name, value in values.items() if value})
    if not path.exists() or path.read_text() != text:
        private(path, text)
    return path


def command() -> str:
    """Which `ray` command is running: up, down, exec...; empty outside of it."""
    import click

    context = click.get_current_context(silent=True)
    return str(context.info_name) if context is not None else ""


@contextmanager
def sentences() -> Iterator[None]:
    """What is refused within a `ray` command is the user's to read: a sentence, no traceback."""
    import click

    try:
        yield
    except (ValueError, ApiError) as error:
        if not command():
            raise
        raise click.ClickException(str(error)) from error


def say(text: str) -> None:
    """Through Ray's own logger of its command line, between its own lines."""
    from ray.autoscaler._private.cli_logger import cli_logger

    for line in text.splitlines():
        cli_logger.print("{}", line)
