"""How is a plain function asked what a rollout is worth, whichever convention it was written in?

Two conventions of Prime Intellect's `verifiers` are understood, and told apart by the names of the
arguments, of which a function declares those it needs:

    prompt, completion, answer, state, info     with texts and plain dictionaries
    task, trace                                 with objects: `task.answer`, `trace.root_reply`

Functions may be sync or async, and give a number, or several by name. One that raises, or gives
what is no finite number, has no value, and the reason is kept: a reward of 0 would be a judgement
of the model.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Function = Callable[..., Any]

CLASSIC = ("prompt", "completion", "answer", "state", "info")
OBJECTS = ("task", "trace")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What was asked. `info`: whatever else the author of a prompt set wrote beside it."""

    prompt: str
    answer: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    @property
    def data(self) -> Task:
        """`verifiers` keeps a task's values one step further in."""
        return self

    @property
    def prompt_text(self) -> str:
        return self.prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What came of it: text, tokens, and what the model thought of each (nats)."""

    task: Task
    completion: str
    prompt_ids: NDArray[np.int32]
    completion_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    stop_condition: str  # "stop" or "length"
    sample: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # those measured at the capture

    @property
    def root_reply(self) -> str:
        return self.completion

    @property
    def last_reply(self) -> str:
        return self.completion

    @property
    def is_truncated(self) -> bool:
        return self.stop_condition == "length"


@dataclass(frozen=True)
class Failure:
    """Why a function has no value here."""

    reason: str


Value = float | Failure


def of_row(
    row: Mapping[str, Any], answer: str | None = None, info: Mapping[str, Any] | None = None
) -> Trace:
    """One row of a capture, as `capture.read` or a parquet file gives it; with an answer and info
    other than its own, where they are given."""

    def floats(name: str) -> NDArray[np.float32]:
        return np.asarray(row[name], dtype=np.float32)

    metrics = {
        name.removeprefix("m."): float(value)
        for name, value in row.items()
        if name.startswith("m.") and value is not None and math.isfinite(value)
    }
    state = {name: row[name] for name in ("run", "step", "tokens_seen", "flops") if name in row}
    if answer is None:
        answer = row.get("answer") or ""
    if info is None:
        info = json.loads(row.get("info") or "{}")
    task = Task(prompt=row["prompt"], answer=answer, info=info, id=row["prompt_id"])
    return Trace(
        task=task,
        completion=row["text"],
        prompt_ids=np.asarray(row["prompt_ids"], dtype=np.int32),
        completion_ids=np.asarray(row["completion_ids"], dtype=np.int32),
        logprobs=floats("logprobs"),
        entropies=floats("entropies"),
        stop_condition=str(row.get("stop_condition", row.get("stop", ""))),
        sample=int(row["sample_id"]),
        state=state,
        metrics=metrics,
    )


def check(function: Function) -> None:
    """Raises ValueError that names an argument nobody could fill, or mixed conventions."""
    name = called(function)
    needed = [
        parameter.name
        for parameter in _parameters(function)
        if parameter.default is parameter.empty and parameter.kind not in _OPEN
    ]
    allowed = f"{', '.join(CLASSIC)}; or {', '.join(OBJECTS)}"
    for argument in needed:
        if argument not in CLASSIC + OBJECTS:
            raise ValueError(f"reward {name} asks for {argument!r}; it may ask for {allowed}")
    if "trace" in needed and set(needed) & set(CLASSIC):
        raise ValueError(f"reward {name} mixes two conventions; it may ask for {allowed}")


def called(function: Function) -> str:
    """What a function's values are known by: its name, or its class's."""
    return str(getattr(function, "__name__", type(function).__name__))


def arguments(function: Function, trace: Trace) -> dict[str, Any]:
    """Those of the function's arguments that a trace can fill."""
    task = trace.task
    known: dict[str, Any] = {
        "prompt": task.prompt,
        "completion": trace.completion,
        "answer": task.answer,
        "state": trace.state,
        "info": task.info,
        "trace": trace,
        "task": task,
    }
    parameters = _parameters(function)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return {name: value for name, value in known.items() if name not in OBJECTS}
    return {p.name: known[p.name] for p in parameters if p.name in known}


def values(function: Function, found: Any) -> dict[str, Value]:
    """What a function gave, by name: its own, or those of the mapping that it returned."""
    name = called(function)
    if isinstance(found, Mapping):
        return {str(inner): _number(value) for inner, value in found.items()}
    return {name: _number(found)}


def _number(value: Any) -> Value:
    if isinstance(value, str | bytes):
        return Failure(f"{type(value).__name__} is no number")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return Failure(f"{type(value).__name__} is no number")
    return number if math.isfinite(number) else Failure(f"{number} is not finite")


_OPEN = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _parameters(function: Function) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())
