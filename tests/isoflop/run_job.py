"""Carries out jobs as a process of its own, alone or as one of several, for tests of such.

python run_job.py JOBS.json RANK WORLD, with a list of {run, folder, prepared, stop_file}. With
`MEMORY_LEFT` in the environment, they find no more bytes of address space than that.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from isoflop.data.prepare import Prepared
from isoflop.orchestration.job import Job, execute
from isoflop.run import Run
from isoflop.training.distributed import Ranks
from isoflop.training.means import Means
from models import ZOO


def job(values: dict[str, Any]) -> Job:
    return Job(
        study="test",
        run=Run.from_json(values["run"], ZOO),
        axes={},
        label="",
        folder=Path(values["folder"]),
        prepared=Prepared.load(Path(values["prepared"])),
        stop_file=Path(values["stop_file"]),
        means=Means(**values.get("means", {})),
    )


def limit(left: int) -> None:
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + left, resource.RLIM_INFINITY))


def main(spec: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    if left := os.environ.get("MEMORY_LEFT"):
        limit(int(left))
    if world > 1:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{spec.with_suffix('.store').absolute()}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=60),
        )
    for values in json.loads(spec.read_text()):
        ended = execute(job(values), Ranks(rank=rank, world=world), lambda records: None)
        if ended["status"] == "failed":
            raise RuntimeError(ended["traceback"])
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
