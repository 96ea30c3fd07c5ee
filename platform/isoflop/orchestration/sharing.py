"""How many points can share one GPU? As many as its memory holds, at most eight.

A small model leaves a GPU idle between its kernels, and another point can use it meanwhile. What a
point takes is the peak that one of the same shape had when it finished, or else what
`training.memory` counts; each process then keeps to its share (`training.process.keep_to`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from isoflop.orchestration.job import Job, result
from isoflop.run import Run
from isoflop.training.memory import memory, state
from isoflop.training.micro import FLOPS_PER_BYTE

POINTS = (
    8,
    6,
    4,
    3,
    2,
)  # that may share a GPU; few numbers, so that processes fit their next point
CONTEXT = 700 * 2**20  # bytes that CUDA and its libraries take for each process
SCATTER = 1.15  # over a measured peak: fragments, and captures of rollouts that come later
WHOLE = 0.95  # of a GPU's memory that may be given away


@dataclass(frozen=True)
class Sharing:
    """A GPU of `total` bytes, and the peaks of what has finished, by shape."""

    total: int
    peaks: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def learnt(total: int, jobs: Iterable[Job]) -> Sharing:
        """From the results of a study's jobs, as far as they took their batches whole."""
        peaks: dict[str, int] = {}
        for job in jobs:
            values = result(job.folder) or {}
            peak = values.get("peak_bytes")
            if peak and values.get("accumulated") == 1 and values.get("workers") == 1:
                name = shape(job.run)
                peaks[name] = max(peak, peaks.get(name, 0))
        return Sharing(total, peaks)

    def points(self, run: Run) -> int:
        """How many like this one fit; 1 where it is alone."""
        room = WHOLE * self.total
        return next((n for n in POINTS if n * (self._taken(run, n) + CONTEXT) <= room), 1)

    def share(self, run: Run) -> float:
        """Of the GPU's memory that torch may use for this run: without what CUDA takes."""
        number = self.points(run)
        return 1.0 if number == 1 else WHOLE / number - CONTEXT / self.total

    def _taken(self, run: Run, number: int) -> float:
        """Bytes: measured, or bounded where that is enough for so many points, or counted."""
        known = self.peaks.get(shape(run))
        if known:
            return SCATTER * known
        step = run.batch_tokens * run.model.flops_per_token().training
        bound = state(run) + step / FLOPS_PER_BYTE
        enough = number * (bound + CONTEXT) <= WHOLE * self.total
        return bound if enough else float(memory(run).needed)


def shape(run: Run) -> str:
    """Runs of one shape take equally much memory: they differ in rates, seeds, lengths alone."""
    values: dict[str, Any] = run.as_json()
    kept = {name: values[name] for name in ("model", "objective", "batch_tokens", "precision")}
    extra = {"optimizer": run.optimizer.name, "ema": run.ema > 0, "rows": asdict(run.data)["rows"]}
    return json.dumps({**kept, **extra}, sort_keys=True)
