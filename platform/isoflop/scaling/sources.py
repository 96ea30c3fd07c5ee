"""Where do the runs come from: a table, a study's results folder, or an experiment in MLflow?

Whatever it is becomes a table with one row per run, and, where the runs' histories are known, a
long one with a row per evaluation (for approach 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from isoflop.scaling import naming
from isoflop.scaling.columns import RULE_FLOPS, Columns
from isoflop.scaling.reading import read

RUNS = "runs.parquet"
FAMILY = "axis.arch"  # the axis by which a study's runs are told apart, where it has one
MLFLOW = "mlflow:"
NAMES = ("run", "run_id", "run_name", "name", "id")  # of the column that tells runs apart
Record = Mapping[str, float]
# (address, name) -> a row per run, and the records of each run's evaluations by its name
Experiment = Callable[[str, str], tuple[pd.DataFrame, Mapping[str, Sequence[Record]]]]


@dataclass(frozen=True, eq=False)
class Source:
    """The runs as they were found, and what their columns are taken for."""

    name: str
    table: pd.DataFrame  # one row per run
    columns: Columns
    history: pd.DataFrame | None = None  # one row per evaluation, with the columns of the run


def load(
    where: str, columns: Columns, *, long: bool = False, experiment: Experiment | None = None
) -> Source:
    """The runs at `where`: a file, a study's results folder, or mlflow:ADDRESS#EXPERIMENT, which
    `experiment` reads. `long`: the file has a row per evaluation. Raises ValueError."""
    if where.startswith(MLFLOW):
        return _tracked(where, columns, experiment)
    path = Path(where)
    if path.is_dir():
        return _study(path, columns)
    table = read(path)
    return _long(path.name, table, columns) if long else Source(path.name, table, columns)


def _tracked(where: str, columns: Columns, experiment: Experiment | None) -> Source:
    address, mark, name = where.removeprefix(MLFLOW).rpartition("#")
    if not (mark and address and name):
        raise ValueError(f"{where!r} must be {MLFLOW}ADDRESS#EXPERIMENT")
    if experiment is None:
        raise ValueError(f"{where!r}: nothing here reads MLflow")
    table, records = experiment(address, name)
    return _with_curves(name, table, columns, lambda run: records.get(run, ()))


def _study(folder: Path, columns: Columns) -> Source:
    """The run table of a study's results folder, with the histories of its runs."""
    folder = _one(folder)
    table = read(folder / RUNS)
    return _with_curves(folder.name, table, columns, lambda run: _history(folder / "runs" / run))


def _with_curves(
    name: str,
    table: pd.DataFrame,
    columns: Columns,
    records: Callable[[str], Sequence[Mapping[str, Any]]],
) -> Source:
    """A run table and what `records` knows of the way of each run."""
    known, rows = _exact(table, columns), list[dict[Any, Any]]()
    for row in table.to_dict("records"):
        rows += [{**row, **step} for step in _evaluations(records(str(row.get("run"))))]
    if "run" in table:
        known = replace(known, run=columns.run or "run")
    if not rows:
        return Source(name, table, known)
    history = pd.DataFrame(rows)
    if history["learning_rate"].notna().any():
        known = replace(known, rate=columns.rate or "learning_rate")
    return Source(name, table, known, history)


def _one(folder: Path) -> Path:
    """The study's folder, also where the folder of all studies is named and holds one."""
    if (folder / RUNS).is_file():
        return folder
    studies = sorted(path.parent for path in folder.glob(f"*/{RUNS}"))
    if len(studies) == 1:
        return studies[0]
    names = ", ".join(path.name for path in studies)
    more = f"; name one of {names} in it" if studies else "; run the study, or its --report, first"
    raise ValueError(f"{folder} is no study's results folder: there is no {RUNS}{more}")


def _exact(table: pd.DataFrame, columns: Columns) -> Columns:
    """A study counts its FLOPs exactly, and says which of its axes are families."""
    compute = "flops" if columns.c is None and "flops" in table else columns.c
    several = FAMILY in table and table[FAMILY].nunique() > 1
    return replace(columns, c=compute, by=columns.by or (FAMILY if several else None))


def _history(folder: Path) -> list[dict[str, Any]]:
    """Every logged record of a run; none where it has not ended, or the file is torn."""
    try:
        values = json.loads((folder / "history.json").read_text())
    except (FileNotFoundError, ValueError):
        return []
    return values if isinstance(values, list) else []


def _evaluations(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where a run stood each time that it was evaluated, after its first step. The learning rate
    (not that of the run table, which is the highest) is the last one that was logged."""
    found: list[dict[str, Any]] = []
    rate = None
    for step in records:
        rate = step.get("learning_rate", rate)
        if "val/loss" in step and step.get("tokens", 0) > 0:
            place: dict[str, Any] = {k: step[k] for k in ("tokens", "flops") if k in step}
            found.append({**place, "loss": step["val/loss"], "learning_rate": rate})
    return found


def _long(name: str, table: pd.DataFrame, columns: Columns) -> Source:
    """The ends of the runs of a long table, and the table itself."""
    run = columns.run or next((usual for usual in NAMES if usual in table), None)
    if run is None:
        raise ValueError(f"--curves takes the column that tells runs apart: name it with --run "
                         f"(none of {', '.join(NAMES)} is there)")  # fmt: skip
    if run not in table:
        raise ValueError(f"--run: there is no column {run!r}")
    chosen = replace(columns, run=run)
    by = next(
        (clock for clock in (columns.d, naming.found(table, "d"), "step") if clock in table), None
    )
    ordered = table if by is None else table.sort_values(by, kind="stable")
    ends = ordered.groupby(run, sort=False).tail(1).sort_index()
    begun = table if by is None else table[table[by] != 0]  # nothing was spent before a first step
    return Source(name, ends, chosen, begun)


def compute(columns: Columns) -> Columns:
    """Where nothing is known of the compute, the rule."""
    return columns if columns.c is not None else replace(columns, c=RULE_FLOPS)
