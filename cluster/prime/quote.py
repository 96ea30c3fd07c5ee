"""What will it cost to start this cluster? Said before Ray asks whether to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.keys import ssh_key
from cluster.prime.api import Client
from cluster.prime.money import Limits
from cluster.prime.offers import Wish, choices, explain, wish


def quote(
    types: Mapping[str, Any], head: str, limits: Limits, client: Client, *, several: bool
) -> str:
    """One line for each node type (`available_node_types`), the sum, and the limits."""
    lines, start, full = [], 0.0, 0.0
    for name, values in types.items():
        if not values["node_config"]:
            continue  # the other machines of the head's pod
        wanted = wish(values["node_config"])
        offers = client.offers(multi_node=wanted.machines > 1, gpu_type=wanted.gpu)
        fit = choices(offers, wanted, several=several)
        least, most = values.get("min_workers") or 0, values.get("max_workers", 1)
        if name == head:
            least = most = 1
        count = f"{least} to {most}" if most != least else f"{most}"
        if not fit:
            lines.append(f"{name}: none now; {explain(offers, wanted, several=several)}")
            continue
        best = fit[0]
        start, full = start + least * best.price, full + most * best.price
        lines.append(
            f"{name}: {best.price:.2f} $/h each ({count}; {_machines(wanted)}{best.gpu_count} "
            f"{best.gpu_type}, {best.provider}, {best.region or 'anywhere'}; "
            f"{wanted.most:g} $/h at most)"
        )
    most_of_all = min(full, limits.dollars_per_hour)
    lines.append(f"together: {start:.2f} $/h at first, {most_of_all:.2f} $/h at most")
    lines.append(
        f"limits: {limits.dollars_per_hour:g} $/h, {limits.dollars:g} $ and {limits.hours:g} h in "
        f"all; everything ends after {limits.idle_minutes:g} idle minutes"
    )
    lines.append(f"balance: {client.balance():.2f} $")
    return "\n".join(lines)


def _machines(wanted: Wish) -> str:
    return f"{wanted.machines} machines with " if wanted.machines > 1 else ""


def registered(client: Client, cluster: str) -> str:
    """The id of the cluster's SSH key at the API, registered if it is not yet."""
    public = ssh_key(cluster).with_suffix(".pub").read_text().strip()
    core = public.split()[1]
    for key in client.ssh_keys():
        if core in str(key.get("publicKey")).split():
            return str(key["id"])
    return client.add_ssh_key(f"isoflop-{cluster}", public)
