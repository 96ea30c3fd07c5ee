"""Where does the time of a training step go? A few steps under torch's profiler.

In the folder that is given:

    trace.json.gz     every operation, for ui.perfetto.dev or chrome://tracing
    memory.pickle     on a GPU: every allocation, for pytorch.org/memory_viz
    parts.json        the table

On a GPU the parts of a step are NVTX ranges too, for `nsys profile`; with `fine`, so is every
operation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, record_function

from isoflop import objectives
from isoflop.data.rows import Rows
from isoflop.run import Run
from isoflop.training import attending, compiling, optimizer, parametrisation
from isoflop.training.checkpoint import write_json
from isoflop.training.distributed import Ranks
from isoflop.training.means import USUAL, Means
from isoflop.training.precision import LossScale
from isoflop.training.step import PARTS, seed_step, update

WARM = 3  # steps before: memory is laid out, kernels are chosen
STEPS = 6
SHOWN = 10  # operations


class Batches(Protocol):
    def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a step, or one operation. Milliseconds a step."""

    name: str
    milliseconds: float
    share: float
    calls: float  # a step


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What the steps took."""

    folder: Path
    device: str
    step: float  # milliseconds, without the profiler
    tokens_per_second: float
    flops_per_second: float
    peak_bytes: int  # of the device; 0 on a CPU
    parts: tuple[Part, ...]
    operations: tuple[Part, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.step:.1f} ms a step on {self.device}: {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.flops_per_second:.3g} FLOP/s"
            + (f", {self.peak_bytes / 2**20:,.0f} MiB at most" if self.peak_bytes else "")
        ]
        for title, rows in (("part", self.parts), ("operation", self.operations)):
            lines.append(f"\n{title:<34}{'ms a step':>10}{'share':>8}{'calls':>8}")
            lines += [
                f"{row.name[:33]:<34}{row.milliseconds:>10.2f}{row.share:>8.1%}{row.calls:>8.0f}"
                for row in rows
            ]
        return "\n".join([*lines, f"\ntrace   {self.folder / 'trace.json.gz'}  (ui.perfetto.dev)"])


def profile(
    run: Run, batches: Batches, folder: Path, *, fine: bool = False, means: Means = USUAL
) -> Profile:
    """Train a few steps of a resolved run from fresh weights, and keep nothing of them but what
    they took."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = Steps(run, batches, device, means)
    for number in range(WARM):
        steps(number)
    seconds = steps.timed(WARM, STEPS)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if device == "cuda":
            stack.enter_context(_memory(folder / "memory.pickle"))
        if device == "cuda" and fine:
            # Steps of their own: torch marks every operation, or records them, but not both.
            with torch.autograd.profiler.emit_nvtx():  # type: ignore[no-untyped-call]
                for number in range(STEPS):
                    steps(WARM + STEPS + number)
        recorded = stack.enter_context(
            # One cycle only; torch warns unless told that its events are to be kept.
            torch.profiler.profile(activities=_activities(device), acc_events=True)
        )
        for number in range(STEPS):
            steps(WARM + 2 * STEPS + number)
        steps.wait()
    recorded.export_chrome_trace(str(folder / "trace.json.gz"))
    tokens = run.batch_tokens / seconds
    found = Profile(
        folder=folder,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        step=1000 * seconds,
        tokens_per_second=tokens,
        flops_per_second=tokens * run.model.flops_per_token().training,
        peak_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else 0,
        **_tables(recorded.key_averages(), device),
    )
    write_json(folder / "parts.json", {**asdict(found), "folder": str(folder)})
    return found


class Steps:
    """A model in training, asked for one step at a time with its parts marked."""

    def __init__(self, run: Run, batches: Batches, device: str, means: Means = USUAL) -> None:
        torch.manual_seed(run.seed)
        self.run, self.batches, self.ranks = run, batches, Ranks(device=device)
        self.model = run.model.build()
        attending.prepare(self.model, run, device, means)
        parametrisation.initialise(self.model, run.parametrisation)
        self.model = self.model.to(device).train()
        self.forward = compiling.prepared(self.model, run, self.ranks, means)
        self.rows = means.micro_batch
        self.optim = optimizer.build(self.model, run.optimizer, run.parametrisation)
        self.objective = objectives.build(run.objective, run.model)
        self.scale = LossScale.of(run, device, {})

    def __call__(self, number: int) -> None:
        seed_step(self.run, number, self.ranks)
        with _span("data"):
            batch = self.objective.batch(self.batches.batch(number))
        update(
            self.forward, self.optim, self.objective, batch, self.run, self.ranks, _span,
            rows=self.rows, scale=self.scale,
        )  # fmt: skip

    def timed(self, start: int, count: int) -> float:
        """Seconds a step, without the profiler."""
        self.wait()
        began = time.perf_counter()
        for number in range(start, start + count):
            self(number)
        self.wait()
        return (time.perf_counter() - began) / count

    def wait(self) -> None:
        if self.ranks.device == "cuda":
            torch.cuda.synchronize()


@contextmanager
def _span(name: str) -> Iterator[None]:
    """A part of the step, in the trace and, on a GPU, for nsys."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.nvtx.range_push(name)  # type: ignore[no-untyped-call]
    try:
        with record_function(name):
            yield
    finally:
        if on_gpu:
            torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]


@contextmanager
def _memory(file: Path) -> Iterator[None]:
    torch.cuda.memory._record_memory_history()
    try:
        yield
    finally:
        torch.cuda.memory._dump_snapshot(str(file))  # type: ignore[no-untyped-call]
        torch.cuda.memory._record_memory_history(enabled=None)


def _activities(device: str) -> list[ProfilerActivity]:
    both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    return both if device == "cuda" else both[:1]


def _tables(rows: Any, device: str) -> dict[str, tuple[Part, ...]]:
    """Parts by all that is in them; operations by their own time."""
    on_gpu = device == "cuda"
    names = ("data", *PARTS)
    whole = {row.key: row for row in rows if row.key in names}
    total = sum(_spent(row, on_gpu, own=False) for row in whole.values()) or 1.0

    def part(row: Any, own: bool) -> Part:
        spent = _spent(row, on_gpu, own)
        return Part(
            name=row.key, milliseconds=spent / 1000 / STEPS, share=spent / total,
            calls=row.count / STEPS,
        )  # fmt: skip

    others = [row for row in rows if row.key not in names and not row.key.startswith("Profiler")]
    others.sort(key=lambda row: -_spent(row, on_gpu, own=True))
    return {
        "parts": tuple(part(whole[name], own=False) for name in names if name in whole),
        "operations": tuple(part(row, own=True) for row in others[:SHOWN]),
    }


def _spent(row: Any, on_gpu: bool, own: bool) -> float:
    """Microseconds, of the device that does the work."""
    kind = "device" if on_gpu else "cpu"
    return float(getattr(row, f"self_{kind}_time_total" if own else f"{kind}_time_total"))
