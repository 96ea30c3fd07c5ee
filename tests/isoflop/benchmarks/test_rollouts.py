"""Does the benchmark measure what it says, on something small?"""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.benchmarks import pages
from isoflop.benchmarks.rollouts import GOALS, Shape, measure, show
from isoflop.rollouts.report import page, store

SMALL = Shape(rollouts=16, tokens=32, seeds=4, read=3000)


def test_every_part_is_clocked(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = measure(SMALL, 2)
    assert set(seconds) == set(GOALS) and all(len(own) == 2 for own in seconds.values())
    assert show(1, SMALL) in (0, 1)
    shown = capsys.readouterr().out
    assert "goal 0.2" in shown and "index of 1 M training tokens" in shown
    with pytest.raises(ValueError, match="--rounds 0"):
        show(0)


def test_a_made_up_study_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = pages.Shape(runs=2, captures=3, prompts=2, seeds=2, tokens=16)
    study = pages.make(tmp_path / "study", shape)
    runs = store.runs(study)
    assert [len(run.captures) for run in runs] == [3, 3]
    assert page.select(runs, 10**6).written == 2 * 3 * 4
    monkeypatch.setattr("shutil.which", lambda name: None)  # as where there is no browser
    assert pages.show(shape) == 0
