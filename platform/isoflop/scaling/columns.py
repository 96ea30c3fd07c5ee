"""Which columns of somebody's table are sizes, tokens, losses and compute, and which rows count?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoflop.scaling import checks, naming, reading
from isoflop.scaling.interval import Array, Refusal
from isoflop.scaling.naming import column, factor, there

RULE_FLOPS = "6ND"
RULE_TOKENS = "C/6N"
ONE_FAMILY = "all runs"
MOST_ROWS = 6  # that a note names


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


def runs(table: pd.DataFrame, columns: Columns, drop: int = 0) -> Runs:
    """The rows that can be fitted. Raises ValueError for a column that is not there, for text, and
    for a value of 0 or below; rows with a missing value are left out and named."""
    if drop < 0:
        raise ValueError(f"drop is {drop}; it must be at least 0")
    notes: list[str] = []
    whole = table
    table = _finished(table, notes)
    names = _names(table, columns, notes)
    frame = _numbers_of(table, names, columns)
    frame = _complete(frame, names, notes)
    frame["family"] = frame["family"].astype(str)
    for role, name in names.items():
        _above_zero(frame[role], name)
    frame = _rules(frame, names).assign(**_planned(table, columns, frame.index))
    refusals = [_lost(whole, names)]
    if not columns.midway:
        frame, early = checks.shortfall(frame)
        refusals += [early, checks.betrayed(frame) if len(frame) else None]
        notes += _alike(frame)
    kept = _without_highest(frame, drop)
    if len(kept) < len(frame):
        each = " of each family" if columns.by else ""
        notes.append(f"{len(frame) - len(kept)} rows are dropped: the {drop} highest losses{each}")
    known = tuple(refusal for refusal in refusals if refusal)
    return Runs(kept, tuple(notes), len(frame) - len(kept), known)


def _numbers_of(table: pd.DataFrame, names: Mapping[str, str], columns: Columns) -> pd.DataFrame:
    """A column of floats per role, and which family and run each row is of."""
    numbers = {role: reading.numbers(table, name, factor(name)) for role, name in names.items()}
    frame = pd.DataFrame(numbers, index=table.index)
    frame["family"] = ONE_FAMILY if columns.by is None else table[there(table, columns.by, "by")]
    if columns.run is not None:
        frame["run"] = table[there(table, columns.run, "run")].astype(str)
    return frame


def _complete(frame: pd.DataFrame, names: Mapping[str, str], notes: list[str]) -> pd.DataFrame:
    """The rows with all values; of the others the note says what they lack."""
    gone = frame[frame.isna().any(axis=1)]
    if len(gone):
        said = {
            row: ", ".join(names.get(str(role), str(role)) for role in lacks[lacks].index)
            for row, lacks in gone.head(MOST_ROWS).isna().iterrows()
        }
        shown = [f"row {row} ({what})" for row, what in said.items()]
        more = f" and {len(gone) - MOST_ROWS} more" if len(gone) > MOST_ROWS else ""
        notes.append(f"{len(gone)} of {len(frame)} rows lack a value and are left out: "
                     f"{', '.join(shown)}{more}")  # fmt: skip
    return frame.drop(index=gone.index)


def _alike(frame: pd.DataFrame) -> list[str]:
    """Rows that say the same twice are more likely copied than measured."""
    again = int(frame.duplicated(["family", "size", "tokens", "loss"]).sum())
    if not again:
        return []
    rows = "1 row repeats another's" if again == 1 else f"{again} rows repeat others'"
    return [f"{rows} size, tokens and loss exactly; each counts as a run"]


def _planned(table: pd.DataFrame, columns: Columns, rows: pd.Index) -> dict[str, Array]:
    """The tokens that each run was planned for, nan where that is not known."""
    usual = next((name for name in checks.PLANNED if name in table), None)
    name = usual if columns.planned is None else there(table, columns.planned, "planned")
    return {} if name is None else {"planned": reading.numbers(table.loc[rows], name)}


def _lost(table: pd.DataFrame, names: Mapping[str, str]) -> Refusal | None:
    """The cells of runs that diverged or failed, where a column `status`, or a word in the place
    of a number for the loss, tells of them."""
    if not {"size", "tokens"} <= set(names):
        return None
    empty = pd.Series("", index=table.index)
    words = table["status"].astype(str).str.lower() if "status" in table else empty
    told = table[names["loss"]]
    words = words.where(~told.map(reading.lost), told.astype(str).str.strip().str.lower())
    size, tokens = (reading.numbers(table, names[k], factor(names[k])) for k in ("size", "tokens"))
    return checks.lost(table, np.where(size > 0, size, np.nan), tokens, list(words))


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
    found = {"size": column(table, "n", columns.n, notes)}
    known = naming.found(table, "c")
    by_rule = columns.c in (None, RULE_FLOPS)
    divided = columns.d == RULE_TOKENS
    if columns.d is None and known and naming.found(table, "d") is None:
        divided = True
        notes.append(f"no column has a usual name for tokens: by the rule {RULE_TOKENS}")
    if not divided:
        found["tokens"] = column(table, "d", columns.d, notes)
    found["loss"] = column(table, "loss", columns.loss, notes)
    if divided:
        found["flops"] = column(table, "c", None if by_rule else columns.c, notes)
    elif not by_rule:
        found["flops"] = column(table, "c", columns.c, notes)
    elif known:
        notes.append(f"compute by the rule {RULE_FLOPS}; --c {known!r} would take that column")
    extras = (("weight", columns.weights), ("unique", columns.unique), ("rate", columns.rate))
    for role, extra in extras:
        if extra is not None:
            found[role] = there(table, extra, role)
    return found


def _above_zero(values: pd.Series, name: str) -> None:
    bad = values[~(values > 0)]
    if len(bad):
        raise ValueError(
            f"column {name!r} is {bad.iloc[0]:g} in row {bad.index[0]}; values must be above 0, "
            f"or empty where they are not known ({len(bad)} such row{'s' * (len(bad) != 1)})"
        )


def _rules(frame: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    if "tokens" not in names:
        frame = frame.assign(tokens=frame["flops"] / (6.0 * frame["size"]))
    if "flops" not in frame:
        frame = frame.assign(flops=6.0 * frame["size"] * frame["tokens"])
    return frame if "weight" in frame else frame.assign(weight=1.0)


def _without_highest(frame: pd.DataFrame, drop: int) -> pd.DataFrame:
    """Without each family's rows at or above its drop-th highest loss, as Besiroglu et al. 2024:
    ties go."""
    if not drop:
        return frame
    for name, rows in frame.groupby("family"):
        if drop >= len(rows):
            raise ValueError(f"drop is {drop}, but there are only {len(rows)} rows of {name}")
    edge = frame.groupby("family")["loss"].transform(lambda loss: loss.nlargest(drop).iloc[-1])
    kept: pd.DataFrame = frame[frame["loss"] < edge]
    return kept
