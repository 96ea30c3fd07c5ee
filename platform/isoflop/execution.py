"""How are the runs of a study carried out, once it is known which are left? On a cluster, watched.

cluster -> slots -> points (in stages), heard by: the search, the table, limits, MLflow -> report
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoflop import preregister, trunks
from isoflop.design import user_input
from isoflop.orchestration.job import Job, result
from isoflop.progress import Progress
from isoflop.telling import Telling
from isoflop.watching import Both, Fetched, Limited, Spare

if TYPE_CHECKING:
    from isoflop.campaign import Campaign
    from isoflop.orchestration.cluster import Resources
    from isoflop.orchestration.ready import Ready
    from isoflop.orchestration.sharing import Sharing
    from isoflop.orchestration.slots import Slots
    from isoflop.orchestration.staffing import Place
    from isoflop.searching import Source


def carry_out(campaign: Campaign, left: list[Job], source: Source | None = None) -> bool:
    """Train the jobs that are `left`, or what the source of a search gives, with tracking and
    progress, and report. True if the study was stopped."""
    began = time.monotonic()
    telling = Telling(campaign, left)
    with _seldom_collecting():
        ready = _on_a_cluster(campaign, left, source, telling)
        stopped = _conclude(campaign, left, source, telling, time.monotonic() - began)
    if ready:
        ready.fill()  # last: the report wants the cores first
    return stopped


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """What Ray, MLflow and the report import stays. Python would look through it for garbage again
    and again: 0.7 s of CPU time, which this process, that trains nothing, takes from those that do.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _conclude(
    campaign: Campaign,
    left: list[Job],
    source: Source | None,
    telling: Telling,
    seconds: float,
) -> bool:
    """What was spent, and the report. True if the study was stopped, which has neither."""
    if (campaign.folder / "stop").exists():
        telling.close()
        return True
    from isoflop.plan import against_plan, spent

    print(spent(campaign.chosen, seconds, campaign.limits.price))
    print(against_plan(campaign.folder, campaign.chosen if source else left), end="")
    campaign.report()
    telling.study()
    return False


