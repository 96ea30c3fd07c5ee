"""What was asked beside the laws of the loss: of hyper-parameters, tasks, metrics?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from isoflop.scaling import sketches
from isoflop.scaling.hyperparameters import Cell, HyperLaw, hyper_laws, optima
from isoflop.scaling.interval import Interval, Refusal, compact
from isoflop.scaling.metrics import Against, Kind, MetricLaw, metric_law
from isoflop.scaling.response import SHAPES
from isoflop.scaling.tasks import TaskScore, task_score, two_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isoflop.scaling.columns import Runs
    from isoflop.scaling.question import Question
    from isoflop.scaling.sources import Source

TaskCurve = Literal["exponential", "sigmoid"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Columns of the table, and what is known of them."""

    hyper: tuple[str, ...] = ()  # hyper-parameters whose best value is asked
    tasks: tuple[str, ...] = ()  # accuracies or errors
    curve: TaskCurve = "exponential"
    chance: float | None = None  # the accuracy of guessing; None: fitted
    metrics: tuple[str, ...] = ()
    kind: Kind = "value"
    floor: float | None = None  # what the metrics tend to
    against: Against = "flops"

    def __post_init__(self) -> None:
        if self.curve not in ("exponential", "sigmoid"):
            raise ValueError(f"--task-curve is {self.curve!r}; it must be exponential or sigmoid")
        if self.chance is not None and not 0 <= self.chance < 1:
            raise ValueError(f"--chance is {self.chance}; it must lie in [0, 1)")
        if self.against not in ("flops", "loss"):
            raise ValueError(f"--against is {self.against!r}; it must be flops or loss")


@dataclass(frozen=True, eq=False)
class Said:
    """Answers as lines for a terminal, as JSON, and as figures that are drawn when asked for."""

    lines: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)

    def add(self, lines: Sequence[str], record: dict[str, Any]) -> None:
        self.lines.extend(lines)
        self.records.append(record)


def said(question: Question, source: Source, table: Runs) -> Said:
    """Every answer that was asked for. Raises ValueError for a column that is not there."""
    found, asked = Said(), question.asked
    if asked.hyper:
        _hyper(found, question, source, table)
    for name in asked.tasks:
        for family, rows, values in _columns(source, table, name):
            _task(found, question, name, family, rows, values)
    for name in asked.metrics:
        for family, rows, values in _columns(source, table, name):
            _metric(found, question, name, family, rows, values)
    return found


def _columns(
    source: Source, table: Runs, name: str
) -> Iterator[tuple[str, pd.DataFrame, np.ndarray[Any, np.dtype[np.float64]]]]:
    """The runs of each family that have a value in the column."""
    if name not in source.table:
        have = ", ".join(str(column) for column in source.table.columns[:30])
        raise ValueError(f"there is no column {name!r}. The table has {have}")
    values = pd.to_numeric(source.table[name], errors="coerce")
    for family in table.families:
        rows = table.family(family)
        rows = rows[np.isfinite(values.loc[rows.index])]
        yield family, rows, values.loc[rows.index].to_numpy(float)


def _hyper(found: Said, question: Question, source: Source, table: Runs) -> None:
    names, extra = question.asked.hyper, {}
    for name in names:
        whole = pd.Series(np.nan, index=table.frame.index)
        for _, rows, values in _columns(source, table, name):
            whole[rows.index] = values
        extra[name] = whole
    frame = table.frame.assign(**extra).dropna(subset=list(names))
    cells = optima(frame, names, resamples=question.resamples, seed=question.seed)
    laws = hyper_laws(cells, names, resamples=question.resamples, seed=question.seed)
    for name in names:
        known = {family: law for (family, other), law in laws.items() if other == name}
        found.figures[f"best {name}"] = partial(sketches.optima, name, cells, known)
    for (family, name), law in laws.items():
        own = [cell for cell in cells if cell.family == family]
        lines = ["", f"best {name}, {family}:", *(f"  {_cell(cell, name)}" for cell in own)]
        head: dict[str, Any] = {"law": "hyperparameter", "hyperparameter": name, "family": family}
        head["cells"] = [_cell_record(cell, name) for cell in own]
        if isinstance(law, Refusal):
            found.add([*lines, f"  no law: {law}"], head | {"refusal": law.record()})
            continue
        most = max((cell for cell in own), key=lambda cell: cell.flops)
        target = law.predict(most.size, most.tokens, most.flops)
        found.add([*lines, f"  {_hyper_words(law)}"], head | _hyper_record(law, target))


def _cell(cell: Cell, name: str) -> str:
    at = f"N {compact(cell.size)} D {compact(cell.tokens)}, {cell.points} runs"
    if isinstance(cell.status, Refusal):
        return f"{at}: {cell.status.reason.upper()}: {cell.status}"
    return f"{at}: {_interval(cell.best[name])}"


def _cell_record(cell: Cell, name: str) -> dict[str, Any]:
    head = {"N": cell.size, "D": cell.tokens, "C": cell.flops, "points": cell.points}
    if isinstance(cell.status, Refusal):
        return head | {"refusal": cell.status.record()}
    return head | {"best": _values(cell.best[name])}


