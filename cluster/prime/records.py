"""What does Prime Intellect say about offers, pods and bills? Its answers, read leniently.

Every list of values that the API documents (statuses, providers, regions, images) grows, so unknown
ones are kept as they are; only fields without which nothing can be decided are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

ENDED = frozenset({"TERMINATED", "DELETING"})
BROKEN = frozenset({"STOPPED", "ERROR"})  # still billed, and nothing starts them again
_SSH = re.compile(r"^(?:ssh\s+)?(?P<user>[\w.-]+)@(?P<host>[\w.:-]+)(?:\s+-p\s+(?P<port>\d+))?$")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a node's SSH server answers."""

    user: str
    host: str
    port: int = 22


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What can be rented now. Prices are dollars per hour for the whole offer."""

    cloud_id: str
    gpu_type: str
    gpu_count: int
    provider: str
    price: float
    socket: str = "PCIe"
    gpu_memory: int = 0  # GB of each
    region: str = ""
    country: str = ""
    data_center: str = ""
    security: str = ""
    stock: str = "Available"
    spot: bool = False
    prepaid_hours: float = 0  # charged in advance
    images: tuple[str, ...] = ()
    minutes: float = 0  # until it is ready, as the provider says


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A rented machine, or several rented as one (`endpoints` has one entry for each)."""

    id: str
    name: str
    status: str
    price: float  # dollars per hour while it stands
    endpoints: tuple[Endpoint | None, ...] = (None,)
    addresses: tuple[str | None, ...] = (None,)
    installation: str = ""
    failure: str = ""
    created: datetime | None = None
    provider: str = ""
    gpu_name: str = ""
    gpu_count: int = 0
    mapped_ports: bool = False  # a container behind a port map: only those ports can be reached

    @property
    def ready(self) -> bool:
        """SSH answers and the image is installed, on all machines of the pod."""
        installed = self.installation in ("", "FINISHED")
        return self.status == "ACTIVE" and installed and all(self.endpoints)


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a pod that has ended cost in all, in dollars, as it was charged."""

    id: str
    name: str
    dollars: float
    created: datetime | None
    ended: datetime | None


def offer(values: Mapping[str, Any]) -> Offer | None:
    """The offer in one item of /availability/gpus; None if it has no price, so cannot be bought."""
    prices = values.get("prices") or {}
    price = prices.get("onDemand")
    price = prices.get("communityPrice") if price is None else price
    if price is None or not values.get("cloudId"):
        return None
    return Offer(
        cloud_id=str(values["cloudId"]),
        gpu_type=str(values.get("gpuType") or ""),
        gpu_count=int(values.get("gpuCount") or 0),
        provider=str(values.get("provider") or ""),
        price=float(price),
        socket=str(values.get("socket") or "PCIe"),
        gpu_memory=int(values.get("gpuMemory") or 0),
        region=str(values.get("region") or ""),
        country=str(values.get("country") or ""),
        data_center=str(values.get("dataCenter") or ""),
        security=str(values.get("security") or ""),
        stock=str(values.get("stockStatus") or "Available"),
        spot=bool(values.get("isSpot")),
        prepaid_hours=float(values.get("prepaidTime") or 0),
        images=tuple(str(image) for image in values.get("images") or ()),
        minutes=float(values.get("provisioningTime") or 0),
    )


def pod(values: Mapping[str, Any]) -> Pod:
    """The pod in one answer of /pods/. Raises ValueError if it has no id or status."""
    if not values.get("id") or not values.get("status"):
        raise ValueError(f"a pod without id or status: {sorted(values)}")
    endpoints = tuple(endpoint(text) for text in _listed(values.get("sshConnection")))
    ports = values.get("primePortMapping") or []
    return Pod(
        id=str(values["id"]),
        name=str(values.get("name") or ""),
        status=str(values["status"]).upper(),
        price=_price(values),
        endpoints=endpoints,
        addresses=tuple(_listed(values.get("ip"))),
        installation=str(values.get("installationStatus") or "").upper(),
        failure=str(values.get("installationFailure") or ""),
        created=moment(values.get("createdAt")),
        provider=str(values.get("providerType") or ""),
        gpu_name=str(values.get("gpuName") or ""),
        gpu_count=int(values.get("gpuCount") or 0),
        mapped_ports=any(port.get("internal") != port.get("external") for port in ports),
    )


def bill(values: Mapping[str, Any]) -> Bill:
    """The cost in one item of /pods/history."""
    return Bill(
        id=str(values.get("id") or ""),
        name=str(values.get("name") or ""),
        dollars=float(values.get("totalBilledPrice") or 0),
        created=moment(values.get("createdAt")),
        ended=moment(values.get("terminatedAt")),
    )


def endpoint(text: str | None) -> Endpoint | None:
    """`user@host -p port`, as the API writes it; None while there is none. The parts end in an SSH
    command line, so anything else in them is refused with ValueError."""
    if not text:
        return None
    found = _SSH.match(text.strip())
    if not found or found["user"].startswith("-") or found["host"].startswith("-"):
        raise ValueError(f"sshConnection {text!r} is not of the form user@host -p port")
    return Endpoint(user=found["user"], host=found["host"], port=int(found["port"] or 22))


def moment(text: str | None) -> datetime | None:
    """A time of the API; without a zone it is UTC."""
    if not text:
        return None
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _price(values: Mapping[str, Any]) -> float:
    """A stopped pod without a price of its own costs the full one."""
    full = float(values.get("priceHr") or 0)
    if str(values["status"]).upper() == "STOPPED" and values.get("stoppedPriceHr") is not None:
        return float(values["stoppedPriceHr"])
    return full


def _listed(value: Any) -> list[str | None]:
    """One machine gives a value, several a list (of None while they start)."""
    if isinstance(value, list):
        return [item or None for item in value] or [None]
    return [value or None]
