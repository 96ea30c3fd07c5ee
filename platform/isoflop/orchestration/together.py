"""Which runs of a study train as one, and how are they carried out?

On a GPU, small runs of one shape that differ in learning rate, seed or text are taken together
(see `training.together`): one process, one pass for all of them, a folder and a result for each. On
a CPU nothing is gained, so that they train one by one unless a user asks. What goes wrong with one
of them is no concern of the others: then each is carried out by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from isoflop.orchestration.job import (
    FINAL,
    Begun,
    Job,
    begin,
    circumstances,
    conclude,
    execute,
    result,
)
from isoflop.orchestration.later import carry_out
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Capture, Record
from isoflop.training.memory import memory
from isoflop.training.micro import free
from isoflop.training.process import settle
from isoflop.training.together import Member, shape, train_together

MOST = 8  # on a GPU, where the user says nothing
SMALL = 10_000_000  # parameters: of larger models, one keeps a GPU as busy as eight
ROOM = 8 * 2**30  # bytes: a share of any GPU that is rented

Report = Callable[[Job, list[Record]], None]


def packs(jobs: list[Job], *, at_once: int, gpu: bool) -> list[list[Job]]:
    """The jobs, biggest first so that no long one is left for the end, and together those that
    belong so: as many as their `means` say, and never so many that a place stays empty."""
    groups: dict[Any, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: -job.run.training_flops):
        groups.setdefault(_key(job, gpu), []).append(job)
    found = []
    for key, alike in groups.items():
        most = min(_most(alike[0], gpu), -(-len(alike) // at_once)) if key[0] else 1
        found += [alike[start : start + most] for start in range(0, len(alike), most)]
    return sorted(found, key=lambda pack: -sum(job.run.training_flops for job in pack))


def _key(job: Job, gpu: bool) -> tuple[Any, ...]:
    """Equal for jobs that belong together; the first is false for those that stay alone."""
    apart = job.trunk is not None or job.means.attention != "sdpa"
    alone = apart or _most(job, gpu) == 1
    own = None if alone else shape(job.run)
    return (own, job.means) if own else (None, job.run.identity)


def _most(job: Job, gpu: bool) -> int:
    asked = job.means.together
    if asked is not None:
        return asked
    if not gpu or job.run.model.parameters().all > SMALL:
        return 1
    return max(1, min(MOST, ROOM // memory(job.run).needed))


class Waiting:
    """What a source gives while it has no job to give yet."""


WAIT = Waiting()
Source = Callable[[], "Job | Waiting | None"]


class Packing:
    """What a source gives one by one, together where it belongs so. Never more at once than
    `allowed` says, who knows what a source learns from one job for the next."""

    def __init__(self, source: Source, allowed: Callable[[], int], *, gpu: bool) -> None:
        self.source, self.allowed, self.gpu = source, allowed, gpu
        self.held: Job | None = None  # given, and of another shape than the pack before it

    def __call__(self) -> list[Job] | Waiting | None:
        most = self.allowed()
        first, self.held = self.held or self.source(), None
        if not isinstance(first, Job):
            return first
        pack = [first]
        while len(pack) < min(most, _most(first, self.gpu)) and _key(first, self.gpu)[0]:
            job = self.source()
            if not isinstance(job, Job):
                break
            if _key(job, self.gpu) != _key(first, self.gpu):
                self.held = job
                break
            pack.append(job)
        return pack


def execute_together(
    jobs: list[Job],
    ranks: Ranks,
    report: Report,
    beside: Callable[[Job, Ranks], Capture] | None = None,
) -> list[dict[str, Any]]:
    """As `execute`, for each of the jobs. Those that have ended before are not begun again."""
    if any(job.late for job in jobs):
        return [carry_out(job, ranks, partial(report, job)) for job in jobs]
    waiting = [job for job in jobs if (result(job.folder) or {}).get("status") not in FINAL]
    values = iter(_carry_out(waiting, ranks, report, beside))
    return [next(values) if job in waiting else result(job.folder) or {} for job in jobs]


def _carry_out(
    jobs: list[Job],
    ranks: Ranks,
    report: Report,
    beside: Callable[[Job, Ranks], Capture] | None,
) -> list[dict[str, Any]]:
    why = []
    if len(jobs) > 1:
        settle(jobs[0].threads)
        try:
            return _as_one(jobs, ranks, report, beside)
        except Exception as error:  # of one of them, or no memory for all: alone, each says its own
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            why = [f"trained alone, since {len(jobs)} runs could not train as one: {words}"]
        free(ranks.device)
    return [execute(job, ranks, partial(report, job), beside, why) for job in jobs]


def _as_one(
    jobs: list[Job],
    ranks: Ranks,
    report: Report,
    beside: Callable[[Job, Ranks], Capture] | None,
) -> list[dict[str, Any]]:
    started = time.time()
    warnings: list[list[str]] = [[] for _ in jobs]
    begun = [
        begin(job, ranks, partial(report, job), beside, own.append)
        for job, own in zip(jobs, warnings, strict=True)
    ]
    outcomes = train_together([_member(each) for each in begun], ranks)
    ended = [each.ended(outcome) for each, outcome in zip(begun, outcomes, strict=True)]
    about = circumstances(ranks, started)
    return [
        conclude(job, {**values, **about, "warnings": own})
        for job, values, own in zip(jobs, ended, warnings, strict=True)
    ]


def _member(begun: Begun) -> Member:
    folder = begun.job.folder / "checkpoints"
    return Member(run=begun.job.run, inputs=begun.inputs, folder=folder, hooks=begun.hooks)
