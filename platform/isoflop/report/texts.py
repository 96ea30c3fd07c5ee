"""What did the models write? One prompt's completions side by side, over time and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from isoflop.report.tables import text
from isoflop.scaling.interval import compact
from isoflop.scaling.isoflop import families

if TYPE_CHECKING:
    from isoflop.report.analysis import Analysis

MOST_TEXT = 2_000_000  # bytes of rollouts in the page; the parquet files hold the rest


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
    rows = rows.assign(spec=rows.get("spec", ""))
    rows = rows.drop_duplicates(["run", "step", "spec", "prompt_id", "sample_id"])
    samples, left_out = _samples_that_fit(rows)
    rows = rows[rows["sample_id"].isin(samples)]
    prompts = rows.drop_duplicates(["spec", "prompt_id"])[["spec", "prompt_id", "prompt"]]
    asked = list(prompts.itertuples(index=False, name=None))
    number = {(spec, prompt): index for index, (spec, prompt, _) in enumerate(asked)}
    place = {run: index for index, run in enumerate(known["run"])}
    return {
        "prompts": [str(prompt) for _, _, prompt in asked],
        "sets": [str(spec) for spec, _, _ in asked],
        "samples": [str(sample) for sample in samples],
        "left_out": left_out,
        "runs": [_run_head(row, analysis) for row in known.to_dict("records")],
        "texts": [
            [place[run], int(step), number[spec, prompt], samples.index(sample), str(text)]
            for run, step, spec, prompt, sample, text in rows[
                ["run", "step", "spec", "prompt_id", "sample_id", "text"]
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
        "budget": f"{text(budget)} {analysis.budgets}" if analysis.budget else "all",
        "size": compact(float(row[analysis.size])),
        "loss": text(row.get("loss")),
        "steps": float(row["steps"]) if pd.notna(row.get("steps")) else None,
    }
