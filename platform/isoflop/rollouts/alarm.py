"""Does a run write as it should, or is something wrong with it?

An `Alarm` watches one aggregate of a run's captures. It is raised only where the whole interval
lies outside the band: a handful of rollouts that happen to loop is no reason to end a run. An
untrained model is outside of any band that people wrote, so it is silent until `after`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isoflop.rollouts.statistics import Aggregate


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """The band that a metric must keep to, and what happens once it does not."""

    metric: str
    low: float | None = None
    high: float | None = None
    after: float = 0.1  # share of the run's steps
    action: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"the alarm on {self.metric} has no band; give low, high, or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(
                f"the alarm on {self.metric} has low {self.low} above high {self.high}"
            )
        if not 0 <= self.after <= 1:
            raise ValueError(f"the alarm on {self.metric} has after={self.after}; allowed: 0 to 1")
        if self.action not in ("warn", "stop"):
            raise ValueError(f"the alarm's action is {self.action!r}; it must be warn or stop")


@dataclass(frozen=True, kw_only=True)
class Raised:
    """One alarm at one capture, as a record keeps it."""

    metric: str
    step: int
    value: float
    low: float  # of the interval
    high: float
    action: Literal["warn", "stop"]


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
