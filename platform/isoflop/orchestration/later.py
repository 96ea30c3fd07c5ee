"""How does a run get the rollouts that its budget had no time for? When the study's runs are over.

The weights of step 0 are drawn again from the seed, those of the end are kept, so the rows are the
ones that the run would have written itself. They take no time from any training: a study trains all
its runs first, and one that is ended early, by a limit or by hand, has spent nothing on them. The
run's result then tells what they took, apart from what captures took while it trained.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from isoflop.data.mixture import parts
from isoflop.orchestration.backfill import Ended
from isoflop.orchestration.capturing import LATE, asked, captures, dated
from isoflop.orchestration.job import (
    FINAL,
    Job,
    conclude,
    execute,
    in_order,
    last_capture,
    result,
)
from isoflop.training.checkpoint import write_json
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Capture, Record
from isoflop.training.process import keep_to, settle

Beside = Callable[[Job, Ranks], Capture]


def waits(job: Job) -> list[int]:
    """The steps of an ended run whose captures were put off."""
    values = result(job.folder) or {}
    return list(values.get("captures_waiting", ())) if values.get("status") in FINAL else []


def carry_out(
    job: Job,
    ranks: Ranks,
    report: Callable[[list[Record]], None],
    beside: Beside | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Train the run; or, where it has ended, ask what it put off."""
    if not job.late:
        return execute(job, ranks, report, beside, warnings)
    if not ranks.leads:  # one process asks all: the rows do not depend on how many there are
        return result(job.folder) or {}
    settle(job.threads)
    keep_to(ranks.device, job.means.gpu)
    return complete(job, ranks.device, report)


def complete(
    job: Job, device: str, report: Callable[[list[Record]], None] = lambda records: None
) -> dict[str, Any]:
    """Make the captures that wait, and add them to the run's history and result, which is returned.

    What fails is a warning in the result: the run has ended well, and the next command tries again.
    Where none waits any more, as after a process that died when it had made them, nothing is done.
    """
    if job.mirror:
        job.mirror.begin(job.folder, [part.folder for part in parts(job.prepared).values()])
    values, began = result(job.folder) or {}, time.perf_counter()
    if not waits(job):
        return values
    try:
        records = _asked(job, device)
        history = in_order([*json.loads((job.folder / "history.json").read_text()), *records])
        write_json(job.folder / "history.json", history)
    except Exception as error:
        (job.folder / "traceback.txt").write_text(traceback.format_exc())
        why = f"rollouts that waited for the end of the study failed: {type(error).__name__}: "
        return {**values, "warnings": [f"{why}{error}".splitlines()[0]]}
    report(records)
    return conclude(
        job,
        {
            **values,
            "captures_waiting": [],
            "captures_later": len(records),
            "later_seconds": time.perf_counter() - began,
            "rollouts": last_capture(history),
            "warnings": [],
        },
    )


def _asked(job: Job, device: str) -> list[Record]:
    run, folder = job.run, job.folder
    made = captures(
        run, job.prepared, folder / "rollouts", Ranks(device=device), study=job.study, axes=job.axes
    )
    ended = Ended(folder=folder, run=run, study=job.study, axes=job.axes)
    records = []
    for step in waits(job):
        kinds = {one.spec.weights for one in made}
        record, _ = asked(made, ended.at(step, kinds, device), run, step)
        records.append(dated(run, step, {LATE: 1.0, **record}))
    return records
