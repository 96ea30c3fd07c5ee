"""How are many runs carried out side by side? As Ray Tune trials, each in one of two ways.

One worker: the run trains inside its trial. Trials are functions in reused processes
(`reuse_actors`), one core and one thread each, as many at once as there are cores, or as GPUs hold
(`sharing`): a further trial costs a fraction of a second, where a fresh process would cost the
import of torch, and a nested start tens of seconds.

Several workers: the trial starts a Ray Train TorchTrainer and computes nothing itself.

Either way the same `execute` runs, and what it reports reaches the `Watcher` in the driver. A
process that dies is started again by Ray and goes on from the run's own checkpoint; Tune's and
Train's stores hold nothing that a study needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from isoflop.orchestration.cluster import Resources, left
from isoflop.orchestration.job import Job, conclude, execute, result
from isoflop.orchestration.scribe import beside
from isoflop.orchestration.sharing import POINTS, Sharing
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

    def bundle_of(self, run: Run) -> dict[str, float]:
        """What Ray reserves for a run of one worker."""
        return {"CPU": 1, "GPU": 1 / self.sharing.points(run)} if self.sharing else self.bundle

    def placed(self, job: Job) -> Job:
        """The job, told what it may take."""
        if not self.sharing:
            return job
        return replace(job, means=replace(job.means, gpu=self.sharing.share(job.run)))

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
        return Slots(workers=workers, at_once=min(at_once or units, units // workers), gpu=gpu)
    shared = sharing()
    most = max((shared.points(run) for run in runs), default=POINTS[0]) if shared else 1
    places = min(resources.cpus, most * units)
    return Slots(workers=1, at_once=min(at_once or places, places), gpu=True, sharing=shared)


def run_points(jobs: list[Job], slots: Slots, store: Path, watcher: Watcher) -> None:
    """Carry out the jobs, biggest first so that no long one is left for the end.

    Returns when all have ended or the study's stop file has appeared. `store` is scratch space.
    """
    _tune_environment()
    from ray import tune

    jobs = [slots.placed(job) for job in sorted(jobs, key=lambda job: -job.run.training_flops)]
    by_name = {job.run.identity: job for job in jobs}
    space = {"run": tune.grid_search(list(by_name))}
    _fit(by_name, slots, store, watcher, jobs[0].stop_file, {"param_space": space})


def run_search(
    source: Source, slots: Slots, store: Path, watcher: Watcher, stop_file: Path
) -> None:
    """Carry out what `source` gives, one job whenever there is room for one, until it gives None or
    the stop file has appeared. What the watcher hears of an ended job comes before the next ask. It
    may give `WAIT` while a job is under way."""
    _tune_environment()
    jobs: dict[str, Job] = {}

    def ask() -> Job | Waiting | None:
        job = source()
        if isinstance(job, Job):
            job = slots.placed(job)
            jobs[job.run.identity] = job
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
            return Searcher.FINISHED if job is None else {"run": job.run.identity, "job": job}

        def on_trial_complete(self, trial_id: str, *args: Any, **kwargs: Any) -> None: ...
        def save(self, checkpoint_path: str) -> None: ...
        def restore(self, checkpoint_path: str) -> None: ...

    return Asking()


def _fit(
    jobs: dict[str, Job],
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
        trial = tune.with_resources(tune.with_parameters(_train_group, **arguments), bundle)
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
        ),
    ).fit()


def _reserved(jobs: dict[str, Job], slots: Slots) -> Any:
    """What Tune reserves for a trial: the same for all, or by the run's size."""
    from ray import tune

    if not slots.sharing:
        return slots.bundle
    runs = {name: job.run for name, job in jobs.items()}

    def reserve(config: dict[str, Any]) -> Any:
        run = config["job"].run if "job" in config else runs[config["run"]]
        return tune.PlacementGroupFactory([slots.bundle_of(run)])

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


