"""How many FLOPs per second could a device do, at most? What a run reaches of it is its utilisation
(model FLOPs utilisation, Chowdhery et al. 2022).

GPUs by their makers' data sheets: dense products in bfloat16 or float16 with sums in float32. What
is not listed, and float32 everywhere, is measured: the best of a few large products, on a CPU with
the threads that the process has.
"""

from __future__ import annotations

import time
from functools import cache

import torch

from isoflop.training.precision import DTYPES, has

TERA = 1e12
SHEETS = {  # the first whose words all stand in the device's name
    "B200": 2250 * TERA,
    "H200 NVL": 835 * TERA,
    "H200": 989 * TERA,
    "GH200": 989 * TERA,
    "H100 PCIe": 756 * TERA,
    "H100 NVL": 835 * TERA,
    "H100": 989 * TERA,
    "A100": 312 * TERA,
    "L40S": 362 * TERA,
    "L40": 181 * TERA,
    "L4": 121 * TERA,
    "A10G": 70 * TERA,
    "A10": 125 * TERA,
    "RTX 6000 Ada": 364 * TERA,
    "RTX A6000": 155 * TERA,
    "RTX 4090": 165 * TERA,
    "RTX 3090": 71 * TERA,
}
GIGABYTES = {  # of memory, by the same names; of cards that come with more, those with less
    "B200": 180,
    "H200 NVL": 141,
    "H200": 141,
    "GH200": 96,
    "H100 PCIe": 80,
    "H100 NVL": 94,
    "H100": 80,
    "A100": 40,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
    "A10G": 24,
    "A10": 24,
    "RTX 6000 Ada": 48,
    "RTX A6000": 48,
    "RTX 4090": 24,
    "RTX 3090": 24,
}
SIDES = {"cpu": 512, "cuda": 4096}  # of the products that are timed
TRIES = 5


def listed(name: str) -> float | None:
    """By the data sheet of a GPU, named as people or as its driver do ("H100", "NVIDIA H100 80GB
    HBM3"); None of one that is not known."""
    known = _known(name)
    return SHEETS[known] if known else None


def capacity(name: str) -> int | None:
    """Bytes of memory, by the data sheet of a GPU; None of one that is not known."""
    known = _known(name)
    return GIGABYTES[known] * 10**9 if known else None


def _known(name: str) -> str | None:
    words = name.upper().replace("-", " ").split()
    return next((k for k in SHEETS if all(word in words for word in k.upper().split())), None)


@cache
def peak(device: str, precision: str) -> float:
    """FLOPs per second of one device in the precision that a run's products have there."""
    kind = device.split(":")[0]
    if precision == "auto" and kind == "cuda" and has("bfloat16", device):
        precision = "bfloat16"
    dtype = DTYPES.get(precision, torch.float32)
    known = listed(torch.cuda.get_device_name(device)) if kind == "cuda" else None
    if known is not None and dtype != torch.float32:
        return known
    return _measured(device, SIDES[kind], dtype)


def _measured(device: str, side: int, dtype: torch.dtype) -> float:
    drawn = torch.Generator(device).manual_seed(0)  # the process's own is the run's
    left, right = (
        torch.randn(side, side, device=device, dtype=dtype, generator=drawn) for _ in range(2)
    )
    best = float("inf")
    for _ in range(TRIES):
        _wait(device)
        began = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
