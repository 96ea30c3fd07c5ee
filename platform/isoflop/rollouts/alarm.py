"""Does a run write as it should, or is something wrong with it?

An `isoflop.captures.Alarm` watches one aggregate of a run's captures. It is raised only where the
whole interval lies outside the band: a handful of rollouts that happen to loop is no reason to end
a run. An untrained model is outside of any band that people wrote, so it is silent until `after`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isoflop.captures import Alarm, Rollouts
from isoflop.rollouts.catalogue import METRICS
from isoflop.rollouts.statistics import Aggregate


@dataclass(frozen=True, kw_only=True)
class Raised:
    """One alarm at one capture, as a record keeps it."""

    metric: str
    step: int
    value: float
    low: float  # of the interval
    high: float
    action: Literal["warn", "stop"]

    def __str__(self) -> str:
        ends = f"[{self.low:.3g}, {self.high:.3g}]"
        return f"alarm: {self.metric} is {self.value:.3g} {ends} after step {self.step}"


def check(rollouts: Rollouts) -> None:
    """Raises ValueError for an alarm on a metric or a set that no capture of the run has."""
    sets = {spec.name for spec in rollouts.asked}
    names = {metric.name for metric in METRICS}
    for alarm in rollouts.alarms:
        name, _, metric = alarm.metric.rpartition("/")
        paid = bool(rollouts.rewards) and metric.startswith("reward")
        if name not in sets or not (paid or metric in names):
            own = sorted(f"{spec}/" if spec else "(none)" for spec in sets)
            known = ", ".join(own) or "the run has no prompts"
            raise ValueError(
                f"the alarm's metric is {alarm.metric!r}; it must be the name of a metric "
                f"({', '.join(sorted(names))}) behind that of a set ({known})"
            )


def raised(
    alarms: Sequence[Alarm], aggregates: Mapping[str, Aggregate], *, step: int, steps: int
) -> list[Raised]:
    """Which of the alarms a capture after `step` of `steps` steps raises.

    A metric that has no value or no interval raises none. Raises ValueError for a metric that the
    capture does not know.
    """
    found = []
    for alarm in alarms:
        if alarm.metric not in aggregates:
            known = ", ".join(sorted(aggregates))
            raise ValueError(f"the alarm's metric is {alarm.metric!r}; known are {known}")
        seen = aggregates[alarm.metric]
        if (
            step < alarm.after * steps
            or seen.value is None
            or seen.low is None
            or seen.high is None
        ):
            continue
        above = alarm.high is not None and seen.low > alarm.high
        below = alarm.low is not None and seen.high < alarm.low
        if above or below:
            found.append(
                Raised(metric=alarm.metric, step=step, value=seen.value, low=seen.low,
                       high=seen.high, action=alarm.action)
            )  # fmt: skip
    return found
