"""In which ways can the same grid be carried out? Each is a program of its own, start included.

    python -m isoflop.benchmarks.contestants WAY STORAGE POINTS TOKENS AT_ONCE [ADDRESS]

`plain` is the best that the standard library has: processes forked once torch is loaded, biggest
run first. `joblib` starts processes of its own; `tune` is Ray Tune as its guide has it. None of the
three tracks anything or writes a report. `isoflop` is what a study's command does.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from isoflop.benchmarks.training import config
from isoflop.campaign import Campaign, Machine
from isoflop.design import Study, grid
from isoflop.orchestration.job import Job, execute
from isoflop.run import AdamW, Evaluation, Rollouts, Run, Text
from isoflop.training.distributed import Ranks
from models import ZOO

PROMPTS = ("", "def main():\n    ", "import os\n")
SHAPE = "4 x 128"


def base() -> dict[str, Any]:
    """What all points share."""
    model, batch_tokens = config(next(iter(ZOO.values())), SHAPE)
    return {
        "model": model,
        "optimizer": AdamW(lr=1e-3),
        "batch_tokens": batch_tokens,
        "data": Text(tokenizer="bytes"),
    }


def study(points: int, tokens: int) -> Study:
    """Equal runs but for their seeds, since only their number and length matter here."""
    shared = base()
    model = shared["model"]
    unresolved = type(model)(**{**vars(model), "vocab": 0})

    def run(*, family: str, budget: int, seed: int) -> Run:
        return Run(
            **{**shared, "model": unresolved},
            tokens=tokens,
            evaluation=Evaluation(tokens=2**12, times=2),
            rollouts=Rollouts(prompts=PROMPTS, seeds=2, new_tokens=32, captures=2, beyond="now"),
            seed=seed,
        )

    axes = grid(family=[model.name], budget=[0], seed=range(points))
    return Study(name="bench", run=run, points=axes, family="family", budget="budget")


def campaign(points: int, tokens: int, machine: Machine) -> Campaign:
    made = study(points, tokens)
    return Campaign.prepare(made, machine, list(made.points), [], quiet=True)


def plain(made: Campaign, at_once: int) -> None:
    """A pool of forked processes."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; those here hold no locks that children need.
        warnings.simplefilter("ignore", DeprecationWarning)
        with ProcessPoolExecutor(at_once, multiprocessing.get_context("fork")) as pool:
            list(pool.map(carry_out, made.chosen))


def joblib(made: Campaign, at_once: int) -> None:
    """joblib's own processes."""
    from joblib import Parallel, delayed

    Parallel(n_jobs=at_once)(delayed(carry_out)(job) for job in made.chosen)


def tune(made: Campaign, at_once: int) -> None:
    """Ray Tune without isoflop: every setting at its default, a core for each trial."""
    import ray
    from ray import tune as tuning

    jobs = {job.run.identity: job for job in made.chosen}

    def trial(values: dict[str, Any]) -> dict[str, float]:
        return {"loss": float(carry_out(jobs[values["run"]])["loss"])}

    ray.init(address="local", num_cpus=at_once, include_dashboard=False, log_to_driver=False)
    tuning.Tuner(
        tuning.with_resources(trial, {"CPU": 1}),
        param_space={"run": tuning.grid_search(list(jobs))},
        run_config=tuning.RunConfig(storage_path=str(made.folder.absolute()), verbose=0),
    ).fit()


def isoflop(made: Campaign, at_once: int) -> None:
    """As the study's command would: tracked, and with its report."""
    atexit.register(gc.freeze)
    if made.go() != 0:
        raise RuntimeError("a run of the grid failed")


def carry_out(job: Job) -> dict[str, Any]:
    """One run in this process, with one thread. Raises RuntimeError if it fails."""
    values = execute(job, Ranks(), lambda records: None)
    if values["status"] != "finished":
        raise RuntimeError(values["error"])
    return values


WAYS: dict[str, Callable[[Campaign, int], None]] = {
    "plain": plain,
    "joblib": joblib,
    "tune": tune,
    "isoflop": isoflop,
}


def main(way: str, storage: str, points: str, tokens: str, at_once: str, *address: str) -> None:
    machine = Machine(
        storage=Path(storage), at_once=int(at_once), address=address[0] if address else None
    )
    WAYS[way](campaign(int(points), int(tokens), machine), int(at_once))


if __name__ == "__main__":
    main(*sys.argv[1:])
