"""Is an alarm raised where the evidence says so, and nowhere else?"""

from __future__ import annotations

from typing import Any

import pytest

from isoflop.rollouts.alarm import Alarm, raised
from isoflop.rollouts.statistics import Aggregate, mean


def loops(share: float, prompts: int = 20) -> dict[str, Aggregate]:
    values = [float(index < share * prompts) for index in range(prompts)]
    return {"loop": mean(values, range(prompts), share=True)}


HIGH = Alarm(metric="loop", high=0.3, action="stop")


def test_only_an_interval_outside_the_band_raises() -> None:
    (found,) = raised([HIGH], loops(0.9), step=50, steps=100)
    assert (found.metric, found.step, found.action) == ("loop", 50, "stop")
    assert found.low > 0.3 and found.value == 0.9
    assert raised([HIGH], loops(0.35), step=50, steps=100) == [], "0.35 may well be 0.3"
    assert raised([HIGH], loops(0.0), step=50, steps=100) == []
    low = Alarm(metric="loop", low=0.9)
    assert raised([low], loops(0.1), step=50, steps=100)[0].action == "warn"


def test_silent_at_first_and_without_a_value() -> None:
    assert raised([HIGH], loops(1.0), step=9, steps=100) == []
    assert raised([HIGH], loops(1.0), step=10, steps=100)
    nothing = {"loop": Aggregate(None, None, None, None, 0, 0, "no values")}
    assert raised([HIGH], nothing, step=50, steps=100) == []


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ValueError, match="'loops'; known are loop"):
        raised([Alarm(metric="loops", high=1)], loops(0), step=1, steps=1)


@pytest.mark.parametrize(
    "values", [{}, {"low": 2, "high": 1}, {"low": 0, "after": 2}, {"low": 0, "action": "shout"}]
)
def test_what_cannot_be_watched_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="alarm"):
        Alarm(metric="loop", **values)
