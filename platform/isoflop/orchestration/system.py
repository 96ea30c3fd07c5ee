"""What does a run take of its machine? Memory, processor and GPU, beside its losses.

Named as MLflow names system metrics, so that it shows them on a page of their own. Of the process
that leads a run, and of its machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch

from isoflop.run import Run
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record
from isoflop.training.peak import peak

SECONDS = 10.0  # between two looks
MEGA = 1e6


class Meter:
    """Passes a run's records on, with the share of its devices' peak that it reaches, and now and
    then with what it takes of the machine."""

    def __init__(self, run: Run, ranks: Ranks, send: Callable[[list[Record]], None]) -> None:
        self.run, self.ranks, self.send = run, ranks, send
        self.process = psutil.Process()
        self.process.cpu_percent()  # counts from here
        self.looked: float | None = None
        self.utilisation: float | None = None  # the newest

    def __call__(self, records: list[Record]) -> None:
        if not self.ranks.leads:
            return self.send(records)
        told = [{**record, **self._utilisation(record)} for record in records]
        now = time.monotonic()
        if told and (self.looked is None or now - self.looked >= SECONDS):
            self.looked = now
            told[-1] |= {**machine(self.process), **gpu(self.ranks.device)}
        self.send(told)

    def _utilisation(self, record: Record) -> Record:
        if "tokens_per_second" not in record:
            return {}
        reached = record["tokens_per_second"] * self.run.model.flops_per_token().training
        could = peak(self.ranks.device, self.run.precision) * self.ranks.world
        self.utilisation = reached / could
        return {"utilisation": self.utilisation}


def machine(process: psutil.Process) -> Record:
    """`cpu_percent` of a process is since the call before, 100 for each core that it kept busy."""
    whole, own = psutil.virtual_memory(), process.memory_info()
    return {
        "system/process_cpu_percentage": process.cpu_percent(),
        "system/process_memory_megabytes": own.rss / MEGA,
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": (whole.total - whole.available) / MEGA,
        "system/system_memory_usage_percentage": whole.percent,
    }


def gpu(device: str) -> Record:
    """Nothing on a CPU. How busy it is, and its power, where its driver tells (NVIDIA's does)."""
    if not device.startswith("cuda"):
        return {}
    free, total = torch.cuda.mem_get_info(device)
    found = {
        "gpu_memory_usage_megabytes": (total - free) / MEGA,
        "gpu_memory_usage_percentage": 100 * (1 - free / total),
        "gpu_process_memory_megabytes": torch.cuda.memory_allocated(device) / MEGA,
        "gpu_process_peak_memory_megabytes": torch.cuda.max_memory_allocated(device) / MEGA,
    }
    found |= _driver(device)
    return {f"system/{name}": value for name, value in found.items()}


def _driver(device: str) -> Record:
    try:
        from pynvml import NVMLError
    except ModuleNotFoundError:
        return {}
    try:
        busy, power = torch.cuda.utilization(device), torch.cuda.power_draw(device) / 1000
    except (NVMLError, RuntimeError):  # a card, or a share of one, that keeps it to itself
        return {}
    return {"gpu_utilization_percentage": float(busy), "gpu_power_usage_watts": power}
