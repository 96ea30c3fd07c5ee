"""How is the report laid out, and put on disk?

`build` writes `report.html` (self-contained: figures and script inline, nothing is fetched),
`figures/*.png`, and tables as CSV. Every file is written under another name and then put in place,
so a reader never sees half a report.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from isoflop.report import written
from isoflop.report.analysis import Analysis, analyse
from isoflop.report.interactive import interactive
from isoflop.report.tables import (
    checks_table,
    laws_table,
    minima_table,
    predictions,
    run_rows,
    text,
)
from isoflop.report.texts import rollout_data
from isoflop.scaling.files import put
from isoflop.scaling.interval import Interval, Refusal, compact, scientific
from isoflop.scaling.parametric import PARAMETERS, Resampled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isoflop.report.searched import Searched


def build(
    folder: Path,
    *,
    name: str,
    question: str,
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    rollouts: pd.DataFrame,
    references: Mapping[str, Mapping[str, float]] | None = None,
    family: str | None = "axis.arch",
    budget: str | None = "axis.flops",
    analysis: Analysis | None = None,
    search: Searched | None = None,
    cost: str = "",
) -> Path:
    """Writes the report into `folder` and returns the path of its page.

    `table` has a row per run, `curves` a frame per run, `rollouts` a row per completion (each may
    be empty). `references` has the rollout metrics of held-out text. `analysis` saves fitting twice
    where the caller has fitted already. `cost`: what was planned, and what it took.
    """
    if analysis is None:
        analysis = analyse(table, curves=curves, family=family, budget=budget)
    drawn = interactive(table, curves, analysis) | (search.plots() if search else {})
    pictures = []
    for title, figure in figures(table, curves, analysis, search):
        image = _png(figure)
        put(folder / "figures" / f"{title}.png", image)
        data = base64.b64encode(image).decode()
        pictures.append({"name": title, "data": data, "plot": drawn.get(title)})
    files = tables(table, analysis) | ({"trials.csv": search.frame()} if search else {})
    for file, frame in files.items():
        put(folder / file, frame.to_csv(index=False).encode())
    spoken = written.laws(table)
    if len(spoken):
        put(folder / "rollout-laws.csv", spoken.to_csv(index=False).encode())
    page = _render(
        name=name,
        question=question,
        analysis=analysis,
        pictures=pictures,
        plots=any(picture["plot"] for picture in pictures),
        runs=run_rows(table),
        rollouts=rollout_data(table, rollouts, analysis),
        spoken=written.lines(table, spoken, references or {}),
        counts=table["status"].value_counts().to_dict(),
        captions=CAPTIONS,
        parameters=PARAMETERS,
        predictions=predictions(table),
        search=search,
        cost=cost[:1].upper() + cost[1:].strip(),
    )
    return put(folder / "report.html", page.encode())


def tables(table: pd.DataFrame, analysis: Analysis) -> dict[str, pd.DataFrame]:
    """The files that hold the report's numbers."""
    flat = table[[column for column in table if table[column].map(pd.api.types.is_scalar).all()]]
    return {
        "runs.csv": flat,
        "minima.csv": minima_table(analysis.minima),
        "laws.csv": laws_table(analysis),
        "checklist.csv": checks_table(analysis),
    }


CAPTIONS = {
    "search": "Every trial that ended, in the order in which they were chosen; best so far. "
    "Hollow: a constraint is not kept. Crosses at the edge: ended early, or without a value.",
    "pareto": "Every trial by two of the aims at a time. Filled and joined: no other trial is "
    "better in one aim and as good in all others. Hollow: a constraint is not kept. Dashed: what "
    "held-out text has.",
    "axes": "The same trials over each axis. Darker points were chosen later. Dashed: what "
    "held-out text has.",
    "importance": "The share of each aim's spread over the trials that an axis explains, alone and "
    "with others, by a random forest (functional ANOVA, Hutter et al. 2014). Of few trials, or of "
    "those that a sampler gathered in one corner, it is a rough guide.",
    "loss-against-compute": "Thin lines: held-out loss while a run trains (with a decaying "
    "learning rate the points before its end lie too high). Points: the ends of the runs.",
    "isoflop": "Points: finished runs. Curves: parabolas in ln N. Stars: their minima, with 95 % "
    "intervals; where a law is known, corrected for how lopsided it says the curves are. Dotted: "
    "no minimum is reported at this budget.",
    "parametric": "Left: points on the line are runs the law describes exactly. Right: a trend "
    "would mean that the law has the wrong form.",
    "loss-curves": "Held-out loss at each evaluation. Darker lines are larger models.",
    "collapse": "The training loss of the best run of each budget over its own length, as a share "
    "of what it could still lose at its end. Curves of runs that were trained alike fall onto one.",
    "rollouts-against-compute": "Means over all prompts and seeds at the end of each run.",
    "rollouts-over-training": "One line per run; step 0 stands at the left end.",
}


def figures(
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    analysis: Analysis,
    search: Searched | None = None,
) -> list[tuple[str, Figure]]:
    """The figures that these runs can fill, with the names of their files. The runs of a search lie
    where it went, so its laws and minima of compute are not drawn."""
    from isoflop.report import collapsed
    from isoflop.scaling import plots

    family, budget, unit = analysis.family, analysis.budget, analysis.unit
    if search:
        known = plots.loss_curves(table, curves, family=family, unit=unit)
        spoken = plots.rollouts_over_training(table, curves, family=family)
        own = [*search.figures(), ("loss-curves", known), ("rollouts-over-training", spoken)]
        return [(title, figure) for title, figure in own if figure is not None]
    laws = {f.family: f.law.fit for f in analysis.fits if isinstance(f.law, Resampled)}
    drawn: list[tuple[str, Figure | None]] = [
        (
            "loss-against-compute",
            plots.loss_against_compute(table, curves, family=family, unit=unit),
        ),
        ("parametric", plots.parametric(laws, unit=unit)),
        ("loss-curves", plots.loss_curves(table, curves, family=family, unit=unit)),
        ("collapse", collapsed.figure(table, analysis.health)),
        ("rollouts-against-compute", plots.rollouts_against_compute(table, family=family)),
        ("rollouts-over-training", plots.rollouts_over_training(table, curves, family=family)),
    ]
    if budget is not None:
        options: dict[str, Any] = {"family": family, "budget": budget, "size": analysis.size}
        options["unit"] = unit
        drawn.insert(1, ("isoflop", plots.isoflop_curves(table, analysis.minima, **options)))
    return [(title, figure) for title, figure in drawn if figure is not None]


def _render(**values: Any) -> str:
    """The page, every value escaped; data travel as JSON that cannot end its element."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("isoflop.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": text, "flops": scientific, "interval": _interval}
    environment.filters |= {"counts": _counts, "safe_json": _safe_json}
    environment.tests["refusal"] = lambda value: isinstance(value, Refusal)
    library = Markup(_plotly()) if values["plots"] else ""
    return environment.get_template("page.html.jinja").render(**values, library=library)


def _plotly() -> str:
    """The library's own script, in the page: a report is read without a network too."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    assert "</script" not in script, "the script would end its own element"
    return script


def _interval(interval: Interval, digits: int = 3) -> str:
    value, low, high = (f"{x:.{digits}g}" for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _counts(interval: Interval) -> str:
    return f"{compact(interval.value)} [{compact(interval.low)}, {compact(interval.high)}]"


def _safe_json(value: object) -> Any:
    from markupsafe import Markup

    written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written.encode("utf-8", "replace").decode())  # lone surrogates have no UTF-8


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()
