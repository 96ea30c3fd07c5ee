"""Which numbers stand behind the report? Tables for the page, and as CSV for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isoflop.scaling.holdout import Score
from isoflop.scaling.interval import Interval, Refusal
from isoflop.scaling.isoflop import Minimum

if TYPE_CHECKING:
    from isoflop.report.analysis import Analysis


def minima_table(found: Sequence[Minimum]) -> pd.DataFrame:
    """One row per family and budget, intervals in columns `.low` and `.high`; refusals in words."""
    rows = []
    for minimum in found:
        row: dict[str, object] = {
            "family": minimum.family,
            "budget": minimum.budget,
            "flops": minimum.flops,
            "flops_6nd": minimum.flops_6nd,
            "points": minimum.points,
            "status": minimum.status if minimum.status == "interior" else minimum.status.reason,
            "explanation": "" if minimum.status == "interior" else str(minimum.status),
            "interior_share": minimum.interior,
        }
        for quantity in ("size", "tokens", "loss"):
            interval: Interval | None = getattr(minimum, quantity)
            for suffix, bound in (("", "value"), (".low", "low"), (".high", "high")):
                row[quantity + suffix] = getattr(interval, bound) if interval else None
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["family", "budget", "status"])


def laws_table(analysis: Analysis) -> pd.DataFrame:
    """One row per family and parameter of the law, and per form's held-out error."""
    rows: list[dict[str, object]] = []
    for one in analysis.fits:
        if isinstance(one.law, Refusal):
            rows.append({"family": one.family, "remark": str(one.law)})
            continue
        for name in one.law.fit.form.parameters:
            interval = one.law.interval(name)
            rows.append(
                {"family": one.family, "form": one.law.fit.form.name, "quantity": name,
                 "value": interval.value, "low": interval.low, "high": interval.high}
            )  # fmt: skip
        for form in one.forms:
            held = form.held_out
            value = held.error if isinstance(held, Score) else None
            remark = "" if isinstance(held, Score) else str(held)
            rows.append(
                {"family": one.family, "form": form.form, "quantity": "held-out error",
                 "value": value, "remark": remark}
            )  # fmt: skip
    return pd.DataFrame(rows)


def predictions(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What was predicted of runs before they started, and what became of it."""
    if "predicted" not in table:
        return []
    rows = []
    for row in table[table["predicted"].notna()].to_dict("records"):
        loss = None if row.get("loss") is None else float(row["loss"])
        if loss is not None and not np.isfinite(loss):
            loss = None
        low, high = float(row["predicted_low"]), float(row["predicted_high"])
        rows.append(
            {
                "label": str(row.get("label", row["run"])),
                "predicted": Interval(float(row["predicted"]), low, high),
                "loss": loss,
                "inside": None if loss is None else low <= loss <= high,
            }
        )
    return rows


def checks_table(analysis: Analysis) -> pd.DataFrame:
    """The checklist, a row per check."""
    return pd.DataFrame(
        [vars(check) for check in analysis.checks], columns=["name", "status", "evidence", "cure"]
    )


RUN_COLUMNS = (
    "label",
    "status",
    "loss",
    "bits_per_byte",
    "error",
    "params_all",
    "params_active",
    "params_without_input_embedding",
    "params_without_embeddings",
    "tokens",
    "epochs",
    "steps",
    "learning_rate",
    "flops",
    "flops_if_dense",
    "flops_attention",
    "flops_head",
    "flops_recomputed",
    "flops_6nd_all",
    "flops_6nd_without_embeddings",
    "best_loss",
    "train_loss",
    "tokens_per_second",
    "utilisation",
    "seconds",
    "planned_seconds",
    "taken_seconds",
)


ROUTED = {"params_active": "params_all", "flops_if_dense": "flops"}  # equal but for experts


def run_rows(table: pd.DataFrame) -> dict[str, Any]:
    """The table of all runs: headings, and per cell its text and the value that sorts it."""
    axes = [str(c) for c in table.columns if str(c).startswith("axis.")]
    same = {c for c, of in ROUTED.items() if c in table and (table[c] == table[of]).all()}
    columns = [c for c in RUN_COLUMNS if c in table and c not in same]
    columns[4:4] = axes
    rows = [
        {
            "status": str(row["status"]),
            "cells": [(text(row.get(column)), _sorting(row.get(column))) for column in columns],
        }
        for row in table.to_dict("records")
    ]
    heads = [_head(column) for column in columns]
    return {"heads": heads, "rows": rows}


def _head(column: str) -> str:
    if column == "utilisation":  # of its data sheet's, where that is known
        return "of the device's peak"
    return column.removeprefix("axis.").replace("params_", "N ").replace("_", " ")


def text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, (int, float, np.number)):
        number = float(value)
        whole = number == round(number) and abs(number) < 1e5
        return f"{number:.0f}" if whole else f"{number:.4g}".replace("e+", "e")
    return str(value)


def _sorting(value: object) -> str:
    number = isinstance(value, (int, float, np.number)) and not np.isnan(float(value))
    return repr(float(value)) if number else text(value)  # type: ignore[arg-type]
