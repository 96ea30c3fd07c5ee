"""Which of the offers are taken, in which order, and why not the others? Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from cluster.prime.records import Offer

CPU = "CPU_NODE"
# Rented as containers behind a port map: one of them can be a cluster, two cannot.
CONTAINERS = frozenset({"runpod", "akash"})
SPOT = ("never", "allowed", "only")
_GONE = frozenset({"unavailable", "out of stock", "out_of_stock", "none"})


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The `node_config` of a node type: what to rent, and what it may cost."""

    gpu: tuple[str, ...]  # as the API names them (H100_80GB), any of them; CPU_NODE: none
    price: float  # dollars per hour of one node at most
    count: int = 1  # GPUs of one node
    machines: int = 1  # nodes that are rented as one pod, with a private network between them
    spot: str = "never"
    prepaid: bool = False  # also offers that charge hours in advance
    regions: tuple[str, ...] = ()  # empty: all, as below
    countries: tuple[str, ...] = ()
    data_centers: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    not_providers: tuple[str, ...] = ()
    security: str = ""  # secure_cloud or community_cloud; empty: either
    sockets: tuple[str, ...] = ()
    memory: int = 0  # GB of each GPU at least
    image: str = "ubuntu_22_cuda_12"
    disk: int = 0  # GB; 0: as the offer has it
    disks: tuple[str, ...] = ()  # ids of disks to attach

    def __post_init__(self) -> None:
        if not self.gpu or self.count < 1 or self.machines < 1:
            raise ValueError(
                f"node_config: gpu {self.gpu}, count {self.count} and machines {self.machines}: "
                "at least one"
            )
        if not self.price > 0:
            raise ValueError(f"node_config: price {self.price} must be dollars per hour above 0")
        if self.spot not in SPOT:
            raise ValueError(f"node_config: spot {self.spot!r}; allowed: {', '.join(SPOT)}")

    @property
    def most(self) -> float:
        """Dollars per hour of all machines that come together, at most."""
        return self.price * self.machines

    @property
    def gpus(self) -> int:
        """Of all machines that come together: multi-node offers count them so."""
        return self.count * self.machines


def wish(values: Mapping[str, Any]) -> Wish:
    """The wish in a node type's `node_config`. Raises ValueError naming what is not known, missing
    or of another type."""
    kinds = {field.name: str(field.type) for field in fields(Wish)}
    if unknown := sorted(values.keys() - kinds.keys()):
        raise ValueError(f"node_config: {', '.join(unknown)} unknown; known: {', '.join(kinds)}")
    if missing := [name for name in ("gpu", "price") if name not in values]:
        raise ValueError(f"node_config: {' and '.join(missing)} must be given")
    return Wish(**{name: _value(name, kinds[name], value) for name, value in values.items()})


def choices(offers: Iterable[Offer], wish: Wish, *, several: bool) -> list[Offer]:
    """The offers that fit, the one to try first at the front: plentiful before scarce at the same
    price, cheap before dear. `several`: the node must reach others, so it is no container."""
    fit = [offer for offer in offers if not refusal(offer, wish, several=several)]
    return sorted(fit, key=lambda o: (o.price, o.stock.lower() == "low", o.minutes, o.cloud_id))


def refusal(offer: Offer, wish: Wish, *, several: bool) -> str:
    """Why an offer is not taken; empty if it is."""
    reasons = (
        (offer.gpu_type not in wish.gpu, f"not {' or '.join(wish.gpu)}"),
        (offer.gpu_type != CPU and offer.gpu_count != wish.gpus, f"not {wish.gpus} GPUs"),
        (offer.gpu_memory < wish.memory, f"less than {wish.memory} GB a GPU"),
        (offer.stock.lower() in _GONE, "out of stock"),
        (not 0 < offer.price <= wish.most, f"above {wish.most:g} $/h"),
        (offer.prepaid_hours > 0 and not wish.prepaid, "hours paid in advance"),
        (offer.spot and wish.spot == "never", "spot"),
        (not offer.spot and wish.spot == "only", "not spot"),
        (_outside(offer.region, wish.regions), "another region"),
        (_outside(offer.country, wish.countries), "another country"),
        (_outside(offer.data_center, wish.data_centers), "another data center"),
        (_outside(offer.provider, wish.providers), "another provider"),
        (offer.provider in wish.not_providers, "a provider left out"),
        (bool(wish.security) and offer.security != wish.security, f"not {wish.security}"),
        (_outside(offer.socket, wish.sockets), "another socket"),
        (bool(offer.images) and wish.image not in offer.images, f"no image {wish.image}"),
        (
            several and offer.provider in CONTAINERS,
            "containers behind a port map, which other nodes cannot reach",
        ),
    )
    return next((reason for refused, reason in reasons if refused), "")


def explain(offers: Iterable[Offer], wish: Wish, *, several: bool) -> str:
    """One sentence on why nothing fits."""
    counts = Counter(refusal(offer, wish, several=several) for offer in offers)
    counts.pop("", None)
    if not counts:
        return "nothing is for rent"
    wanted = set(counts) - {f"not {' or '.join(wish.gpu)}"}
    shown = [(reason, n) for reason, n in counts.most_common() if not wanted or reason in wanted]
    return "of what is for rent, " + ", ".join(f"{n}: {reason}" for reason, n in shown)


def order(
    offer: Offer, wish: Wish, *, name: str, team: str | None, ssh_key: str | None
) -> dict[str, Any]:
    """The body that buys an offer. The highest price is always sent: some providers refuse without
    it, and it is the guard against one that changed since the offer was read."""
    pod: dict[str, Any] = {
        "name": name,
        "cloudId": offer.cloud_id,
        "gpuType": offer.gpu_type,
        "socket": offer.socket,
        "gpuCount": offer.gpu_count,
        "maxPrice": wish.most,
        "image": wish.image,
        "dataCenterId": offer.data_center or None,
        "country": offer.country or None,
        "security": offer.security or None,
        "diskSize": wish.disk or None,
        "sshKeyId": ssh_key,
        "autoRestart": False,
    }
    body: dict[str, Any] = {
        "pod": {key: value for key, value in pod.items() if value is not None},
        "provider": {"type": offer.provider},
    }
    if wish.disks:
        body["disks"] = list(wish.disks)
    if team:
        body["team"] = {"teamId": team}
    return body


def _outside(value: str, allowed: tuple[str, ...]) -> bool:
    return bool(allowed) and value not in allowed


def _value(name: str, kind: str, value: Any) -> Any:
    """YAML's values, as the fields have them: a single word may stand for a list of one."""
    if kind.startswith("tuple"):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items):
            raise ValueError(f"node_config: {name} {value!r} must be a name or a list of names")
        return tuple(items)
    allowed = {"float": (int, float), "int": int, "bool": bool, "str": str}[kind]
    wrong_bool = isinstance(value, bool) and kind != "bool"
    if wrong_bool or not isinstance(value, allowed):  # type: ignore[arg-type]
        raise ValueError(f"node_config: {name} {value!r} must be of type {kind}")
    return value
