"""How does what the models write move with compute, size and loss, and does the loss choose it?

A line for each telling metric of each set of prompts: its value on held-out text, whether the best
by loss are the best at it, and how well a law of it predicts runs of a budget held out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from isoflop.report.tables import text
from isoflop.rollouts.catalogue import METRICS
from isoflop.scaling.agreement import Agreement, agreement, metric_laws, rollout_metrics
from isoflop.scaling.interval import Refusal
from isoflop.scaling.isoflop import finished
from isoflop.scaling.plots import telling

USEFUL = 0.9  # a law whose error is not below this share of the spread tells nothing
REACH = 2.0  # spreads of the runs, beyond which a law is not believed, whatever it says
WORDS = {"flops": "compute", "size": "size", "loss": "loss"}


@dataclass(frozen=True)
class Line:
    """One metric, as the page shows it."""

    name: str
    reference: str
    agreement: str
    laws: tuple[str, ...]  # against compute, size and loss


def laws(table: pd.DataFrame, *, every: bool = False) -> pd.DataFrame:
    """`metric_laws` of the telling metrics that differ between runs, or of `every` one."""
    runs = finished(table)
    names = rollout_metrics(runs)
    kept = [name for name in (names if every else telling(names)) if runs[name].nunique() > 1]
    others = [name for name in rollout_metrics(table) if name not in kept]
    return metric_laws(table.drop(columns=others), rates=[n for n in kept if _share(n)])


def lines(
    table: pd.DataFrame, found: pd.DataFrame, references: Mapping[str, Mapping[str, float]]
) -> list[Line]:
    """What `laws` found, in words, with the agreement of each metric and the loss. `references`: by
    metric and run; their mean is shown."""
    if not len(found):
        return []
    by_metric: dict[str, list[dict[Any, Any]]] = {}
    for row in found.to_dict("records"):
        by_metric.setdefault(row["metric"], []).append(row)
    return [
        Line(
            metric.removeprefix("rollout/").replace("_", " "),
            text(fmean(references[metric].values())) if metric in references else "",
            _agreed(table, metric, references.get(metric)),
            tuple(_law(row, finished(table)[metric]) for row in rows),
        )
        for metric, rows in by_metric.items()
    ]


def _law(row: Mapping[Any, Any], measured: pd.Series[Any]) -> str:
    against = WORDS[row["against"]]
    if row["refused"]:
        return f"none against {against}: {row['refused']}"
    relative = row["relative"]
    if relative is None or math.isnan(relative):
        return f"against {against} nothing could be held out"
    if relative > USEFUL:
        said = f"{relative:.2f} of" if relative <= 2 else "more than twice"
        return f"against {against} no law: held out, its error is {said} the spread"
    beyond = "at 10 times as much" if row["against"] != "loss" else "at a tenth less"
    least, most = measured.min(), measured.max()
    far = REACH * (most - least)
    ends = [0.0 if abs(row[name]) < far / 1e4 else row[name] for name in ("beyond", "low", "high")]
    value = "{} [{}, {}]".format(*map(text, ends))
    if not least - far <= row["beyond"] <= most + far:
        value = f"it would be far from all that was measured ({text(least)} to {text(most)})"
    error = f"held-out error {relative:.2f} of the spread"
    return f"against {against} a {row['shape']}: {error}; {beyond} {value}"


def _agreed(table: pd.DataFrame, metric: str, reference: Mapping[str, float] | None) -> str:
    """Of a band, the order is by nearness to held-out text."""
    known = {item.name: item.direction for item in METRICS}
    name = metric.rpartition("/")[2]
    direction = known.get(name, "up" if name.startswith("reward") else "band")
    if direction == "band" and reference is None:
        return "no held-out value to be near to"
    found = agreement(table, metric, direction=direction, reference=reference)
    if isinstance(found, Refusal):
        return str(found)
    return _rank(found)


def _rank(found: Agreement) -> str:
    choice = "same best run" if found.same_choice else "another best run"
    return f"{found.tau:.2f} [{found.low:.2f}, {found.high:.2f}], {choice}"


def _share(metric: str) -> bool:
    name = metric.rpartition("/")[2]
    return any(item.name == name and item.share for item in METRICS)
