"""Trains one run by two workers on two Ray nodes, and kills the node of one of them for good.

python run_lost_node.py CORPUS STORAGE; writes STORAGE/told.json. A program of its own: the other
tests' process has a cluster already.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import tiny
from ray.cluster_utils import Cluster

from isoflop.campaign import Campaign, Machine
from isoflop.orchestration.cluster import cluster
from isoflop.orchestration.job import Job
from isoflop.orchestration.points import run_points
from isoflop.orchestration.slots import slots
from isoflop.run import Checkpoints
from isoflop.training.loop import Record


class Steps:
    """A watcher that keeps the steps that were reported."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def started(self, job: Job) -> None: ...

    def progressed(self, job: Job, records: list[Record]) -> None:
        self.steps += [record["step"] for record in records]

    def ended(self, job: Job, result: dict[str, Any]) -> None: ...


def main(corpus: Path, storage: Path) -> None:
    lab = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = lab.add_node(num_cpus=1)
    told: dict[str, Any] = {}
    try:
        with cluster(lab.address) as resources:
            study = tiny(corpus, tokens=600_000)
            machine = Machine(storage=storage, workers=2)
            (job,) = Campaign.prepare(study, machine, list(study.points)[:1], []).chosen
            job = replace(job, run=replace(job.run, checkpoints=Checkpoints(seconds=0.5)))

            def kill() -> None:
                while not (saved := sorted(job.folder.glob("checkpoints/step-*/state.json"))):
                    time.sleep(0.1)
                told["saved"] = int(saved[-1].parent.name.removeprefix("step-"))
                lab.remove_node(node, allow_graceful=False)
                told["killed"] = time.time()

            thread = threading.Thread(target=kill, daemon=True)
            thread.start()
            heard = Steps()
            run_points([job], slots(resources, 2, None), storage / "ray", heard)
            thread.join(timeout=60)
            told |= {"steps": heard.steps, "folder": str(job.folder), "last": job.run.steps}
    finally:
        (storage / "told.json").write_text(json.dumps(told))
        lab.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
