"""What did the study find? One page that a researcher reads first, and the files behind it.

`analyse` fits, `build` writes: `report.html` (self-contained: figures inline, nothing is fetched),
`figures/*.png` and `minima.csv`. Every file is written under another name and then put in place, so
a reader never sees half a report.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isoflop.scaling.files import put
from isoflop.scaling.interval import Interval, Refusal, compact, scientific
from isoflop.scaling.isoflop import Exponents, Minimum, exponents, families, finished, minima
from isoflop.scaling.parametric import PARAMETERS, ParametricFit, Resampled, bootstrap, fit
from isoflop.scaling.verdict import Verdict, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = "params_without_input_embedding"
CONVENTIONS = ("params_all", SIZE, "params_without_embeddings")
MOST_TEXT = 2_000_000  # bytes of rollouts in the page; the parquet files hold the rest


@dataclass(frozen=True)
class FamilyFit:
    """Approach 3 for one family."""

    family: str
    law: Resampled | Refusal


@dataclass(frozen=True)
class Growth:
    """The exponents of every family when N is counted in one convention."""

    convention: str
    exponents: tuple[Exponents, ...]


@dataclass(frozen=True)
class Analysis:
    """All that is concluded from a run table."""

    minima: tuple[Minimum, ...]
    exponents: tuple[Growth, ...]
    fits: tuple[FamilyFit, ...]
    verdict: Verdict
    family: str | None = "axis.arch"
    budget: str | None = "axis.flops"
    size: str = SIZE
    resamples: int = 1000


def analyse(
    table: pd.DataFrame,
    *,
    family: str | None = "axis.arch",
    budget: str | None = "axis.flops",
    size: str = SIZE,
    resamples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Minima, exponents, laws and the verdict of a run table.

    `family` and `budget` are columns of the table; None where the study has no such axis. Raises
    ValueError that names a column the table lacks.
    """
    for name in (family, budget, size):
        if name is not None and name not in table:
            raise ValueError(
                f"the run table has no column {name!r}; it has {', '.join(map(str, table))}"
            )
    if budget is None:
        found: list[Minimum] = []
        growth: tuple[Growth, ...] = ()
    else:
        options: dict[str, Any] = {"family": family, "budget": budget, "seed": seed}
        found = minima(table, size=size, resamples=resamples, **options)
        growth = tuple(
            _growth(convention, minima(table, size=convention, resamples=resamples, **options))
            for convention in CONVENTIONS
            if convention in table and len(found)
        )
    fits = _fits(table, family, size, resamples, seed)
    said = verdict(table, found)
    return Analysis(tuple(found), growth, fits, said, family, budget, size, resamples)


def _growth(convention: str, found: Sequence[Minimum]) -> Growth:
    return Growth(convention, (*exponents(found), *exponents(found, compute="6ND")))


def _fits(
    table: pd.DataFrame, family: str | None, size: str, resamples: int, seed: int
) -> tuple[FamilyFit, ...]:
    runs = finished(table)
    fits = []
    for name, group in runs.groupby(families(runs, family), sort=True):
        law = fit(group[size], group["tokens"], group["loss"])
        if isinstance(law, ParametricFit):
            fits.append(FamilyFit(str(name), bootstrap(law, resamples=resamples, seed=seed)))
        else:
            fits.append(FamilyFit(str(name), law))
    return tuple(fits)


def build(
    folder: Path,
    *,
    name: str,
    question: str,
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    rollouts: pd.DataFrame,
    family: str | None = "axis.arch",
    budget: str | None = "axis.flops",
    analysis: Analysis | None = None,
) -> Path:
    """Writes the report into `folder` and returns the path of its page.

    `table` has a row per run, `curves` a frame per run, `rollouts` a row per completion (each may
    be empty). `analysis` saves fitting twice where the caller has fitted already.
    """
    if analysis is None:
        analysis = analyse(table, family=family, budget=budget)
    pictures = []
    for title, figure in figures(table, curves, analysis):
        image = _png(figure)
        put(folder / "figures" / f"{title}.png", image)
        pictures.append({"name": title, "data": base64.b64encode(image).decode()})
    put(folder / "minima.csv", minima_table(analysis.minima).to_csv(index=False).encode())
    page = _render(
        name=name,
        question=question,
        analysis=analysis,
        pictures=pictures,
        runs=_run_rows(table),
        rollouts=rollout_data(table, rollouts, analysis),
        counts=table["status"].value_counts().to_dict(),
        captions=CAPTIONS,
        parameters=PARAMETERS,
    )
    return put(folder / "report.html", page.encode())


CAPTIONS = {
    "loss-against-compute": "Thin lines: held-out loss while a run trains (with a decaying "
    "learning rate the points before its end lie too high). Points: the ends of the runs.",
    "isoflop": "Points: finished runs. Curves: parabolas in ln N. Stars: their minima, with 95 % "
    "intervals. Dotted: no minimum is reported at this budget.",
    "parametric": "Left: points on the line are runs the law describes exactly. Right: a trend "
    "would mean that the law has the wrong form.",
    "loss-curves": "Held-out loss at each evaluation. Darker lines are larger models.",
    "rollouts-against-compute": "Means over all prompts and seeds at the end of each run.",
    "rollouts-over-training": "One line per run; step 0 stands at the left end.",
}


