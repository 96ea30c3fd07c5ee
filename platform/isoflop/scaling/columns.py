"""Which columns of somebody's table are sizes, tokens, losses and compute, and which rows count?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from isoflop.scaling import checks
from isoflop.scaling.interval import Array, Refusal

RULE_FLOPS = "6ND"
RULE_TOKENS = "C/6N"
ONE_FAMILY = "all runs"

# Names under which published tables hold each quantity, the first that is there wins.
USUAL: Mapping[str, tuple[str, ...]] = {
    "n": (
        "params", "N", "n", "n_params", "num_params", "parameters", "model_size", "Model Size",
        "params_without_input_embedding", "params_all", "size",
    ),
    "d": (
        "tokens", "D", "d", "n_tokens", "num_tokens", "training_tokens", "Training Tokens",
        "train_tokens",
    ),
    "loss": ("loss", "L", "final_loss", "val_loss", "validation_loss", "eval_loss"),
    "c": ("flops", "C", "c", "compute", "FLOPs", "training_flops", "Training FLOP", "budget"),
}  # fmt: skip
MEANING = {"n": "parameters", "d": "tokens", "loss": "loss", "c": "compute"}


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None: a usual name is looked for. `c` may be the rule 6ND (so it is
    where it is None), `d` the rule C/6N (then `c` is a column)."""

    n: str | None = None
    d: str | None = None
    loss: str | None = None
    c: str | None = None  # RULE_FLOPS, unless the runs come from a study that counted exactly
    by: str | None = None  # families, each with a law of its own
    weights: str | None = None
    unique: str | None = None  # distinct tokens, where data were repeated
    planned: str | None = None  # tokens each run was planned for; a usual name is taken as well
    run: str | None = None  # which rows belong to one run: the bootstrap draws them together
    rate: str | None = None  # learning rates, in a table with a row per evaluation
    midway: bool = False  # losses before the end of a run count as well


@dataclass(frozen=True, eq=False)
class Runs:
    """What is fitted: columns size, tokens, flops, loss, family, weight (and unique), as floats;
    the index is that of the table."""

    frame: pd.DataFrame
    notes: tuple[str, ...]  # what was taken for what, and what was left out
    dropped: int  # the highest losses, left out on request
    refusals: tuple[Refusal, ...] = ()  # what the table does not let one conclude

    def family(self, name: str) -> pd.DataFrame:
        return self.frame[self.frame["family"] == name]

    @property
    def families(self) -> list[str]:
        return sorted(self.frame["family"].unique())


def read(path: Path) -> pd.DataFrame:
    """A table of runs from .csv, .tsv, .jsonl or .parquet. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    kind = path.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            table = pd.read_csv(path, sep="\t" if kind == ".tsv" else ",")
        elif kind == ".jsonl":
            table = pd.read_json(path, lines=True)
        elif kind == ".parquet":
            table = pd.read_parquet(path)
        else:
            raise ValueError("it must end in .csv, .tsv, .jsonl or .parquet")
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not len(table):
        raise ValueError(f"{path} has no rows")
    return table


def runs(table: pd.DataFrame, columns: Columns, drop: int = 0) -> Runs:
    """The rows that can be fitted. Raises ValueError for a column that is not there, for text, and
    for a value of 0 or below; rows with a missing value are left out and counted."""
    if drop < 0:
        raise ValueError(f"drop is {drop}; it must be at least 0")
    notes: list[str] = []
    whole = table
    table = _finished(table, notes)
    names = _names(table, columns, notes)
    frame = _numbers_of(table, names, columns)
    complete = frame.notna().all(axis=1)
    if not complete.all():
        notes.append(f"{int((~complete).sum())} of {len(frame)} rows lack a value and are left out")
    frame = frame[complete]
    frame["family"] = frame["family"].astype(str)
    for role, name in names.items():
        _above_zero(frame[role], name)
    frame = _rules(frame, columns).assign(**_planned(table, columns, frame.index))
    refusals = [_lost(whole, names)]
    if not columns.midway:
        frame, early = checks.shortfall(frame)
        refusals += [early, checks.betrayed(frame) if len(frame) else None]
    kept = _without_highest(frame, drop)
    if len(kept) < len(frame):
        notes.append(f"{len(frame) - len(kept)} rows with the highest losses are dropped")
    known = tuple(refusal for refusal in refusals if refusal)
    return Runs(kept, tuple(notes), len(frame) - len(kept), known)


def _numbers_of(table: pd.DataFrame, names: Mapping[str, str], columns: Columns) -> pd.DataFrame:
    """A column of floats per role, and which family and run each row is of."""
    numbers = {role: _numbers(table, name) for role, name in names.items()}
    frame = pd.DataFrame(numbers, index=table.index)
    frame["family"] = ONE_FAMILY if columns.by is None else table[_there(table, columns.by, "by")]
    if columns.run is not None:
        frame["run"] = table[_there(table, columns.run, "run")].astype(str)
    return frame


def _planned(table: pd.DataFrame, columns: Columns, rows: pd.Index) -> dict[str, Array]:
    """The tokens that each run was planned for, nan where that is not known."""
    usual = next((name for name in checks.PLANNED if name in table), None)
    name = usual if columns.planned is None else _there(table, columns.planned, "planned")
    return {} if name is None else {"planned": _numbers(table.loc[rows], name)}


def _lost(table: pd.DataFrame, names: Mapping[str, str]) -> Refusal | None:
    """The cells of runs that diverged or failed, where a column `status` tells of them."""
    if "status" not in table or not {"size", "tokens"} <= set(names):
        return None
    size, tokens = (_numbers(table, names[role]) for role in ("size", "tokens"))
    words = [str(word).lower() for word in table["status"]]
    return checks.lost(table, np.where(size > 0, size, np.nan), tokens, words)


def _finished(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """A study's own run table also holds runs that failed."""
    if "status" not in table or not (table["status"] == "finished").any():
        return table
    kept = table[table["status"] == "finished"]
    if len(kept) < len(table):
        notes.append(f"{len(table) - len(kept)} of {len(table)} rows are not of finished runs")
    return kept


