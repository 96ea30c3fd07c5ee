"""What are these rollouts worth, by several rewards with their weights?

    @reward(weight=0.5)
    def short(completion: str) -> float:
        return 1.0 if len(completion) < 80 else 0.0

    rubric = Rubric([(parses, 1.0), short, metric(words)])
    scores = rubric.score(traces)

A file of such functions is a rubric too (`text`, `of_text`): `Rollouts(rubric="MY.py")` rewards a
run's captures, `isoflop reward --rubric MY.py` teaches by it.

The reward of a rollout is the weighted sum; a function of weight 0 is a metric, and only noted. A
rollout for which a weighted function has no value has no reward, and is counted.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from isoflop.rollouts.rewards import (
    Failure,
    Function,
    Trace,
    Value,
    arguments,
    called,
    check,
    of_row,
    values,
)
from isoflop.rollouts.statistics import Aggregate, mean

WEIGHT = "isoflop_weight"
SHIPPED = "python"  # the rubric that comes with isoflop: `python_rubric`
AT_ONCE = 64  # async functions that wait side by side


def reward(weight: float = 1.0) -> Callable[[Function], Function]:
    """Marks a function with its weight in a rubric."""

    def mark(function: Function) -> Function:
        setattr(function, WEIGHT, float(weight))
        return function

    return mark


def metric(function: Function) -> Function:
    """Marks a function as one that is noted but not rewarded."""
    return reward(0.0)(function)


@dataclass(frozen=True, eq=False)
class Score:
    """Of one rollout. `reward`: None where a weighted function has no value."""

    reward: float | None
    parts: Mapping[str, float | None]
    errors: Mapping[str, str]
    weights: Mapping[str, float] = field(default_factory=dict)  # of the parts; 0: a metric


@dataclass(frozen=True, eq=False)
class Scores:
    """Of many rollouts, in their order."""

    rows: tuple[Score, ...]
    prompts: tuple[str, ...] = field(repr=False)  # which each of them continues

    @property
    def rewards(self) -> list[float | None]:
        return [row.reward for row in self.rows]

    @property
    def failures(self) -> dict[str, int]:
        """How often each function had no value."""
        return dict(Counter(name for row in self.rows for name in row.errors))

    def columns(self) -> dict[str, list[float | None]]:
        """For a table of the rows: `reward`, and `reward.<function>` for each."""
        names = dict.fromkeys(name for row in self.rows for name in row.parts)
        parts = {f"reward.{name}": [row.parts.get(name) for row in self.rows] for name in names}
        return {"reward": self.rewards, **parts}

    def aggregates(self) -> dict[str, Aggregate]:
        """Mean and interval of every column, prompts being the sample."""
        numbers = {prompt: index for index, prompt in enumerate(dict.fromkeys(self.prompts))}
        groups = [numbers[prompt] for prompt in self.prompts]
        return {name: mean(column, groups) for name, column in self.columns().items()}


class Rubric:
    """Functions with weights: `(function, weight)`, or a function that is marked, or worth 1.

    Raises ValueError for a function whose arguments nobody could fill, a name that stands twice,
    and a rubric of none.
    """

    def __init__(self, functions: Sequence[Function | tuple[Function, float]]) -> None:
        pairs = [item if isinstance(item, tuple) else (item, _weight(item)) for item in functions]
        if not pairs:
            raise ValueError("a rubric needs at least one function")
        for function, _ in pairs:
            check(function)
        names = [called(function) for function, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"the rubric has {twice!r} twice; each name may stand there once")
        self.functions = tuple((function, float(weight)) for function, weight in pairs)

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Not from within an event loop: `await rubric.ascore(traces)` there."""
        return asyncio.run(self.ascore(traces))

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, str] | None = None
    ) -> Scores:
        """The rows of captures; `answers` by the prompt's text."""
        found = answers or {}
        return self.score([of_row(row, found.get(row["prompt"])) for row in rows])

    async def ascore(self, traces: Sequence[Trace]) -> Scores:
        """Every function on every rollout; those that wait do so side by side."""
        gate = asyncio.Semaphore(AT_ONCE)
        rows = await asyncio.gather(*(self._one(trace, gate) for trace in traces))
        return Scores(tuple(rows), tuple(trace.task.prompt for trace in traces))

    async def _one(self, trace: Trace, gate: asyncio.Semaphore) -> Score:
        parts: dict[str, float | None] = {}
        errors: dict[str, str] = {}
        weights: dict[str, float] = {}
        total: float | None = 0.0
        async with gate:
            for function, weight in self.functions:
                for name, value in (await _ask(function, trace)).items():
                    weights[name] = weight
                    if isinstance(value, Failure):
                        errors[name], parts[name] = value.reason, None
                        total = None if weight else total
                    else:
                        parts[name] = value
                        total = None if total is None else total + weight * value
        return Score(total, parts, errors, weights)


def text(file: str | Path) -> str:
    """The source of a rubric: of a file, or the one that comes with isoflop.

    Raises ValueError where it cannot be read, or is no rubric.
    """
    own = resources.files("isoflop.rollouts") / "python_rubric.py"
    path = own if str(file) == SHIPPED else Path(file)
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"rubric {file} cannot be read: {error}") from error
    of_text(found, str(file))
    return found


def of_text(source: str, name: str = "the rubric") -> Rubric:
    """The functions that a source marks, in their order. It is run: it is the user's own.

    Raises ValueError where it marks none, or cannot be run.
    """
    names: dict[str, Any] = {"__name__": "rubric"}
    try:
        exec(compile(source, name, "exec"), names)
    except Exception as error:  # a user's file: anything
        raise ValueError(f"rubric {name} cannot be read: {error!r}") from error
    marked = [value for value in names.values() if hasattr(value, WEIGHT)]
    if not marked:
        raise ValueError(f"rubric {name}: no function in it is marked @reward or @metric")
    return Rubric(marked)


async def _ask(function: Function, trace: Trace) -> dict[str, Value]:
    try:
        found = function(**arguments(function, trace))
        if inspect.isawaitable(found):
            waiting: Awaitable[Any] = found
            found = await waiting
    except Exception as error:  # whatever an outside function raises is a fact about that function
        return {called(function): Failure(f"{type(error).__name__}: {error}")}
    return values(function, found)


def _weight(function: Function) -> float:
    return float(getattr(function, WEIGHT, 1.0))
