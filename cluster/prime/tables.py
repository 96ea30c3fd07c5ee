"""What is for rent, what is rented, and what did it cost? As text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from cluster import names
from cluster.file import File, read, targets
from cluster.prime import money
from cluster.prime.account import account
from cluster.prime.api import Client
from cluster.prime.offers import choices, explain, wish
from cluster.prime.records import ENDED, Endpoint, Offer


def offers(
    path: Path, gpus: Sequence[str] | None, count: int | None, *, price: float | None, spot: bool
) -> str:
    """Offers by price; and for each node type of the cluster's file the one that it would take."""
    client = Client(account())
    found = client.offers(gpu_type=list(gpus)) if gpus else client.offers()
    shown = [
        offer
        for offer in sorted(found, key=lambda offer: (offer.price, offer.cloud_id))
        if (count is None or offer.gpu_count == count)
        and (price is None or offer.price <= price)
        and (spot or not offer.spot)
    ]
    text = table(("$/h", "GPUs", "provider", "region", "stock", ""), map(_row, shown))
    return text + "\n\n" + _taken(path, found, client) if path.exists() else text


def status(path: Path) -> str:
    """The nodes of a cluster and what they cost."""
    file = read(path)
    if "nodes" in file.provider:
        return _listed(file)
    limits = money.limits(file.provider.get("limits"))
    client = Client(account())
    pods = [
        pod
        for pod in client.pods()
        if money.belongs(pod.name, file.name) and pod.status not in ENDED
    ]
    bills = list(islice(client.history(), 1000)) if pods else []
    spent = money.spending(file.name, pods, bills, money.now())
    rows = []
    for pod in sorted(pods, key=lambda pod: pod.name):
        state = "ready" if pod.ready else f"{pod.status} {pod.installation}".strip()
        gpus = f"{pod.gpu_count} {pod.gpu_name}"
        rows.append((pod.name, state, gpus, f"{pod.price:.2f}", _door(pod.endpoints[0])))
    text = table(("node", "state", "GPUs", "$/h", "SSH"), rows) if rows else "no nodes"
    return (
        f"{text}\n\n{spent.per_hour:.2f} of {limits.dollars_per_hour:g} $/h, "
        f"{spent.spent:.2f} of {limits.dollars:g} $ spent, "
        f"{spent.hours:.1f} of {limits.hours:g} hours; balance {client.balance():.2f} $"
    )


def _listed(file: File) -> str:
    rows = [(node.name, _door(node.endpoint)) for node in targets(file)]
    return f"{table(('node', 'SSH'), rows)}\n\nnot rented here: no price is known"


def _door(endpoint: Endpoint | None) -> str:
    return f"{endpoint.user}@{endpoint.host} -p {endpoint.port}" if endpoint else "-"


def bill() -> str:
    """The true cost of ended nodes, by cluster: what was charged, not price times hours."""
    dollars: dict[str, float] = defaultdict(float)
    nodes: dict[str, int] = defaultdict(int)
    for entry in islice(Client(account()).history(), 10_000):
        identity = names.parse(entry.name)
        cluster = identity.cluster if identity else "(not by isoflop)"
        dollars[cluster] += entry.dollars
        nodes[cluster] += 1
    rows = [(name, str(nodes[name]), f"{dollars[name]:.2f}") for name in sorted(dollars)]
    return table(("cluster", "nodes", "$"), rows) if rows else "nothing was billed yet"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they must be."""
    lines = [tuple(heads), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    padded = (
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def _taken(path: Path, single: Sequence[Offer], client: Client) -> str:
    lines = []
    for name, values in read(path).types.items():
        if not values.get("node_config"):
            continue  # of a list, not rented
        wanted = wish(values["node_config"])
        found = client.offers(multi_node=True) if wanted.machines > 1 else single
        fit = choices(found, wanted, several=True)
        took = (
            f"{fit[0].cloud_id} at {fit[0].price:.2f} $/h"
            if fit
            else explain(found, wanted, several=True)
        )
        lines.append(f"{name} would take {took}" if fit else f"{name}: nothing fits; {took}")
    return "\n".join(lines)


def _row(offer: Offer) -> tuple[str, ...]:
    notes = ["spot"] * offer.spot
    if offer.prepaid_hours:
        notes.append(f"{offer.prepaid_hours:g} h in advance")
    gpus = f"{offer.gpu_count} {offer.gpu_type}"
    place = f"{offer.region} {offer.country}".strip()
    return f"{offer.price:.2f}", gpus, offer.provider, place, offer.stock, ", ".join(notes)
