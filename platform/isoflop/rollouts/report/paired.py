"""Do two runs of a study write differently? And: their rollouts for other programs.

The page compares what it holds of two runs; here all rows of their last captures count, with the
bootstrap's intervals (`comparing`).
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.rollouts.report import store
from isoflop.rollouts.report.store import Written
from isoflop.rollouts.statistics import Draw

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 100  # of a terminal, for whole sentences


def show(study: Path, one: str, other: str, draw: Draw = "prompts", only: str | None = None) -> str:
    """The table of differences, as text: the second run less the first, pair by pair.

    `only`: of that set of prompts (None: of all together). Raises ValueError where words name no
    run or several, or the two share no prompt.
    """
    from isoflop.rollouts.comparing import KEY, compare

    first, second = _named(study, one), _named(study, other)
    steps = [max(run.captures) for run in (first, second)]
    rows = [run.read(step).to_pandas() for run, step in zip((first, second), steps, strict=True)]
    if only is not None:
        rows = [_of_set(frame, only) for frame in rows]
    table = compare(rows[0], rows[1], first.metrics, draw)
    pairs = len(rows[0][KEY].merge(rows[1][KEY], on=KEY))
    if not pairs:
        raise ValueError(f"{first.label!r} and {second.label!r} were asked nothing in common")
    drawn = "prompts, then seeds" if draw == "nested" else "prompts with their seeds"
    of = "" if only is None else f" of the set {only or 'without a name'}"
    head = (
        f"{second.label} after step {steps[1]} less {first.label} after step {steps[0]}: {pairs} "
        f"pairs of the same prompt and seed{of}. Intervals: bootstrap over {drawn}. p by Student's "
        "t over prompts; Holm: of all at once; BH: as a share of false alarms."
    )
    return "\n".join([textwrap.fill(head, WIDTH), _table(table), *_few(table)])


def _of_set(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    found = rows[rows["spec"] == name]
    if not len(found):
        names = ", ".join(sorted(repr(each) for each in rows["spec"].unique()))
        raise ValueError(f"there is no set {name!r}; the sets are {names}")
    return found


def _few(table: pd.DataFrame) -> list[str]:
    """Which declared minimum sample sizes are not reached."""
    from isoflop.rollouts.comparing import FEWEST

    said = []
    if (table["prompts"] < FEWEST).any():
        said.append(f"No p is given below {FEWEST} prompts.")
    few = table[table["few"] & table["value"].notna()]
    if len(few):
        said.append(
            "* fewer pairs than the metric declares to need (for a mean of held-out text to 5 %):\n"
            "  a difference may be there and not show."
        )
    return said


def _named(study: Path, words: str) -> Written:
    found = store.runs(study, words)
    exact = [run for run in found if words in (run.label, run.run)]
    if len(found) > 1 and len(exact) != 1:
        names = "; ".join(run.label for run in found[:8])
        raise ValueError(f"{words!r} is in the labels of {len(found)} runs: {names}")
    return exact[0] if exact else found[0]


def _table(table: pd.DataFrame) -> str:
    numbers = ["value", "low", "high", "p", "p_holm", "p_false_discovery"]
    table[numbers] = table[numbers].astype(float)  # None where there is none
    heads = " ".join(f"{name:>8}" for name in ("p", "Holm", "BH"))
    counts = f"{'pairs':>6} {'needs':>6}"
    lines = [f"{'metric':18} {'difference':>11} {'95 % interval':>22} {heads} {counts}"]
    for row in table.to_dict("records"):
        if math.isnan(row["value"]):
            continue
        known = not math.isnan(row["low"])
        ends = f"{_number(row['low'])} to {_number(row['high'])}" if known else "none: all equal"
        cells = [_number(row[name], 2) for name in ("p", "p_holm", "p_false_discovery")]
        said = f"{row['metric']:18} {_number(row['value']):>11} {ends:>22} "
        counted = f" {row['rollouts']:>6} {row['least'] or '':>6}{' *' * row['few']}"
        lines.append(said + " ".join(f"{cell:>8}" for cell in cells) + counted)
    return "\n".join(lines)


def _number(value: float, digits: int = 3) -> str:
    return "none" if math.isnan(value) else f"{value:.{digits}g}"


def export(study: Path, folder: Path, wanted: str = "") -> Path:
    """Every run's last capture in both formats of `verifiers`, a folder for each run, with the
    rewards that its rows have."""
    from isoflop.rollouts.rewards import of_row
    from isoflop.rollouts.rows import scored_as
    from isoflop.rollouts.verifiers import write_results, write_traces

    for run in store.runs(study, wanted):
        rows = run.read(max(run.captures)).to_pylist()
        scored = [(of_row(row), scored_as(row)) for row in rows]
        write_traces(folder / run.run, scored, name=study.name)
        told = ("temperature", "top_k", "top_p", "min_p", "repetition", "new_tokens")
        sampling = {name: rows[0].get(name) for name in told}
        write_results(folder / run.run, scored, name=study.name, model=run.label, sampling=sampling)
    return folder
