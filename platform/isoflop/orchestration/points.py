"""How are many runs carried out side by side? As Ray Tune trials, each in one of two ways.

One worker: the run trains inside its trial. Trials share processes (`reuse_actors`), one core and
one thread each, as many at once as there are cores, or as GPUs hold (`sharing`): a further trial
costs a tenth of a second, where a fresh process would cost the import of torch, and a nested start
tens of seconds. Small runs of one shape may share a trial, and train as one (`together`).

Several workers: the trial has a group of Ray Train's do the work (`groups`), computes nothing
itself, and keeps the group for the points after it.

Either way the same `execute` runs, and what it reports reaches the `Watcher` in the driver. A
process that dies is started again by Ray and goes on from the run's own checkpoint; Tune's and
Train's stores hold nothing that a study needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from isoflop.orchestration.job import Job
from isoflop.orchestration.slots import Slots
from isoflop.orchestration.together import Packing, Source, Waiting, packs
from isoflop.orchestration.trials import RESTARTS, failed, group_trial, lone_trial
from isoflop.training.loop import Record

GRACE_SECONDS = 20.0  # for running points to write a checkpoint when the study is stopped


class Watcher(Protocol):
    """Hears in the driver what happens to the jobs. Must be quick: Tune's loop waits for it."""

    def started(self, job: Job) -> None: ...
    def progressed(self, job: Job, records: list[Record]) -> None: ...
    def ended(self, job: Job, result: dict[str, Any]) -> None: ...


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
    source: Source,
    slots: Slots,
    store: Path,
    watcher: Watcher,
    stop_file: Path,
    together: Callable[[], int] = lambda: 1,
) -> None:
    """Carry out what `source` gives, one job whenever there is room for one, until it gives None or
    the stop file has appeared. What the watcher hears of an ended job comes before the next ask. It
    may give `WAIT` while a job is under way. So many of one shape as `together` says share a trial
    (see `Packing`)."""
    _tune_environment()
    jobs: dict[str, list[Job]] = {}
    alike = (lambda: 1) if slots.workers > 1 else together
    packing = Packing(source, alike, gpu=slots.gpu)

    def ask() -> list[Job] | Waiting | None:
        pack = packing()
        if isinstance(pack, list):
            pack = jobs[pack[0].run.identity] = slots.placed(pack)
        return pack

    search = {"search_alg": _searcher(ask), "num_samples": -1}
    _fit(jobs, slots, store, watcher, stop_file, {"tune": search})


def _searcher(ask: Callable[[], list[Job] | Waiting | None]) -> Any:
    """What Tune asks for the next trial. It learns nothing through Tune, whose copies of results
    have no place for several aims; the watcher tells (see `searches`)."""
    from ray.tune.search import Searcher

    class Asking(Searcher):  # type: ignore[misc]
        def __reduce__(self) -> Any:  # Tune stores it for a restore that isoflop never asks for
            return Searcher, ()

        def suggest(self, trial_id: str) -> Any:
            pack = ask()
            if isinstance(pack, Waiting):
                return None
            if pack is None:
                return Searcher.FINISHED
            # With the jobs themselves: the processes were started before they were known.
            return {"run": pack[0].run.identity, "jobs": pack}

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
            tune.with_parameters(lone_trial(), jobs=jobs), _reserved(jobs, slots)
        )
    else:
        # Zero CPUs: the trial only waits for its workers, and reserving a core for it would leave
        # too few for them, which Ray Train would retry for ever. The node resource makes it valid.
        bundle = {"CPU": 0, "node:__internal_head__": 0.001}
        arguments = {"jobs": jobs, "slots": slots, "store": store}
        trial = tune.with_resources(tune.with_parameters(group_trial(), **arguments), bundle)
    listener, stopper = _observers(jobs, watcher, stop_file)
    tuner = tune.Tuner(
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
    )
    with _uncounted(), _waiting_processes() if slots.workers == 1 else nullcontext():
        tuner.fit()


@contextmanager
def _uncounted() -> Iterator[None]:
    """Let Tune begin at once: to count which callbacks its users have, for statistics that are off
    here, it imports those of MLflow and others first, 0.7 s."""
    from ray.air._internal import usage

    before = usage.tag_callbacks
    usage.tag_callbacks = lambda callbacks: False
    try:
        yield
    finally:
        usage.tag_callbacks = before


@contextmanager
def _waiting_processes() -> Iterator[None]:
    """Let Tune take the processes that Ray has started already (see `cluster`).

    It asks for variables of its own in the environment of each trial's process, which makes Ray
    start another: one for Lightning, and what Ray Train's workers read, which trials of one worker
    have not. What opens a store stays.
    """
    from ray.tune.execution import class_cache as tunes

    before = tunes.DEFAULT_ENV_VARS, tunes.ENV_VARS_TO_PROPAGATE
    tunes.DEFAULT_ENV_VARS = {}
    tunes.ENV_VARS_TO_PROPAGATE = {name for name in before[1] if name.startswith("AWS_")}
    try:
        yield
    finally:
        tunes.DEFAULT_ENV_VARS, tunes.ENV_VARS_TO_PROPAGATE = before


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
