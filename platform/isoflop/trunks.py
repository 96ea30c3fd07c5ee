"""Which runs of a study share a trunk, in which order do they go, and what does that save?

Runs that differ in length alone, at a rate that is constant in between, have one trunk
(`training.trunk`). The longest trains it; each other run waits for its fork, and costs its
cool-down only. Finished runs are left as they are; where a fork is missing (the longest failed, or
finished before the shorter was asked for), a run trains alone, with the same result.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isoflop.orchestration.job import FINAL, Job, result
from isoflop.orchestration.together import WAIT, Waiting
from isoflop.training.optimizer import warmup_end
from isoflop.training.trunk import Trunk, leaves, stem

FOLDER = "trunks"  # in a study's folder


def attached(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs that are left to do, those of a shared trunk with their part in it. Runs whose
    folder is kept at a URL have none: a fork is not seen from other machines."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        key = None if job.mirror else stem(job.run)
        if key is not None and leaves(job.run) > warmup_end(job.run.schedule, job.run.steps):
            groups.setdefault(key, []).append(job)
    parts: dict[str, Trunk] = {}
    for key, group in groups.items():
        longest = max(group, key=lambda job: job.run.steps)
        forks = sorted({leaves(job.run) for job in group if job is not longest})
        forks = [step for step in forks if step < longest.run.steps]
        here = folder / FOLDER / key
        for job in group:
            own = forks if job is longest else []
            parts[job.run.identity] = Trunk(folder=here, stem=key, forks=tuple(own))
    shared = {p.stem for p in parts.values() if p.forks or p.folder.exists()}
    return [
        replace(job, trunk=part)
        if (part := parts.get(job.run.identity)) and part.stem in shared
        else job
        for job in jobs
    ]


def steps_saved(jobs: Sequence[Job]) -> dict[str, int]:
    """Steps that a run need not train, by identity, if all goes well."""
    longest = {job.trunk.stem: job for job in jobs if job.trunk and job.trunk.forks}
    return {
        job.run.identity: leaves(job.run)
        for job in jobs
        if job.trunk and longest.get(job.trunk.stem, job) is not job
    }


class Ordered:
    """Gives out jobs, biggest first, each branch when its fork is there or can be no more. A
    watcher too: it hears what has ended."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.waiting = sorted(jobs, key=lambda job: -job.run.training_flops)
        self.trunks = {job.trunk.stem: job for job in jobs if job.trunk and job.trunk.forks}
        self.over: set[str] = set()

    def __call__(self) -> Job | Waiting | None:
        for job in self.waiting:
            if self._ready(job):
                self.waiting.remove(job)
                return job
        return WAIT if self.waiting else None

    def _ready(self, job: Job) -> bool:
        if job.trunk is None or job.trunk.forks:
            return True
        trunk = self.trunks.get(job.trunk.stem)
        over = trunk is None or trunk.run.identity in self.over
        return over or job.trunk.has(leaves(job.run))

    def started(self, job: Job) -> None:
        """It was given out here."""

    def progressed(self, job: Job, records: list[dict[str, float]]) -> None:
        """A fork is seen on the disk."""

    def ended(self, job: Job, result: dict[str, object]) -> None:
        self.over.add(job.run.identity)


def clear(jobs: Sequence[Job], folder: Path) -> None:
    """Remove the trunks that no unfinished job could go on from."""
    needed = {
        stem(job.run) for job in jobs if (result(job.folder) or {}).get("status") not in FINAL
    }
    for trunk in (folder / FOLDER).glob("*"):
        if trunk.name not in needed:
            shutil.rmtree(trunk)
    if (folder / FOLDER).exists() and not list((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()