def _on_a_cluster(
    campaign: Campaign, left: list[Job], source: Source | None, telling: Telling
) -> Ready | None:
    from isoflop.orchestration.cluster import cluster
    from isoflop.orchestration.points import run_search

    machine, stop = campaign.machine, campaign.folder / "stop"
    done = len(campaign.chosen) - len(left)
    with ExitStack() as stack:
        with user_input():
            resources = stack.enter_context(cluster(machine.address))
            places = Places.of(campaign, left, source, resources)
        further = source.further if source else 0
        print(f"{len(left) + further} runs to train, {places} ({done} done before)")
        bars = Progress(left, done, price=campaign.limits.price, further=further)
        progress = stack.enter_context(bars)
        limited = stack.enter_context(Limited(campaign.limits, stop))
        spare = stack.enter_context(Spare(_import_report, len(left) + further, places.last.at_once))
        watcher = Both(
            Fetched(machine.mirror),
            *([source] if source else []),
            progress,
            limited,
            spare,
            telling.watcher,
        )
        if source:
            store = campaign.folder / "ray"
            run_search(source, places.first, store, watcher, stop, source.together)
            left = campaign.chosen
        else:
            _in_stages(campaign, left, places, watcher)
        _stop_missing(campaign, left, progress)
        _ask(campaign, places.last, telling, progress)
    return resources.ready


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each run trains: with how many workers, and on which slots these are."""

    workers: dict[str, int]  # of a run, by its identity
    slots: dict[int, Slots]  # by the workers of a run

    @staticmethod
    def of(
        campaign: Campaign, left: list[Job], source: Source | None, resources: Resources
    ) -> Places:
        """Raises ValueError for what does not fit."""
        from isoflop.orchestration.cluster import gpu
        from isoflop.orchestration.slots import slots
        from isoflop.orchestration.staffing import Place, staffed
        from isoflop.plan import alone, assumed

        card = (
            gpu() if resources.gpus > 1 and not isinstance(campaign.machine.workers, int) else None
        )
        place = Place(units=resources.gpus or resources.cpus, memory=card.memory if card else 0)
        number = _alike(campaign, left, source, place, resources.gpus)
        if number is not None:
            workers = {job.run.identity: number for job in left}
        else:
            runs = {job.run.identity: job.run for job in left}
            seconds = alone(left, assumed(card.name) if card else None)
            staff = staffed(runs, seconds, place, campaign.machine.means)
            workers = {name: own.workers for name, own in staff.items()}
        numbers = sorted(set(workers.values()) or {number or 1}, reverse=True)
        found = {
            n: slots(
                resources, n, campaign.machine.at_once, lambda: _sharing(campaign),
                [job.run for job in left if workers[job.run.identity] == n],
            )
            for n in numbers
        }  # fmt: skip
        return Places(workers=workers, slots=found)

    @property
    def first(self) -> Slots:
        """For runs that are given out one by one: all of them have as many workers."""
        return next(iter(self.slots.values()))

    @property
    def last(self) -> Slots:
        """Those with the fewest workers."""
        return list(self.slots.values())[-1]

    def stages(self, jobs: list[Job]) -> Iterator[tuple[list[Job], Slots]]:
        """Those with most workers first."""
        for number, slots in self.slots.items():
            part = [job for job in jobs if self.workers[job.run.identity] == number]
            if part:
                yield part, slots

    def __str__(self) -> str:
        return ", then ".join(
            f"{slots.at_once} at once" + (f" with {n} workers each" if n > 1 else "")
            for n, slots in self.slots.items()
        )


def _alike(
    campaign: Campaign, left: list[Job], source: Source | None, place: Place, gpus: int
) -> int | None:
    """The workers of every run, where they all have as many; None where sizes decide."""
    workers, means = campaign.machine.workers, campaign.machine.means
    if isinstance(workers, int):
        return workers
    if workers is None and gpus < 2:
        return 1
    if source or any(job.trunk for job in trunks.attached(left, campaign.folder)):
        # Given out one by one, in an order that sizes do not make: all have what the largest needs.
        from isoflop.searching import possible

        return max(place.fewest(job.run, means) for job in left or possible(campaign, 4))
    return None


def _sharing(campaign: Campaign) -> Sharing | None:
    """How points share the cluster's GPUs; None where nobody knows how large these are."""
    from isoflop.orchestration.cluster import gpu
    from isoflop.orchestration.sharing import Sharing

    card = gpu()
    return Sharing.learnt(card.memory, campaign.jobs) if card else None


def _in_stages(campaign: Campaign, left: list[Job], places: Places, watcher: Both) -> None:
    from isoflop.orchestration.points import run_points, run_search

    store, stop = campaign.folder / "ray", campaign.folder / "stop"
    stages = preregister.stages(campaign, left) if campaign.preregister else [left]
    for stage in stages if left else ():
        jobs = trunks.attached(stage, campaign.folder)
        if any(job.trunk for job in jobs):
            ordered = trunks.Ordered(jobs)
            run_search(ordered, places.first, store, Both(ordered, watcher), stop)
        else:
            for part, slots in places.stages(stage):
                if not stop.exists():
                    run_points(part, slots, store, watcher)
        if stop.exists():
            return


def _ask(campaign: Campaign, share: Slots, telling: Telling, progress: Progress) -> None:
    """Once all is trained: the captures that runs had no time for."""
    from isoflop.orchestration.points import run_points

    late = campaign.waiting()
    if not late or (campaign.folder / "stop").exists():
        return
    progress.say(f"rollouts that the budget of {len(late)} runs put off are made now")
    watcher = Both(Fetched(campaign.machine.mirror), telling.watcher)
    run_points(late, share, campaign.folder / "ray", watcher)


def _stop_missing(campaign: Campaign, left: list[Job], progress: Progress) -> None:
    """A run that Ray gave up without a word is a failure, said aloud."""
    from isoflop.orchestration.trials import failed

    if (campaign.folder / "stop").exists():
        return
    for job in left:
        if result(job.folder) is None:
            progress.ended(job, failed(job, "Ray ended it without a result"))


def _import_report() -> None:
    """The report's libraries take seconds to import."""
    from isoflop.report import page  # noqa: F401