def _train_here(config: dict[str, Any], jobs: dict[str, Job]) -> None:
    """The trial of a run with one worker: trains in this very process."""
    import torch
    from ray import tune

    job = config.get("job") or jobs[config["run"]]
    if job.stop_file.exists():
        tune.report({"result": {"status": "stopped"}})
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = _Buffered(lambda records: tune.report({"records": records}))
    values = execute(job, Ranks(device=device), report, beside)
    free(device)  # others may share the GPU while this process waits for its next point
    tune.report({"records": report.take(), "result": values})


def _train_group(config: dict[str, Any], jobs: dict[str, Job], slots: Slots, store: Path) -> None:
    """The trial of a run with several workers: a Ray Train group does the work.

    A group that dies is started again from the run's checkpoint: with as many workers, or with as
    many as the machines that are left can hold. The global batch stays, shared by fewer.
    """
    from ray import train, tune

    job = config.get("job") or jobs[config["run"]]
    for attempt in range(RESTARTS + 1):
        try:
            _fit_group(job, slots, store)
            break
        except train.TrainingFailedError as error:
            if attempt == RESTARTS:
                failed(job, f"{type(error).__name__}: {error}")
                break
            workers = fitting(job.run.rows, slots.workers, left(slots.gpu))
            slots = replace(slots, workers=workers)
    tune.report({"records": [], "result": result(job.folder) or failed(job, "workers vanished")})


def _fit_group(job: Job, slots: Slots, store: Path) -> None:
    """Start the group and wait for it. Raises TrainingFailedError if one of its processes dies."""
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=train.ScalingConfig(
            num_workers=slots.workers, use_gpu=slots.gpu, resources_per_worker=slots.bundle
        ),
        run_config=train.RunConfig(
            # New for each start: the run's own checkpoints say where to go on, not Train's.
            name=f"{job.run.identity}-{time.time_ns()}",
            storage_path=str(store.absolute()),
            callbacks=[TuneReportCallback()],
            # Train itself would start as many workers again, on nodes that it takes to be alive.
            failure_config=train.FailureConfig(
                max_failures=0,
                controller_failure_limit=3,  # the default retries for ever
            ),
        ),
    ).fit()


def fitting(rows: int, workers: int, units: int) -> int:
    """The most workers, at most as many as before, that `units` cores or GPUs hold and that can
    share a batch of `rows` equally; 1 if nothing is left, since a node may come back."""
    return max(n for n in range(1, workers + 1) if n == 1 or (n <= units and rows % n == 0))


def _train_worker(config: dict[str, Any]) -> None:
    """One rank of a run in a Ray Train group. Every rank reports, since Train waits for all."""
    from ray import train
    from ray.train.torch import get_device

    context = train.get_context()
    ranks = Ranks(
        rank=context.get_world_rank(), world=context.get_world_size(), device=str(get_device())
    )
    execute(config["job"], ranks, lambda records: train.report({"records": records}), beside)


class _Buffered:
    """Passes records on at most once per `REPORT_SECONDS`."""

    def __init__(self, send: Callable[[list[Record]], None]) -> None:
        self.send, self.waiting, self.sent = send, list[Record](), time.monotonic()

    def __call__(self, records: list[Record]) -> None:
        self.waiting.extend(records)
        if time.monotonic() - self.sent >= REPORT_SECONDS:
            self.send(self.take())

    def take(self) -> list[Record]:
        taken, self.waiting, self.sent = self.waiting, [], time.monotonic()
        return taken


def failed(job: Job, error: str) -> dict[str, Any]:
    """Write down that a job's processes died too often, and return that result."""
    values = {"status": "failed", "error": error.splitlines()[0][:500], "traceback": error}
    return conclude(job, values)


def _observers(jobs: dict[str, Job], watcher: Watcher, stop_file: Path) -> tuple[Any, Any]:
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
            watcher.started(jobs[trial.config["run"]])

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            job = jobs[trial.config["run"]]
            if result.get("records"):
                watcher.progressed(job, result["records"])
            if "result" in result:
                running.discard(trial.trial_id)
                watcher.ended(job, result["result"])

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            job = jobs[trial.config["run"]]
            running.discard(trial.trial_id)
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
