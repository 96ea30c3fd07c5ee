"""Is an alarm raised where the evidence says so, and nowhere else?"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from isoflop.orchestration.job import FINAL, Job, execute
from isoflop.rollouts.alarm import check, raised
from isoflop.rollouts.statistics import Aggregate, mean
from isoflop.run import Alarm, Rollouts, Run, Spec
from isoflop.training.distributed import Ranks
from models import ZOO


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


def test_alarms_are_on_what_is_measured() -> None:
    code = Spec(name="code", prompts=("x",))
    check(Rollouts(prompts=("",), specs=(code,), alarms=(HIGH, Alarm(metric="code/loop", high=1))))
    for wrong in ("loops", "code/loops", "text/loop"):
        with pytest.raises(ValueError, match=f"'{wrong}'; it must be the name of a metric"):
            check(Rollouts(prompts=("",), specs=(code,), alarms=(Alarm(metric=wrong, high=1),)))
    with pytest.raises(ValueError, match="that of a set"):
        check(Rollouts(specs=(code,), alarms=(HIGH,)))
    assert "alarms" not in Rollouts(prompts=("",)).science(), "runs that have finished stay so"


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_run_is_warned_or_stopped(
    action: str, make_run: Callable[..., Run], make_job: Callable[..., Job]
) -> None:
    """Of next to untrained bytes the entropy is far above 1 nat."""
    alarm = Alarm(metric="code/entropy", high=1.0, after=0.3, action=action)  # type: ignore[arg-type]
    code = Spec(name="code", prompts=("x", "y", "z"), seeds=2, new_tokens=8)
    run = make_run(rollouts=Rollouts(specs=(code,), every=5, budget=1e9, alarms=(alarm,)))
    history: list[dict[str, float]] = []
    result = execute(make_job(run), Ranks(), history.extend)
    raised_at = [record["step"] for record in history if "alarm/code/entropy" in record]
    if action == "stop":
        assert (result["status"], result["step"], raised_at) == ("alarmed", 10, [10])
        assert "code/entropy is" in result["error"] and "after step 10" in result["error"]
        assert result["loss"] is None and result["status"] in FINAL
    else:
        assert (result["status"], raised_at) == ("finished", [10, 15, 20])
    assert Run.from_json(json.loads(json.dumps(run.as_json())), ZOO) == run
