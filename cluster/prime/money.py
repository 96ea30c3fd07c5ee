"""What does the cluster cost, and may it cost more? Prices, bills and hard limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from cluster import names
from cluster.prime.records import Bill, Pod


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The `limits` of the cluster's file. None of them is ever passed by buying; when one is
    reached, the watch ends the whole cluster."""

    dollars_per_hour: float  # of all nodes together
    dollars: float  # in all
    hours: float  # since the first node
    idle_minutes: float = 30  # with nothing running, the head included

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            wrong = isinstance(value, bool) or not isinstance(value, int | float)
            if wrong or not 0 < value < float("inf"):
                raise ValueError(f"limits: {name} {value!r} must be a number above 0")


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Of one cluster, now."""

    per_hour: float
    spent: float  # dollars: bills of ended nodes, and time so far of the others
    hours: float  # since the first node that still stands


def limits(values: Mapping[str, Any] | None) -> Limits:
    """Raises ValueError if one is missing or unknown: nobody rents without a limit."""
    known = [field.name for field in fields(Limits)]
    given = dict(values or {})
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"limits: {', '.join(unknown)} unknown; known: {', '.join(known)}")
    if missing := [name for name in known[:3] if name not in given]:
        raise ValueError(f"provider.limits: {', '.join(missing)} must be given")
    return Limits(**given)


def spending(cluster: str, pods: Iterable[Pod], bills: Iterable[Bill], now: datetime) -> Spending:
    """What the nodes of a cluster cost. Bills count from the first node that still stands (all of
    them if none does): a cluster of the same name last month is another cluster."""
    standing = [pod for pod in pods if belongs(pod.name, cluster)]
    first = min((pod.created or now for pod in standing), default=None)
    paid = sum(
        bill.dollars
        for bill in bills
        if belongs(bill.name, cluster)
        and (first is None or bill.ended is None or bill.ended >= first)
    )
    running = sum(pod.price * _hours(pod.created or now, now) for pod in standing)
    return Spending(
        per_hour=sum(pod.price for pod in standing),
        spent=paid + running,
        hours=_hours(first, now) if first else 0.0,
    )


def refusal(limits: Limits, now: Spending, *, price: float, balance: float) -> str:
    """Why one more node at `price` dollars per hour is not bought; empty if it may be."""
    if reached := exceeded(limits, now):
        return reached
    if now.per_hour + price > limits.dollars_per_hour + 1e-9:
        return (
            f"{now.per_hour:.2f} + {price:.2f} $/h would pass "
            f"limits.dollars_per_hour {limits.dollars_per_hour:g}"
        )
    if balance < now.per_hour + price:
        return f"the wallet's {balance:.2f} $ would not last an hour"
    return ""


def exceeded(limits: Limits, now: Spending) -> str:
    """Which limit on the whole is reached; empty if none."""
    if now.spent >= limits.dollars:
        return f"{now.spent:.2f} $ spent, limits.dollars is {limits.dollars:g}"
    if now.hours >= limits.hours:
        return f"{now.hours:.1f} hours old, limits.hours is {limits.hours:g}"
    return ""


def belongs(name: str, cluster: str) -> bool:
    identity = names.parse(name)
    return identity is not None and identity.cluster == cluster


def now() -> datetime:
    return datetime.now(UTC)


def _hours(begin: datetime, end: datetime) -> float:
    return max(0.0, (end - begin).total_seconds() / 3600)
