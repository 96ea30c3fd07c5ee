"""How are many runs carried out side by side? As Ray Tune trials, each in one of two ways.

One worker: the run trains inside its trial. Trials are functions in reused processes
(`reuse_actors`), one core and one thread each, as many at once as there are cores, or as GPUs hold
(`sharing`): a further trial costs a fraction of a second, where a fresh process would cost the
import of torch, and a nested start tens of seconds. Small runs of one shape may share a trial, and
train as one (`together`).

Several workers: the trial has a group of Ray Train's do the work (`groups`), computes nothing
itself, and keeps the group for the points after it.

Either way the same `execute` runs, and what it reports reaches the `Watcher` in the driver. A
process that dies is started again by Ray and goes on from the run's own checkpoint; Tune's and
Train's stores hold nothing that a study needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from isoflop.orchestration.cluster import Resources, left
from isoflop.orchestration.groups import Kept
from isoflop.orchestration.job import Job, conclude, result
from isoflop.orchestration.scribe import beside
from isoflop.orchestration.sharing import POINTS, Sharing
from isoflop.orchestration.together import execute_together, packs
from isoflop.run import Run
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record
from isoflop.training.micro import free

RESTARTS = 3  # of one run whose process died
REPORT_SECONDS = 1.0  # a report makes the trial wait for Tune's loop, so not every record at once
GRACE_SECONDS = 20.0  # for running points to write a checkpoint when the study is stopped


class Watcher(Protocol):
    """Hears in the driver what happens to the jobs. Must be quick: Tune's loop waits for it."""

    def started(self, job: Job) -> None: ...
    def progressed(self, job: Job, records: list[Record]) -> None: ...
    def ended(self, job: Job, result: dict[str, Any]) -> None: ...


class Waiting:
    """What a source gives while it has no job to give yet."""


WAIT = Waiting()
Source = Callable[[], "Job | Waiting | None"]


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


def run_points(jobs: list[Job], slots: Slots, store: Path, watcher: Watcher) -> None:
    """Carry out the jobs, biggest first so that no long one is left for the end; small ones of one
    shape may share a trial (see `together`).

    Returns when all have ended or the study's stop file has appeared. `store` is scratch space.
    """
    _tune_environment()
    from ray import tune

    size = slots.gpus if slots.gpu else slots.at_once
    alike = len(jobs) if slots.workers > 1 else size  # a group of workers takes one run at a time
    grouped = packs(jobs, at_once=alike, gpu=slots.gpu)
    by_name = {pack[0].run.identity: slots.placed(pack) for pack in grouped}
    space = {"run": tune.grid_search(list(by_name))}
    _fit(by_name, slots, store, watcher, jobs[0].stop_file, {"param_space": space})


def run_search(
    source: Source, slots: Slots, store: Path, watcher: Watcher, stop_file: Path
) -> None:
    """Carry out what `source` gives, one job whenever there is room for one, until it gives None or
    the stop file has appeared. What the watcher hears of an ended job comes before the next ask. It
    may give `WAIT` while a job is under way."""
    _tune_environment()
    jobs: dict[str, list[Job]] = {}

    def ask() -> Job | Waiting | None:
        job = source()
        if isinstance(job, Job):
            jobs[job.run.identity] = slots.placed([job])
            (job,) = jobs[job.run.identity]
        return job

    search = {"search_alg": _searcher(ask), "num_samples": -1}
    _fit(jobs, slots, store, watcher, stop_file, {"tune": search})


def _searcher(ask: Source) -> Any:
    """What Tune asks for the next trial. It learns nothing through Tune, whose copies of results
    have no place for several aims; the watcher tells (see `searches`)."""
    from ray.tune.search import Searcher

    class Asking(Searcher):  # type: ignore[misc]
        def __reduce__(self) -> Any:  # Tune stores it for a restore that isoflop never asks for
            return Searcher, ()

        def suggest(self, trial_id: str) -> Any:
            job = ask()
            if isinstance(job, Waiting):
                return None
            # With the job itself: the processes were started before it was known.
            return Searcher.FINISHED if job is None else {"run": job.run.identity, "jobs": [job]}

        def on_trial_complete(self, trial_id: str, *args: Any, **kwargs: Any) -> None: ...
        def save(self, checkpoint_path: str) -> None: ...
        def restore(self, checkpoint_path: str) -> None: ...

    return Asking()


