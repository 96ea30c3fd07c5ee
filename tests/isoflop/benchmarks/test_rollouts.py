"""Does the benchmark measure what it says, on something small?"""

from __future__ import annotations

import pytest

from isoflop.benchmarks.rollouts import GOALS, Shape, measure, show

SMALL = Shape(rollouts=16, tokens=32, seeds=4, read=3000)


def test_every_part_is_clocked(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = measure(SMALL, 2)
    assert set(seconds) == set(GOALS) and all(len(own) == 2 for own in seconds.values())
    assert show(1, SMALL) in (0, 1)
    shown = capsys.readouterr().out
    assert "goal 0.2" in shown and "index of 1 M training tokens" in shown
    with pytest.raises(ValueError, match="--rounds 0"):
        show(0)
