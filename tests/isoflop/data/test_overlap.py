"""Is the share of n-grams that both sides have the true one?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoflop.data import overlap as module
from isoflop.data import shards
from isoflop.data.overlap import overlap
from isoflop.data.shards import TokenFile

END = 9
Documents = st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1, max_size=8)


def written(folder: Path, name: str, documents: list[list[int]]) -> TokenFile:
    ids = [np.array([*document, END], dtype=np.uint32) for document in documents]
    return shards.write(folder, name, ids, "uint16")


def grams(documents: list[list[int]], length: int) -> list[tuple[int, ...]]:
    return [tuple(d[k : k + length]) for d in documents for k in range(len(d) - length + 1)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(Documents, Documents, st.integers(2, 9))
def test_as_counted_by_hand(
    tmp_path: Path, train: list[list[int]], held_out: list[list[int]], length: int
) -> None:
    files = written(tmp_path, "train", train), written(tmp_path, "validation", held_out)
    found = overlap(*files, bytes_per_token=module.BYTES / length)
    known, wanted = set(grams(train, length)), grams(held_out, length)
    assert (found.length, found.checked) == (length, len(wanted))
    assert found.share == pytest.approx(
        sum(gram in known for gram in wanted) / len(wanted) if wanted else 0
    )


def test_blocks_and_samples_change_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    held_out = [random.integers(0, 5, 900).tolist() for _ in range(20)]
    train = [document[:450] for document in held_out]
    files = written(tmp_path, "train", train), written(tmp_path, "validation", held_out)
    whole = overlap(*files, bytes_per_token=4)
    assert whole.share == pytest.approx(0.5, abs=0.02)
    monkeypatch.setattr(module, "_BLOCK", 97)
    assert overlap(*files, bytes_per_token=4) == whole
    monkeypatch.setattr(module, "SAMPLE", 2000)
    sampled = overlap(*files, bytes_per_token=4)
    assert sampled.checked in range(2000, 2010)
    assert sampled.share == pytest.approx(whole.share, abs=0.06)
