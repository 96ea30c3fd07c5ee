"""What do orchestration, tracking and the report add to a grid of short runs?

A grid of equal runs is trained through Ray, in a storage folder that is thrown away. The ideal is
the time the runs themselves took, spread evenly over the slots; everything else is overhead: the
start of Ray, of the workers and of MLflow, the gaps between two runs, the end. Wall time, since
waiting counts.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from isoflop import record
from isoflop.benchmarks.training import config
from isoflop.campaign import Campaign, Machine
from isoflop.design import Study, grid
from isoflop.orchestration.job import result
from isoflop.plan import throughput
from isoflop.run import AdamW, Evaluation, Rollouts, Run, Text
from models import ZOO

PROMPTS = ("", "def main():\n    ", "import os\n")


def show(points: int, seconds: float) -> int:
    """Run the grid and print where the time went."""
    if points < 1 or seconds <= 0:
        raise ValueError(f"--points {points} --seconds {seconds}: both must be above 0")
    print(f"{points} runs of about {seconds:g} s each ...", flush=True)
    study = _study(points, seconds)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(storage=Path(folder))
        campaign = Campaign.prepare(study, machine, list(study.points), [])
        began = time.time()
        with redirect_stdout(StringIO()):  # its report is thrown away with the folder
            status = campaign.go()
        wall = time.time() - began
        _print(campaign, began, wall)
        started = time.process_time()
        with redirect_stdout(StringIO()):
            campaign.report()
        print(f"report of {len(campaign.jobs)} runs: {time.process_time() - started:.1f} CPU s")
    return status


def _study(points: int, seconds: float) -> Study:
    """Equal runs but for their seeds, long enough to take about `seconds` each on this machine."""
    model, batch_tokens = config(next(iter(ZOO.values())), "4 x 128")
    base: dict[str, Any] = {
        "model": model,
        "optimizer": AdamW(lr=1e-3),
        "batch_tokens": batch_tokens,
    }
    probe = Run(**base, tokens=batch_tokens, data=Text(tokenizer="bytes"))
    per_second = throughput([probe])[model] / model.flops_per_token().training

    def run(*, family: str, budget: int, seed: int) -> Run:
        """One point: all are the same size, since only their number and length matter here."""
        return Run(
            model=type(model)(**{**vars(model), "vocab": 0}),
            optimizer=AdamW(lr=1e-3),
            batch_tokens=batch_tokens,
            tokens=max(batch_tokens, int(per_second * seconds)),
            data=Text(tokenizer="bytes"),
            evaluation=Evaluation(tokens=2**12, times=2),
            rollouts=Rollouts(prompts=PROMPTS, seeds=2, new_tokens=32, captures=2),
            seed=seed,
        )

    axes = grid(family=[model.name], budget=[0], seed=range(points))
    return Study(name="bench-grid", run=run, points=axes, family="family", budget="budget")


def _print(campaign: Campaign, began: float, wall: float) -> None:
    results = [result(job.folder) or {} for job in campaign.jobs]
    spans = sorted((r["started"], r["ended"]) for r in results)
    busy = sum(end - start for start, end in spans)
    slots = len({r["process"] for r in results})
    first, last = spans[0][0] - began, began + wall - max(end for _, end in spans)
    ideal = busy / slots
    print(
        f"\n{len(results)} runs in {slots} processes: "
        f"wall {wall:.1f} s, of them training {ideal:.1f} s"
    )
    print(
        f"  start {first:.1f} s, end {last:.1f} s, between runs {wall - ideal - first - last:.1f} s"
    )
    print(
        f"  overhead {wall / ideal - 1:.0%} of the training, "
        f"{(wall - ideal) / len(results):.2f} s a run"
    )
    missing = len(record.unfinished(campaign.jobs))
    if missing:
        print(f"  {missing} runs did not finish")
