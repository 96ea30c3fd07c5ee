"""How many FLOPs do hours or dollars buy, and what does a design cost in them?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isoflop.run import Run
from models.interface import Config


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training FLOPs per second of all devices together: given, or measured model by model."""

    given: float | None = None
    measured: Mapping[Config, float] | None = None  # of one process
    processes: int = 1

    def seconds(self, run: Run, flops: float) -> float:
        """Of all devices together; with several processes a share of what one would need."""
        if self.given is not None:
            return flops / self.given
        assert self.measured is not None
        return flops / self.measured[run.model] / self.processes

    @property
    def source(self) -> str:
        if self.given is not None:
            return f"{self.given:.3g} FLOP/s, as given".replace("e+", "e")
        return f"measured on this machine, {self.processes} processes of one thread"


def measured(runs: Sequence[Run]) -> Speed:
    """A second or two of real steps of each model here; large ones take the largest one's rate."""
    from isoflop.plan import throughput

    return Speed(measured=throughput(runs), processes=os.cpu_count() or 1)


def check(**given: float | None) -> None:
    """Raises ValueError that names the option whose value is not above 0."""
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} is {value}; it must be above 0, and finite")


def hours(hours: float | None, dollars: float | None, price: float | None) -> float | None:
    """What may be spent, in hours of all devices; None where it was said in FLOPs."""
    if dollars is None:
        return hours
    if price is None:
        raise ValueError("--dollars needs --price, in dollars per hour of all devices")
    return dollars / price


def device_memory() -> tuple[float, str]:
    """Bytes of one device, and which one: the first GPU, or this machine's memory shared by as many
    processes as it has cores."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return float(properties.total_memory), str(properties.name)
    cores = os.cpu_count() or 1
    total = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    return total / cores, f"this machine's memory over {cores} processes"