def _hyper_words(law: HyperLaw) -> str:
    powers = " ".join(f"{axis}^{_interval(value)}" for axis, value in law.exponents.items())
    scatter = f"; cells scatter by {100 * law.between:.0f} % about it" if law.between else ""
    return f"{law.name}* = {_interval(law.coefficient)} {powers} from {law.cells} cells{scatter}"


def _hyper_record(law: HyperLaw, target: Interval) -> dict[str, Any]:
    return {
        "coefficient": _values(law.coefficient),
        "exponents": {axis: _values(value) for axis, value in law.exponents.items()},
        "between_cells": law.between,
        "cells_left_out": len(law.left_out),
        "at_largest_cell": _values(target),
    }


def _task(
    found: Said, question: Question, name: str, family: str, rows: pd.DataFrame, values: Any
) -> None:
    shape = SHAPES[question.asked.curve](question.asked.chance)
    n, d, c, loss = (rows[k].to_numpy(float) for k in ("size", "tokens", "flops", "loss"))
    count, seed = question.resamples, question.seed
    steps = two_step(n, d, loss, values, shape, flops=c, resamples=count, seed=seed)
    head: dict[str, Any] = {"law": "task", "task": name, "family": family, "curve": shape.equation}
    lines = ["", f"{name}, {family}: compute to loss (chinchilla) to {shape.equation}"]
    if isinstance(steps, Refusal):
        found.add([*lines, f"  no law: {steps}"], head | {"refusal": steps.record()})
        return
    found.figures[f"{name}, {family}"] = partial(sketches.task, name, steps, loss, values)
    target = question.target or float(c.max())
    best = steps.law.optimum(target)
    lines.append(f"  scatter about the curve {steps.curve.scatter:.4f}, {len(values)} runs")
    head |= {"scatter": steps.curve.scatter, "points": len(values)}
    if isinstance(best, Refusal):
        lines.append(f"  at {target:.3g} FLOPs: no optimum, {best}")
        head["refusal"] = best.record()
    else:
        ahead = steps.predict(best.size.value, best.tokens.value, seed=seed)
        lines.append(f"  one more run at the optimum of {target:.3g} FLOPs: {_interval(ahead)}")
        head["prediction"] = {"C": target, **_values(ahead)}
    held = task_score(n, d, c, loss, values, shape, resamples=min(count, 200), seed=seed)
    lines.append(f"  held out: {_task_words(held)}")
    head["held_out"] = held.record() if isinstance(held, Refusal) else vars(held)
    found.add(lines, head)


def _task_words(held: TaskScore | Refusal) -> str:
    if isinstance(held, Refusal):
        return str(held)
    return (
        f"{held.points} runs of the most compute (x{held.reach:.2g}) are missed by "
        f"{held.error:.4f} (their mean would by {held.naive:.4f}), "
        f"{100 * held.covered:.0f} % in their interval"
    )


def _metric(
    found: Said, question: Question, name: str, family: str, rows: pd.DataFrame, values: Any
) -> None:
    asked = question.asked
    loss = rows["loss"].to_numpy(float) if asked.against == "loss" else None
    law = metric_law(
        values, rows["flops"], loss=loss, floor=asked.floor, kind=asked.kind,
        resamples=question.resamples, seed=question.seed,
    )  # fmt: skip
    head: dict[str, Any] = {"law": "metric", "metric": name, "family": family}
    head["against"] = asked.against
    lines = ["", f"{name}, {family}, against {asked.against}:"]
    if isinstance(law, Refusal):
        found.add([*lines, f"  no law: {law}"], head | {"refusal": law.record()})
        return
    over = rows[asked.against].to_numpy(float)
    found.figures[f"{name}, {family}"] = partial(sketches.metric, name, law, over, values)
    lines.append(f"  {law.curve.shape.equation}, scatter {law.curve.scatter:.4g}")
    for shape, error in law.held_out.items():
        chosen = "  <- chosen" if shape == law.curve.shape.name else ""
        lines.append(f"  {shape:9} misses budgets held out by {error:.4g}{chosen}")
    head |= {"shape": law.curve.shape.name, "floor": law.floor, "scatter": law.curve.scatter}
    head["held_out"] = dict(law.held_out)
    at = _asked_at(question, law, rows)
    ahead = law.predict(at, noise=True, seed=question.seed)
    lines.append(f"  one more run at {asked.against} {at:.4g}: {_interval(ahead)}")
    found.add(lines, head | {"prediction": {"at": at, **_values(ahead)}})


def _asked_at(question: Question, law: MetricLaw, rows: pd.DataFrame) -> float:
    """The target compute, or the lowest loss."""
    if law.against == "loss":
        return float(rows["loss"].min())
    return question.target or float(rows["flops"].max())


def _interval(value: Interval) -> str:
    return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"


def _values(value: Interval) -> dict[str, Any]:
    finite = [x if np.isfinite(x) else None for x in (value.value, value.low, value.high)]
    return {"value": finite[0], "interval": finite[1:]}
