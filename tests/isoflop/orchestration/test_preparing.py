"""Does a cluster prepare the same text as this process?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoflop.data import scan
from isoflop.data.options import Means, Options, Text
from isoflop.data.prepare import prepare
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.preparing import runner

SIDES = ("train", "validation")


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
