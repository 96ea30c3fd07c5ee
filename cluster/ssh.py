"""How does Ray's launcher reach a node? By SSH, on the port and as the user that this node has.

Ray's own runner knows one user, port 22, and trusts any host. Here each node has its own, and its
host key is pinned the first time: under the node's id, since addresses and ports are given to
others later.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.autoscaler._private.command_runner import SSHCommandRunner

from cluster.options import exports, options
from cluster.prime.records import Endpoint


class Runner(SSHCommandRunner):  # type: ignore[misc]  # Ray's classes are untyped
    """Ray's runner with a port, a pinned host key, and variables before every command."""

    def __init__(
        self,
        *,
        endpoint: Callable[[], Endpoint | None],
        variables: Callable[[], Mapping[str, str]],
        hosts: Path,
        **ray: Any,
    ) -> None:
        """`endpoint` and `variables` are asked when they are needed: a new node has neither."""
        super().__init__(**ray)
        self._endpoint = endpoint
        self._variables = variables
        self.ssh_options.arg_dict |= options(self.node_id, hosts)

    def _get_node_ip(self) -> str | None:
        """Where SSH goes. What Ray's own traffic uses is the provider's internal_ip."""
        found = self._endpoint()
        return None if found is None else found.host

    def _get_ssh_target(self) -> str:
        target: str = super()._get_ssh_target()
        if found := self._endpoint():
            self.ssh_user = found.user
            self.ssh_options.arg_dict["Port"] = found.port
        return target

    def run(
        self,
        cmd: str | None = None,
        *args: Any,
        environment_variables: Mapping[str, object] | None = None,
        ssh_options_override_ssh_key: str = "",
        **others: Any,
    ) -> Any:
        """`ssh_options_override_ssh_key` would build options without port and pin: the key that it
        names is this cluster's anyway."""
        if cmd:
            self._get_ssh_target()  # waits for the node, which then has an address to export
            cmd = exports({**self._variables(), **(environment_variables or {})}) + cmd
        return super().run(cmd, *args, **others)

    def remote_shell_command_str(self) -> str:
        target = self._get_ssh_target()
        arguments = self.ssh_options.to_ssh_options_list(timeout=60)
        return shlex.join(["ssh", *arguments, f"{self.ssh_user}@{target}"]) + "\n"