def _names(table: pd.DataFrame, columns: Columns, notes: list[str]) -> dict[str, str]:
    """Role -> column; roles that a rule fills are not in it."""
    given = {"size": ("n", columns.n), "tokens": ("d", columns.d), "loss": ("loss", columns.loss)}
    found = {}
    for role, (option, name) in given.items():
        if not (role == "tokens" and name == RULE_TOKENS):
            found[role] = _column(table, option, name, notes)
    by_rule = columns.c in (None, RULE_FLOPS)
    if columns.d == RULE_TOKENS:
        found["flops"] = _column(table, "c", None if by_rule else columns.c, notes)
    elif not by_rule:
        found["flops"] = _column(table, "c", columns.c, notes)
    extras = (("weight", columns.weights), ("unique", columns.unique), ("rate", columns.rate))
    for role, extra in extras:
        if extra is not None:
            found[role] = _there(table, extra, role)
    return found


def _column(table: pd.DataFrame, option: str, name: str | None, notes: list[str]) -> str:
    if name is not None:
        return _there(table, name, option)
    for usual in USUAL[option]:
        if usual in table:
            notes.append(f"{MEANING[option]} from column {usual!r}")
            return usual
    raise ValueError(
        f"no column has a usual name for {MEANING[option]}; name it with --{option}. {_has(table)}"
    )


def _there(table: pd.DataFrame, name: str, option: str) -> str:
    if name not in table:
        raise ValueError(f"--{option}: there is no column {name!r}. {_has(table)}")
    return name


def _has(table: pd.DataFrame) -> str:
    names: Sequence[str] = [str(name) for name in table.columns]
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return f"The table has {', '.join(names[:30])}{more}"


def _numbers(table: pd.DataFrame, name: str) -> Array:
    """The column as floats, since 6ND overflows int64 above 9.2e18 FLOPs."""
    try:
        values = pd.to_numeric(table[name]).to_numpy(dtype=float, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ValueError(f"column {name!r} holds something other than numbers: {error}") from error
    numbers: Array = np.where(np.isinf(values), np.nan, values)
    return numbers


def _above_zero(values: pd.Series, name: str) -> None:
    bad = values[~(values > 0)]
    if len(bad):
        raise ValueError(
            f"column {name!r} is {bad.iloc[0]:g} in row {bad.index[0]}; values must be above 0"
            f" ({len(bad)} such rows)"
        )


def _rules(frame: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    if columns.d == RULE_TOKENS:
        frame = frame.assign(tokens=frame["flops"] / (6.0 * frame["size"]))
    if "flops" not in frame:
        frame = frame.assign(flops=6.0 * frame["size"] * frame["tokens"])
    return frame if "weight" in frame else frame.assign(weight=1.0)


def _without_highest(frame: pd.DataFrame, drop: int) -> pd.DataFrame:
    """Without the rows at or above the drop-th highest loss, as Besiroglu et al. 2024: ties go."""
    if not drop:
        return frame
    if drop >= len(frame):
        raise ValueError(f"drop is {drop}, but there are only {len(frame)} rows")
    edge = frame["loss"].nlargest(drop).iloc[-1]
    kept: pd.DataFrame = frame[frame["loss"] < edge]
    return kept
