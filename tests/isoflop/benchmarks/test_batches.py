"""Does the benchmark of batches measure every way to cut rows, with and without its peers?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from isoflop.benchmarks import batches
from isoflop.benchmarks.batches import LOADER, MIXTURE, ONE_BY_ONE, Shape
from isoflop.data.frames import FRAMES

TINY = Shape(rows=2, context=16, tokens=20_000, batches=2)


def test_every_way_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    seconds = batches.measure(TINY, 3, tmp_path)
    assert set(seconds) == {*FRAMES, MIXTURE, ONE_BY_ONE}
    assert all(len(taken) == 3 and min(taken) > 0 for taken in seconds.values())
    batches.show(2, TINY)
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in seconds)
    assert "datasets is not installed" in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_peer_of_datasets_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    assert LOADER in batches.measure(TINY, 2, tmp_path)


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="--rounds 1"):
        batches.show(1)
