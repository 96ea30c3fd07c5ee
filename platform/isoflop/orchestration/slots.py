"""How many runs go side by side, and what does each get? As many as there are cores or GPUs, or as
GPUs hold (`sharing`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.job import Job
from isoflop.orchestration.sharing import POINTS, Sharing
from isoflop.run import Run


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How many points run at once, and what each gets."""

    workers: int  # processes of one run
    at_once: int
    gpu: bool
    sharing: Sharing | None = None  # where small points may share a GPU
    gpus: int = field(default=1, compare=False)

    def bundle_of(self, jobs: Sequence[Job]) -> dict[str, float]:
        """What Ray reserves for a run of one worker, or for runs that train as one: these have a
        GPU for themselves."""
        if not self.sharing or len(jobs) > 1:
            return self.bundle
        return {"CPU": 1, "GPU": 1 / self.sharing.points(jobs[0].run)}

    def placed(self, jobs: list[Job]) -> list[Job]:
        """The jobs of a trial, told what they may take."""
        if not self.sharing or len(jobs) > 1:
            return jobs
        (job,) = jobs
        return [replace(job, means=replace(job.means, gpu=self.sharing.share(job.run)))]

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray reserves for one worker."""
        return {"CPU": 1, "GPU": 1} if self.gpu else {"CPU": 1}


def slots(
    resources: Resources,
    workers: int,
    at_once: int | None,
    sharing: Callable[[], Sharing | None] = lambda: None,
    runs: Sequence[Run] = (),
) -> Slots:
    """As many points at once as fit. `sharing` is asked where the points of a GPU may be several,
    `runs` are those to come. Raises ValueError if not even one fits."""
    gpu = resources.gpus > 0
    units = resources.gpus if gpu else resources.cpus
    kind = "GPUs" if gpu else "cores"
    if workers > units:
        raise ValueError(f"--workers {workers} needs {workers} {kind}; the cluster has {units}")
    if not gpu or workers > 1 or (at_once or resources.cpus) <= units:
        return Slots(
            workers=workers,
            at_once=min(at_once or units, units // workers),
            gpu=gpu,
            gpus=resources.gpus,
        )
    shared = sharing()
    most = max((shared.points(run) for run in runs), default=POINTS[0]) if shared else 1
    places = min(resources.cpus, most * units)
    return Slots(
        workers=1,
        at_once=min(at_once or places, places),
        gpu=True,
        sharing=shared,
        gpus=resources.gpus,
    )
