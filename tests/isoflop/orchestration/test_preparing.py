"""Does a cluster prepare the same text as this process?"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoflop.data import scan
from isoflop.data.options import Means, Options, Text
from isoflop.data.prepare import prepare
from isoflop.orchestration import preparing
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.preparing import runner

SIDES = ("train", "validation")
WORK = ("scan", "encode")


def test_the_same_bits(
    ray_cluster: Resources, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "UNIT_BYTES", 20_000)
    text = Text(source=str(corpus), tokenizer="bpe-300", validation=0.1)
    options = Options(near_duplicates=0.95)
    here = prepare(text, tmp_path / "here", options=options)
    means = Means(runner=runner(ray_cluster))
    there = prepare(text, tmp_path / "there", options=options, means=means)
    assert there.fingerprint == here.fingerprint
    for side in SIDES:
        for suffix in ("tokens", "ends", "json"):
            name = f"{side}.{suffix}"
            assert (there.folder / name).read_bytes() == (here.folder / name).read_bytes()


def test_jobs_are_taken_as_they_are_needed(ray_cluster: Resources) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        while taken < 30:
            taken += 1
            yield taken

    results = runner(ray_cluster)(math.factorial, jobs())
    first = [next(results) for _ in range(2)]
    assert taken <= 2 * ray_cluster.cpus + len(first)
    assert sorted([*first, *results]) == [math.factorial(k) for k in range(1, 31)]


def test_an_error_arrives_as_it_was(ray_cluster: Resources, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="negative"):
        list(runner(ray_cluster)(math.factorial, [-1]))
    unit = scan.Unit(0, (), ready=False)
    job = scan.Scan(unit, tmp_path / "on another node", signatures=False)
    with pytest.raises(ValueError, match="must be on storage that every node sees"):
        list(runner(ray_cluster)(scan.scan, [job]))


def test_work_that_takes_its_process_down_is_told(
    ray_cluster: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "RETRIES", 1)
    with pytest.raises(ChildProcessError, match="lost a unit of the text 2 times"):
        list(runner(ray_cluster)(_die, [1]))


def _die(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_nodes_share_the_work_and_one_that_is_lost_is_made_up_for(
    corpus: Path, tmp_path: Path
) -> None:
    """Two Ray nodes of a core each; one is killed once it has encoded some units."""
    script = Path(__file__).with_name("run_prepared_by_nodes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(corpus), str(tmp_path)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads((tmp_path / "told.json").read_text())
    scanned, encoded = ({node for stage, node in told["units"] if stage == s} for s in WORK)
    assert len(scanned) == len(encoded) == 2, "each node did some of each"
    last = [node for _, node in told["units"][-told["after"] :]]
    assert told["after"] > 2 and told["lost"] not in last, "and went on without the lost one"
    here = prepare(Text(**told["text"]), tmp_path / "here")
    for side in SIDES:
        for suffix in ("tokens", "ends", "json"):
            there = tmp_path / "there" / here.fingerprint / f"{side}.{suffix}"
            assert there.read_bytes() == (here.folder / f"{side}.{suffix}").read_bytes()