def figures(
    table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], analysis: Analysis
) -> list[tuple[str, Figure]]:
    """The figures that these runs can fill, with the names of their files."""
    from isoflop.scaling import plots

    family, budget = analysis.family, analysis.budget
    laws = {f.family: f.law.fit for f in analysis.fits if isinstance(f.law, Resampled)}
    drawn: list[tuple[str, Figure | None]] = [
        ("loss-against-compute", plots.loss_against_compute(table, curves, family=family)),
        ("parametric", plots.parametric(laws)),
        ("loss-curves", plots.loss_curves(table, curves, family=family)),
        ("rollouts-against-compute", plots.rollouts_against_compute(table, family=family)),
        ("rollouts-over-training", plots.rollouts_over_training(table, curves, family=family)),
    ]
    if budget is not None:
        options: dict[str, Any] = {"family": family, "budget": budget, "size": analysis.size}
        drawn.insert(1, ("isoflop", plots.isoflop_curves(table, analysis.minima, **options)))
    return [(title, figure) for title, figure in drawn if figure is not None]


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


RUN_COLUMNS = (
    "label",
    "status",
    "loss",
    "bits_per_byte",
    "error",
    *CONVENTIONS,
    "tokens",
    "epochs",
    "steps",
    "learning_rate",
    "flops",
    "flops_6nd_all",
    "flops_6nd_without_embeddings",
    "best_loss",
    "train_loss",
    "tokens_per_second",
    "seconds",
)


def _run_rows(table: pd.DataFrame) -> dict[str, Any]:
    """The table of all runs: headings, and per cell its text and the value that sorts it."""
    axes = [str(c) for c in table.columns if str(c).startswith("axis.")]
    columns = [c for c in RUN_COLUMNS if c in table]
    columns[4:4] = axes
    rows = [
        {
            "status": str(row["status"]),
            "cells": [(_text(row.get(column)), _sorting(row.get(column))) for column in columns],
        }
        for row in table.to_dict("records")
    ]
    heads = [c.removeprefix("axis.").replace("params_", "N ").replace("_", " ") for c in columns]
    return {"heads": heads, "rows": rows}


def _text(value: object) -> str:
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
    return repr(float(value)) if number else _text(value)  # type: ignore[arg-type]


def rollout_data(table: pd.DataFrame, rollouts: pd.DataFrame, analysis: Analysis) -> dict[str, Any]:
    """What the page needs to lay one prompt's completions side by side.

    Runs in order of family, budget and size; each completion under its run, the step it was written
    at, its prompt and sample. Samples beyond `MOST_TEXT` bytes are left to the parquet files.
    """
    if not len(rollouts) or not {"run", "step", "prompt_id", "sample_id", "text"} <= set(rollouts):
        return {}
    known = table[table["run"].isin(rollouts["run"].unique())].copy()
    known["family"] = families(known, analysis.family)
    order = ["family", *([analysis.budget] if analysis.budget else []), analysis.size]
    known = known.sort_values(order, kind="stable")
    rows = rollouts[rollouts["run"].isin(known["run"])]
    rows = rows.drop_duplicates(["run", "step", "prompt_id", "sample_id"])
    samples, left_out = _samples_that_fit(rows)
    rows = rows[rows["sample_id"].isin(samples)]
    prompts = rows.drop_duplicates("prompt_id")[["prompt_id", "prompt"]]
    number = {prompt: index for index, prompt in enumerate(prompts["prompt_id"])}
    place = {run: index for index, run in enumerate(known["run"])}
    return {
        "prompts": [str(prompt) for prompt in prompts["prompt"]],
        "samples": [str(sample) for sample in samples],
        "left_out": left_out,
        "runs": [_run_head(row, analysis) for row in known.to_dict("records")],
        "texts": [
            [place[run], int(step), number[prompt], samples.index(sample), str(text)]
            for run, step, prompt, sample, text in rows[
                ["run", "step", "prompt_id", "sample_id", "text"]
            ].itertuples(index=False)
        ],
    }


def _samples_that_fit(rows: pd.DataFrame) -> tuple[list[Any], int]:
    """Whole samples, first ones first, as long as the page stays readable; at least one."""
    weight = rows["text"].str.len().add(40).groupby(rows["sample_id"]).sum().sort_index()
    fitting = max(1, int((weight.cumsum() <= MOST_TEXT).sum()))
    return list(weight.index[:fitting]), len(weight) - fitting


def _run_head(row: Mapping[Any, Any], analysis: Analysis) -> dict[str, object]:
    budget = row[analysis.budget] if analysis.budget else ""
    return {
        "label": str(row.get("label", row["run"])),
        "family": str(row["family"]),
        "budget": f"{_text(budget)} FLOPs" if analysis.budget else "all",
        "size": compact(float(row[analysis.size])),
        "loss": _text(row.get("loss")),
        "steps": float(row["steps"]) if pd.notna(row.get("steps")) else None,
    }


def _render(**values: Any) -> str:
    """The page, every value escaped; the rollouts travel as JSON that cannot end its element."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("isoflop", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _text, "flops": scientific, "interval": _interval}
    environment.filters |= {"counts": _counts, "safe_json": _safe_json}
    environment.tests["refusal"] = lambda value: isinstance(value, Refusal)
    return environment.get_template("report.html.jinja").render(**values)


def _interval(interval: Interval, digits: int = 3) -> str:
    value, low, high = (f"{x:.{digits}g}" for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _counts(interval: Interval) -> str:
    return f"{compact(interval.value)} [{compact(interval.low)}, {compact(interval.high)}]"


def _safe_json(value: object) -> Any:
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text.encode("utf-8", "replace").decode())  # lone surrogates have no UTF-8


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
