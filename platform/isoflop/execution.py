"""How are the runs of a study carried out, once it is known which are left? On a cluster, watched.

cluster -> slots -> points (in stages), heard by: the search, the table, limits, MLflow -> report
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from isoflop import preregister, tracking, trunks
from isoflop.design import user_input
from isoflop.orchestration.job import Job, result
from isoflop.progress import Progress, near
from isoflop.watching import Both, Fetched, Limited, Tracked

if TYPE_CHECKING:
    from isoflop.campaign import Campaign
    from isoflop.orchestration.points import Slots
    from isoflop.orchestration.sharing import Sharing
    from isoflop.searching import Source


def carry_out(campaign: Campaign, left: list[Job], source: Source | None = None) -> bool:
    """Train the jobs that are `left`, or what the source of a search gives, with tracking and
    progress, and report. True if the study was stopped."""
    began = time.monotonic()
    machine = campaign.machine
    tracker = tracking.Tracker(
        machine.tracking_uri, campaign.study.name, machine.storage / "mlartifacts"
    )
    warm = ThreadPoolExecutor(1).submit(_import_report)  # while Ray's processes start
    try:
        _on_a_cluster(campaign, left, source, tracker)
    finally:
        warm.result()
    if (campaign.folder / "stop").exists():
        _close(tracker)
        return True
    from isoflop.plan import against_plan, spent

    print(spent(campaign.chosen, time.monotonic() - began, campaign.limits.price))
    print(against_plan(campaign.folder, campaign.chosen if source else left), end="")
    campaign.report()
    _track_study(campaign, tracker)
    return False


def _on_a_cluster(
    campaign: Campaign, left: list[Job], source: Source | None, tracker: tracking.Tracker
) -> None:
    from isoflop.orchestration.cluster import cluster
    from isoflop.orchestration.points import run_search, slots

    machine, stop = campaign.machine, campaign.folder / "stop"
    done = len(campaign.chosen) - len(left)
    with ExitStack() as stack:
        with user_input():
            resources = stack.enter_context(cluster(machine.address))
            share = slots(
                resources, machine.workers, machine.at_once, lambda: _sharing(campaign),
                [job.run for job in left],
            )  # fmt: skip
        further = source.further if source else 0
        print(f"{len(left) + further} runs to train, {share.at_once} at once ({done} done before)")
        bars = Progress(left, done, price=campaign.limits.price, further=further)
        progress = stack.enter_context(bars)
        limited = stack.enter_context(Limited(campaign.limits, stop))
        watcher = Both(
            Fetched(machine.mirror),
            *([source] if source else []),
            progress,
            limited,
            Tracked(tracker, campaign.study),
        )
        if source:
            run_search(source, share, campaign.folder / "ray", watcher, stop)
            left = campaign.chosen
        else:
            _in_stages(campaign, left, share, watcher)
        _stop_missing(campaign, left, progress)
        _ask(campaign, share, tracker, progress)


def _sharing(campaign: Campaign) -> Sharing | None:
    """How points share the cluster's GPUs; None where nobody knows how large these are."""
    from isoflop.orchestration.cluster import gpu_memory
    from isoflop.orchestration.sharing import Sharing

    total = gpu_memory()
    return Sharing.learnt(total, campaign.jobs) if total else None


def _in_stages(campaign: Campaign, left: list[Job], share: Slots, watcher: Both) -> None:
    from isoflop.orchestration.points import run_points, run_search

    store, stop = campaign.folder / "ray", campaign.folder / "stop"
    stages = preregister.stages(campaign, left) if campaign.preregister else [left]
    for stage in stages if left else ():
        jobs = trunks.attached(stage, campaign.folder)
        if any(job.trunk for job in jobs):
            ordered = trunks.Ordered(jobs)
            run_search(ordered, share, store, Both(ordered, watcher), stop)
        else:
            run_points(stage, share, store, watcher)
        if stop.exists():
            return


def _ask(campaign: Campaign, share: Slots, tracker: tracking.Tracker, progress: Progress) -> None:
    """Once all is trained: the captures that runs had no time for."""
    from isoflop.orchestration.points import run_points

    late = campaign.waiting()
    if not late or (campaign.folder / "stop").exists():
        return
    progress.say(f"rollouts that the budget of {len(late)} runs put off are made now")
    watcher = Both(Fetched(campaign.machine.mirror), Tracked(tracker, campaign.study))
    run_points(late, share, campaign.folder / "ray", watcher)


def _stop_missing(campaign: Campaign, left: list[Job], progress: Progress) -> None:
    """A run that Ray gave up without a word is a failure, said aloud."""
    from isoflop.orchestration.points import failed

    if (campaign.folder / "stop").exists():
        return
    for job in left:
        if result(job.folder) is None:
            progress.ended(job, failed(job, "Ray ended it without a result"))


def _track_study(campaign: Campaign, tracker: tracking.Tracker) -> None:
    """The study as an MLflow run of its own, and the links that open everything."""
    study, folder = campaign.study, campaign.folder
    key = f"study:{study.name}"
    tracker.start(
        key, f"study {study.name}", {"runs": len(campaign.jobs)}, {"isoflop.kind": "study"}
    )
    tracker.end(
        key, "finished", {"question": study.question},
        [folder / "report.html", folder / "figures", folder / "runs.parquet"],
    )  # fmt: skip
    if _close(tracker):
        print(f"runs    {_links(campaign, tracker)}")


def _links(campaign: Campaign, tracker: tracking.Tracker) -> str:
    machine = campaign.machine
    server = machine.tracking or "http://127.0.0.1:5000"
    keys = [job.run.identity for job in campaign.jobs]
    found = tracker.links(server, keys) if server.startswith("http") else {}
    lines = [f"{name:<8}{link}" for name, link in found.items()]
    if not machine.tracking:
        lines.insert(0, f"isoflop ui {near(machine.storage)}   starts MLflow for these:")
    return "\n        ".join(lines)


def _close(tracker: tracking.Tracker) -> bool:
    """Wait for what is left to track. A store that failed is said, not raised."""
    try:
        tracker.close()
    except RuntimeError as error:
        print(f"warning: {error}; the runs and the report are complete without it")
        return False
    return True


def _import_report() -> None:
    """The report's libraries take seconds to import."""
    from isoflop.report import page  # noqa: F401
