"""How does a prediction come before its run? `--preregister` holds the largest budget back.

A study starts its biggest runs first, so that none is left for the end; to predict them from the
others they must come last. `stages` trains the smaller runs, writes down what their law says of the
largest budget (`scaling.register`), and only then gives those runs out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop import record
from isoflop.orchestration.job import Job
from isoflop.orchestration.staffing import makespan
from isoflop.scaling import register
from isoflop.scaling.files import put
from isoflop.scaling.holdout import APART

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.campaign import Campaign
    from isoflop.design import Study


def stages(
    campaign: Campaign, left: list[Job], say: Callable[[str], None] = print
) -> Iterator[list[Job]]:
    """What is `left`, first the runs below the study's largest budget, then those of it. Between
    the two the predictions are written; the caller stops asking when the study is stopped."""
    jobs = campaign.jobs
    top = max(job.run.training_flops for job in jobs) / APART
    largest = [job for job in left if job.run.training_flops > top]
    smaller = [job for job in left if job.run.training_flops <= top]
    if smaller:
        if largest:
            say(_held(smaller, largest))
        yield smaller
    fresh = [job for job in largest if not (job.folder / "run.json").exists()]
    if len(fresh) < len(largest):
        say(f"{len(largest) - len(fresh)} of the largest runs have begun before: not predicted")
    if fresh:
        write(campaign.folder, jobs, fresh, campaign.study, say)
    if largest:
        yield largest


def write(
    folder: Path, jobs: list[Job], waiting: list[Job], study: Study, say: Callable[[str], None]
) -> None:
    """Register the losses of `waiting`, by the finished ones of `jobs`."""
    from isoflop.report.analysis import judge

    unit, table, _ = judge(study.objective, record.table(jobs), {})
    names = {job.run.identity for job in waiting}
    ahead = table[table["run"].isin(names)]
    found, refused = register.predict(
        waiting[0].study, table, ahead, family=f"axis.{study.family}", unit=unit
    )
    for prediction in found:
        if register.register(folder, prediction):
            say(
                f"predicted: {prediction.label}: {prediction.loss:.3f} {prediction.unit} "
                f"[{prediction.low:.3f}, {prediction.high:.3f}] from {prediction.fitted} runs, "
                f"sha256 {prediction.hash[:12]}"
            )
    for name, refusal in refused.items():
        say(f"no prediction for {name}: {refusal}")


def scores(folder: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, str | None]:
    """The run table with what was predicted of its runs, `predictions.csv` beside it, and one
    sentence on all predictions of the storage; None where there are none."""
    scored = register.scores(folder)
    if not scored:
        return table, None
    found = register.frame(scored)
    put(folder / "predictions.csv", found.to_csv(index=False).encode())
    columns = {"loss": "predicted", "low": "predicted_low", "high": "predicted_high"}
    known = found[found["genuine"]].set_index("run")[list(columns)].rename(columns=columns)
    calibration = register.calibration(register.storage_scores(folder.parent))
    assert calibration is not None
    return table.join(known, on="run"), register.described(calibration)


def _held(smaller: list[Job], largest: list[Job]) -> str:
    """What the order costs: processors that are free at the end of the first stage wait."""
    at_once = os.cpu_count() or 1
    flops = [[float(job.run.training_flops) for job in part] for part in (smaller, largest)]
    both = sum(makespan(part, at_once) for part in flops)
    longer = both / makespan([*flops[0], *flops[1]], at_once) - 1
    return (
        f"{len(largest)} runs of the largest budget wait for {len(smaller)} smaller ones and their "
        f"prediction: about {longer:.0%} more wall time with {at_once} at once, no more FLOPs"
    )
