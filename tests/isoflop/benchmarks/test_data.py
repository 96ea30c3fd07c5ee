"""Does the benchmark of the data room measure what it says?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from isoflop.benchmarks import data, memory
from isoflop.data import sources


def test_ratios_say_how_much_faster_the_first_way_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def work(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    monkeypatch.setattr(data.time, "process_time", lambda: clock)
    ways = {"own": lambda: work(0.5), "other": lambda: work(2)}
    own, other = data.compared(ways, amount=10, rounds=4)
    assert (own.per_second, own.ratios) == (20, ())
    assert (other.per_second, other.ratios) == (5, (4, 4, 4, 4))
    assert "goal 5: MISSED" in other.line("MB/s", goal=5)
    assert "goal 3: met" in other.line("MB/s", goal=3)


def test_the_made_source_holds_different_documents(tmp_path: Path) -> None:
    count = memory.make(tmp_path, 3_000_000)
    texts = [document.text for document in sources.documents(str(tmp_path))]
    assert len(texts) == len(set(texts)) == count
    assert 2_900_000 < sum(len(text.encode()) for text in texts) < 4_500_000
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk < 1_500_000


def test_memory_of_a_process_is_seen() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system does not tell the memory of processes")
    before = memory.used(os.getpid())
    held = np.ones(40_000_000, dtype=np.uint8)
    assert memory.used(os.getpid()) - before == pytest.approx(held.nbytes / 1e6, abs=10)


@pytest.mark.parametrize(("size", "rounds"), [(0, 5), (10, 2)])
def test_too_little_to_measure_is_refused(size: int, rounds: int) -> None:
    with pytest.raises(ValueError, match=r"at least 1 MB and 3 rounds"):
        data.show(size, "bytes", rounds)
