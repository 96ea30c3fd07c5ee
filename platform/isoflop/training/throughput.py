"""How fast does a model train on this device, and in how much memory? One batch size at a time.

A few steps are taken to warm (memory is laid out, kernels are chosen or compiled) and then timed.
Memory is the highest there was, weights and optimizer included: of a GPU as torch counts it, of a
processor as the resident memory of this process grew. Utilisation compares with one large product
of matrices in the same precision on the same device, the most that it is known to reach here.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from isoflop.run import Run
from isoflop.training.means import Means
from isoflop.training.micro import exhausted, free
from isoflop.training.precision import autocast
from isoflop.training.profiling import Batches, Steps

WARM = 2
BLOCKS = 3  # timed apart; the middle one counts
LARGE = {"cpu": 1024, "cuda": 8192}  # the side of the matrices of one large product


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one batch size came to; without numbers where it was not measured, and why."""

    rows: int
    tokens: int  # of a step
    milliseconds: float | None = None  # a step
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    of_product: float | None = None  # of what one large product reaches here
    peak_bytes: int | None = None
    note: str = ""


def measure(run: Run, batches: Batches, device: str, means: Means, seconds: float) -> Speed:
    """Of a resolved run, timed for about so long. Out of memory is a finding."""
    try:
        return _measured(run, batches, device, means, seconds)
    except (RuntimeError, MemoryError) as error:
        if not exhausted(error):
            raise
    free(device)
    return Speed(rows=run.rows, tokens=run.batch_tokens, note="out of memory")


def first_step(run: Run, batches: Batches, device: str) -> None:
    """What a process loads at its first step of a kind is not a batch's memory."""
    with suppress(torch.OutOfMemoryError):
        Steps(run, batches, device)(0)


def _measured(run: Run, batches: Batches, device: str, means: Means, seconds: float) -> Speed:
    peak = peak_of(device)
    steps = Steps(run, batches, device, means)
    for number in range(WARM):
        steps(number)
    once = steps.timed(WARM, 1)
    count = max(1, round(seconds / once / BLOCKS))
    blocks = [steps.timed(WARM + 1 + k * count, count) for k in range(BLOCKS)]
    step = statistics.median(blocks)
    flops = run.batch_tokens * run.model.flops_per_token().training / step
    return Speed(
        rows=run.rows,
        tokens=run.batch_tokens,
        milliseconds=1000 * step,
        tokens_per_second=run.batch_tokens / step,
        flops_per_second=flops,
        of_product=flops / product_speed(device, run.precision),
        peak_bytes=peak(),
    )


@cache
def product_speed(device: str, precision: str) -> float:
    """FLOPs a second of one large product of matrices."""
    side = LARGE[device.split(":")[0]]
    a = torch.randn(side, side, device=device)
    seconds = []
    with torch.no_grad(), autocast(precision, device):
        b = a.to((a @ a).dtype)
        for _ in range(7):
            _wait(device)
            began = time.perf_counter()
            b @ b
            _wait(device)
            seconds.append(time.perf_counter() - began)
    return float(2 * side**3 / min(seconds[2:]))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_of(device: str) -> Callable[[], int | None]:
    """Begin to watch memory; what is given says the peak since then, None where nobody knows."""
    free(device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    with suppress(AttributeError, OSError):  # not glibc's allocator
        ctypes.CDLL(None).malloc_trim(0)  # what earlier sizes left behind would hide this one's
    try:
        Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
        before = _status("VmRSS")
    except OSError:  # not Linux
        return lambda: None
    return lambda: max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


@dataclass(frozen=True, kw_only=True)
class Advice:
    """From what batch on more rows only take memory."""

    useful: Speed
    best: Speed
    last: bool  # nothing larger was tried: the end may not have been reached

    def __str__(self) -> str:
        rate, most = self.useful.tokens_per_second or 0.0, self.best.tokens_per_second or 1.0
        words = (
            f"{self.useful.rows} rows ({self.useful.tokens:,} tokens) reach {rate:,.0f} tokens/s, "
            f"{rate / most:.0%} of the best"
        )
        if self.last:
            return f"{words}; it is the largest that was tried"
        return f"{words}; larger batches take memory and gain nothing"


ENOUGH = 0.95  # of the best rate


def advise(speeds: list[Speed]) -> Advice | None:
    """The largest useful batch of one device, model and precision: the smallest that reaches nearly
    the best rate. None where nothing was measured."""
    known = sorted((s for s in speeds if s.tokens_per_second), key=lambda s: s.rows)
    if not known:
        return None
    best = max(known, key=lambda s: s.tokens_per_second or 0.0)
    enough = ENOUGH * (best.tokens_per_second or 0.0)
    useful = next(s for s in known if (s.tokens_per_second or 0.0) >= enough)
    return Advice(useful=useful, best=best, last=useful is known[-1])