def _fit(
    jobs: dict[str, list[Job]],
    slots: Slots,
    store: Path,
    watcher: Watcher,
    stop_file: Path,
    what: dict[str, Any],
) -> None:
    """Tune over `what`: a space, or the settings of a search."""
    from ray import tune

    if slots.workers == 1:
        trial = tune.with_resources(
            tune.with_parameters(_train_here, jobs=jobs), _reserved(jobs, slots)
        )
    else:
        # Zero CPUs: the trial only waits for its workers, and reserving a core for it would leave
        # too few for them, which Ray Train would retry for ever. The node resource makes it valid.
        bundle = {"CPU": 0, "node:__internal_head__": 0.001}
        arguments = {"jobs": jobs, "slots": slots, "store": store}
        trial = tune.with_resources(tune.with_parameters(_group_trial(), **arguments), bundle)
    listener, stopper = _observers(jobs, watcher, stop_file)
    tune.Tuner(
        trial,
        param_space=what.get("param_space", {}),
        tune_config=tune.TuneConfig(
            max_concurrent_trials=slots.at_once, reuse_actors=True, **what.get("tune", {})
        ),
        run_config=tune.RunConfig(
            name=f"{os.getpid()}-{int(time.time())}",
            storage_path=str(store.absolute()),
            verbose=0,
            callbacks=[listener],
            stop=stopper,
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            # Of a class Tune would ask for one, which the run has written itself.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()


def _reserved(jobs: dict[str, list[Job]], slots: Slots) -> Any:
    """What Tune reserves for a trial: the same for all, or by the run's size."""
    from ray import tune

    if not slots.sharing:
        return slots.bundle
    bundles = {name: slots.bundle_of(pack) for name, pack in jobs.items()}

    def reserve(config: dict[str, Any]) -> Any:
        own = config.get("jobs")
        return tune.PlacementGroupFactory([slots.bundle_of(own) if own else bundles[config["run"]]])

    return reserve


def _tune_environment() -> None:
    """Tune's own files, handlers and prints are off: the study keeps its record and its signals."""
    for name, value in {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ray issue 50358: it would swallow the study's own
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }.items():
        os.environ.setdefault(name, value)


def _train_here(config: dict[str, Any], jobs: dict[str, list[Job]]) -> None:
    """The trial of runs with one worker: trains in this very process."""
    import torch
    from ray import tune

    pack = config.get("jobs") or jobs[config["run"]]
    if pack[0].stop_file.exists():
        _tell({}, [(job, _unbegun(job)) for job in pack])
        return
    ranks = Ranks(device="cuda" if torch.cuda.is_available() else "cpu")
    report = _Buffered(lambda records: tune.report({"records": records}))
    values = execute_together(pack, ranks, report, beside)
    free(ranks.device)  # others may share the GPU while this process waits for its next point
    _tell(report.take(), list(zip(pack, values, strict=True)))


def _unbegun(job: Job) -> dict[str, Any]:
    """How it stands with a job that the study's end comes before."""
    return result(job.folder) or {} if job.late else {"status": "stopped"}


def _tell(records: dict[str, list[Record]], results: list[tuple[Job, dict[str, Any]]]) -> None:
    """Whose records and results they are is said by identity."""
    from ray import tune

    named = {job.run.identity: values for job, values in results}
    tune.report({"records": records, "results": named})


def _group_trial() -> Any:
    """The trial of a run with several workers: a group that outlives it does the work. A class,
    since Tune tells those when their process is to end: the group must be gone before."""
    from ray import tune

    class GroupTrial(tune.Trainable):  # type: ignore[misc]
        def setup(
            self, config: dict[str, Any], jobs: dict[str, list[Job]], slots: Slots, store: Path
        ) -> None:
            self.jobs, self.slots, self.kept = jobs, slots, Kept(store)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            (job,) = new_config.get("jobs") or self.jobs[new_config["run"]]
            self.work = Work(job, self.slots, self.kept)
            return True

        def step(self) -> dict[str, Any]:
            records, values = self.work.look()
            name = self.work.job.run.identity
            told = {"records": {name: records}}
            return told if values is None else {**told, "results": {name: values}, "done": True}

        def cleanup(self) -> None:
            self.kept.close()

    return GroupTrial


class Work:
    """A run that a kept group carries out.

    A group that dies is replaced, and goes on from the run's checkpoint: with as many workers, or
    with as many as the machines that are left can hold. The global batch stays, shared by fewer.
    """

    def __init__(self, job: Job, slots: Slots, kept: Kept) -> None:
        self.job, self.slots, self.kept = job, slots, kept
        self.number: int | None = None  # of the job, in its group
        self.deaths = 0
        if kept.group is None or kept.group.slots.workers < slots.workers:
            self._shrink()  # machines may have gone, also before this process was started

    def look(self) -> tuple[list[Record], dict[str, Any] | None]:
        """What was recorded in the last second, and the result if it has ended."""
        from ray import train

        if self.number is None and self.job.stop_file.exists():
            return [], _unbegun(self.job)
        try:
            group = self.kept.group_of(self.slots)
            if self.number is None:
                self.number = group.put(self.job)
            return group.news(self.number)
        except train.TrainingFailedError as error:
            self.kept.close()
            self.number, self.deaths = None, self.deaths + 1
            if self.deaths > RESTARTS:
                return [], failed(self.job, f"{type(error).__name__}: {error}")
            self._shrink()
            return [], None

    def _shrink(self) -> None:
        rows, units = self.job.run.rows, left(self.slots.gpu)
        self.slots = replace(self.slots, workers=fitting(rows, self.slots.workers, units))


def fitting(rows: int, workers: int, units: int) -> int:
    """The most workers, at most as many as before, that `units` cores or GPUs hold and that can
    share a batch of `rows` equally; 1 if nothing is left, since a node may come back."""
    return max(n for n in range(1, workers + 1) if n == 1 or (n <= units and rows % n == 0))


class _Buffered:
    """Passes records on at most once per `REPORT_SECONDS`, by the identity of their run."""

    def __init__(self, send: Callable[[dict[str, list[Record]]], None]) -> None:
        self.send, self.sent = send, time.monotonic()
        self.waiting: dict[str, list[Record]] = {}

    def __call__(self, job: Job, records: list[Record]) -> None:
        self.waiting.setdefault(job.run.identity, []).extend(records)
        if time.monotonic() - self.sent >= REPORT_SECONDS:
            self.send(self.take())

    def take(self) -> dict[str, list[Record]]:
        taken, self.waiting, self.sent = self.waiting, {}, time.monotonic()
        return taken


def failed(job: Job, error: str) -> dict[str, Any]:
    """Write down that a job's processes died too often, and return that result."""
    values = {"status": "failed", "error": error.splitlines()[0][:500], "traceback": error}
    return conclude(job, values)


def _observers(jobs: dict[str, list[Job]], watcher: Watcher, stop_file: Path) -> tuple[Any, Any]:
    """A Tune callback that speaks of jobs, and a stopper that ends the experiment once the stop
    file is there and the running points have saved. Built here so that importing this file imports
    no Ray.
    """
    from ray import tune

    running: set[str] = set()

    class Listener(tune.Callback):  # type: ignore[misc]
        def __reduce__(self) -> Any:  # Tune stores it for a restore that isoflop never asks for
            return tune.Callback, ()

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            running.add(trial.trial_id)
            for job in jobs[trial.config["run"]]:
                watcher.started(job)

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            for job in jobs[trial.config["run"]]:
                if records := result.get("records", {}).get(job.run.identity):
                    watcher.progressed(job, records)
                if values := result.get("results", {}).get(job.run.identity):
                    running.discard(trial.trial_id)
                    watcher.ended(job, values)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            running.discard(trial.trial_id)
            for job in jobs[trial.config["run"]]:
                watcher.ended(job, failed(job, f"its process died more than {RESTARTS} times"))

    class Stopper(tune.Stopper):  # type: ignore[misc]
        seen: float | None = None

        def __reduce__(self) -> Any:
            return tune.stopper.NoopStopper, ()

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            if self.seen is None and stop_file.exists():
                self.seen = time.monotonic()
            if self.seen is None:
                return False
            return not running or time.monotonic() - self.seen > GRACE_SECONDS

    return Listener(), Stopper()
