"""What could this device do at most? Its products and its memory, by the data sheet and measured.

    FLOP/s      dense products of matrices in bfloat16 on a GPU, in float32 elsewhere
    bytes/s     memory read and written by a large copy

The sheets are the makers' (NVIDIA's, without sparsity). A GPU that is not among them, and any CPU,
is judged by what is measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from isoflop.training import peak

# Bytes per second of the first whose words all stand in the device's name. FLOPs per second of the
# same devices are in `training.peak`.
BANDWIDTHS = {
    "B200": 8.0e12,
    "H200": 4.8e12,
    "GH200": 4.0e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
    "A100 40GB": 1.555e12,
    "A100": 2.039e12,
    "L40S": 0.864e12,
    "L4": 0.3e12,
    "RTX 4090": 1.008e12,
}
SIDE = {"cuda": 8192, "cpu": 768}  # of the square matrices
COPIED = {"cuda": 2**30, "cpu": 2**26}  # bytes, more than any cache holds


@dataclass(frozen=True, kw_only=True)
class Limits:
    """FLOPs and bytes per second: on the sheet (None: not known) and as measured."""

    name: str
    sheet_flops: float | None
    sheet_bytes: float | None
    flops: float
    bytes: float

    @property
    def most_flops(self) -> float:
        """What a utilisation is a share of."""
        return self.sheet_flops or self.flops

    @property
    def most_bytes(self) -> float:
        return self.sheet_bytes or self.bytes

    def __str__(self) -> str:
        parts = [f"measured {self.flops / 1e12:,.2f} TFLOP/s and {self.bytes / 1e9:,.0f} GB/s"]
        if self.sheet_flops:
            parts.append(f"on its data sheet {self.sheet_flops / 1e12:,.0f} TFLOP/s")
        if self.sheet_bytes:
            parts.append(f"and {self.sheet_bytes / 1e9:,.0f} GB/s")
        return f"{self.name}: {'; '.join(parts)}"


def limits(device: str) -> Limits:
    """Raises ValueError where there is no such device."""
    kind = check(device)
    name = torch.cuda.get_device_name(device) if kind == "cuda" else "CPU"
    flops, size = listed(name)
    return Limits(
        name=name, sheet_flops=flops, sheet_bytes=size,
        flops=_products(device, kind), bytes=_copies(device, kind),
    )  # fmt: skip


def check(device: str) -> str:
    """The kind of a device. Raises ValueError for one that is not there."""
    kind = device.split(":")[0]
    if kind not in SIDE:
        raise ValueError(f"--device is {device!r}; it must be one of {', '.join(SIDE)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device is {device!r}, but torch finds no CUDA device here")
    return kind


def listed(name: str) -> tuple[float | None, float | None]:
    """FLOP/s and bytes/s on the sheet of a GPU with this name."""
    words = name.upper().replace("-", " ").split()
    known = (n for n in BANDWIDTHS if all(word in words for word in n.upper().split()))
    return peak.listed(name), next((BANDWIDTHS[name] for name in known), None)


def settled(device: str) -> float:
    """The time, once the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(act: Callable[[], object], device: str, times: int) -> float:
    """What one call takes, of `times` in a row after one that warms up."""
    act()
    began = settled(device)
    for _ in range(times):
        act()
    return (settled(device) - began) / times


def _products(device: str, kind: str) -> float:
    side, dtype = SIDE[kind], torch.bfloat16 if kind == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return float(2 * side**3 / min(seconds(lambda: left @ right, device, 5) for _ in range(3)))


def _copies(device: str, kind: str) -> float:
    source = torch.empty(COPIED[kind], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    taken = min(seconds(lambda: target.copy_(source), device, 5) for _ in range(3))
    return 2 * COPIED[kind] / taken
