"""Prepares a text on two Ray nodes, and kills one of them for good while units are encoded.

python run_prepared_by_nodes.py CORPUS STORAGE; writes STORAGE/told.json. A program of its own: the
other tests' process has a cluster already.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from isoflop.data import scan
from isoflop.data.options import Means, Text
from isoflop.data.prepare import prepare
from isoflop.orchestration.cluster import cluster
from isoflop.orchestration.preparing import runner

BEFORE = 4  # units encoded by the node that is killed then
SETTLED = 0.5  # seconds after which its workers, too, have noticed that it is gone


def noted(work: Callable[[Any], Any], notes: Path, job: Any) -> Any:
    """The work, slowly, and a note of who did it."""
    found = work(job)
    time.sleep(0.1)
    node = ray.get_runtime_context().get_node_id()
    (notes / f"{time.time_ns()} {work.__name__} {node}").touch()
    return found


def units(notes: Path) -> list[tuple[str, str]]:
    """What was done, and by which node, in the order of time."""
    found = [path.name.split() for path in sorted(notes.iterdir())]
    return [(stage, node) for _, stage, node in found]


def main(corpus: Path, storage: Path) -> None:
    scan.UNIT_BYTES = 1_000
    text = {"source": str(corpus), "tokenizer": "bytes", "validation": 0.1}
    notes = storage / "notes"
    notes.mkdir()
    lab = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = lab.add_node(num_cpus=1)
    told: dict[str, Any] = {"text": text, "lost": other.node_id}
    try:
        with cluster(lab.address) as resources:
            spread = runner(resources)

            def run(work: Callable[[Any], Any], jobs: Iterable[Any], /) -> Iterator[Any]:
                for result in spread(partial(noted, work, notes), jobs):
                    yield result
                    done = units(notes)
                    if "after" not in told and done.count(("encode", other.node_id)) >= BEFORE:
                        lab.remove_node(other, allow_graceful=False)
                        time.sleep(SETTLED)
                        told["after"] = len(units(notes))

            prepare(Text(**text), storage / "there", means=Means(runner=run))
            told["units"] = units(notes)
            told["after"] = len(told["units"]) - told["after"]
    finally:
        (storage / "told.json").write_text(json.dumps(told))
        lab.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
