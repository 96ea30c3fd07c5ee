"""What is kept of a fit? A folder: one page, the laws as JSON and CSV, the residuals, a figure."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from isoflop.scaling.envelope import Envelope, curves
from isoflop.scaling.files import put
from isoflop.scaling.findings import Findings, history, settings
from isoflop.scaling.gist import gist
from isoflop.scaling.parametric import Resampled
from isoflop.scaling.records import records
from isoflop.scaling.sensitivity import Setting, lines
from isoflop.scaling.words import text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isoflop.scaling.asked import Said
    from isoflop.scaling.columns import Runs
    from isoflop.scaling.question import Law, Question
    from isoflop.scaling.sources import Source

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em;color:#202124}"
    "pre{background:#f6f8fa;padding:1em;overflow-x:auto;font-size:13px}img{max-width:100%}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:14px;margin:1em 0}"
    "th,td{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}"
    "th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}h1{overflow-wrap:anywhere}"
)
HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
)
DPI = 200  # of print


def write(
    folder: Path,
    question: Question,
    source: Source,
    table: Runs,
    laws: list[Law],
    found: Sequence[Findings],
    more: Said,
) -> Path:
    """Writes `report.html` (self-contained), `laws.json`, `laws.csv`, `residuals.csv`,
    `sensitivity.csv` and `figures/*.png`, each put in place whole; returns the page's path."""
    rows = [*records(question, source, table, laws, found), *more.records]
    put(folder / "laws.json", json.dumps(rows, indent=1, allow_nan=False).encode())
    moved = {(x.family, x.form): settings(source, table, x) for x in laws}
    put(folder / "sensitivity.csv", _sensitivity(moved).to_csv(index=False).encode())
    put(folder / "laws.csv", _parameters(laws).to_csv(index=False).encode())
    put(folder / "residuals.csv", _residuals(table, laws).to_csv(index_label="row").encode())
    pictures = []
    for name, image in _pictures(laws).items():
        pictures.append(_kept(folder, name, image))
    others = [_kept(folder, name, _png(figure)) for name, figure in _further(found, source, more)]
    shown = html.escape("\n".join([text(question, source, table, laws, found), *more.lines]))
    families = dict.fromkeys(law.family for law in laws)
    short = [gist([law for law in laws if law.family == family]) for family in families]
    page = (
        f"{HEAD}<title>{html.escape(source.name)}</title>"
        f"<style>{STYLE}</style><h1>Laws of {html.escape(source.name)}</h1>"
        f"{''.join(f'<p>{html.escape(each)}</p>' for each in short)}"
        f"<h2>Parameters with 95 % intervals</h2>{_table(_parameters(laws))}"
        f"<h2>The laws against the runs</h2>{''.join(pictures)}"
        "<p>Left: points on the line are runs the law describes exactly. Right: a trend would mean "
        "that the law has the wrong form.</p>"
        f"{''.join(others)}<h2>All that is known</h2><pre>{shown}</pre>"
        f"<h2>What moves with choices</h2>{_choices(moved)}"
    )
    return put(folder / "report.html", page.encode())


def write_said(folder: Path, name: str, found: Said) -> Path:
    """Writes `report.html` and `laws.json` of answers that come without laws of the loss."""
    put(folder / "laws.json", json.dumps(found.records, indent=1, allow_nan=False).encode())
    title, shown = html.escape(name), html.escape("\n".join(found.lines))
    page = (
        f"{HEAD}<title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><pre>{shown}</pre>"
        + "".join(_kept(folder, name, _png(draw())) for name, draw in found.figures.items())
    )
    return put(folder / "report.html", page.encode())


Moved = Mapping[tuple[str, str], Sequence[Setting]]


def _sensitivity(moved: Moved) -> pd.DataFrame:
    """One row per family, form and setting."""
    rows = []
    for (family, form), found in moved.items():
        for setting in found:
            flat = setting.record()
            flat["refusal"] = setting.refusal.explanation if setting.refusal else ""
            rows.append({"family": family, "form": form, **flat})
    return pd.DataFrame(rows, columns=None if rows else ["family", "form", "choice", "setting"])


def _choices(moved: Moved) -> str:
    shown = [
        f"<h3>{html.escape(f'{form}, {family}')}</h3><pre>{html.escape(chr(10).join(lines(rows)))}"
        "</pre>"
        for (family, form), rows in moved.items()
        if rows
    ]
    return "".join(shown) or "<p>No law that could move.</p>"


def _parameters(laws: list[Law]) -> pd.DataFrame:
    """One row per family, form and parameter."""
    rows = []
    for law in laws:
        if not isinstance(law.law, Resampled):
            continue
        for name, value in law.law.fit.values.items():
            interval = law.law.interval(name)
            error = law.law.standard_error(name)
            row = (law.family, law.form, name, value, error, interval.low, interval.high)
            rows.append(row)
    names = ["family", "form", "parameter", "value", "standard_error", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def _table(parameters: pd.DataFrame) -> str:
    """As HTML, numbers with four digits."""
    if not len(parameters):
        return "<p>No form has a law.</p>"
    heads = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in map(str, parameters))
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(f'{cell:.4g}' if isinstance(cell, float) else str(cell))}</td>"
            for cell in row
        )
        + "</tr>"
        for row in parameters.itertuples(index=False)
    )
    return f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'


def _residuals(table: Runs, laws: list[Law]) -> pd.DataFrame:
    """Each run with the loss that each form predicts for it."""
    frame = table.frame.copy()
    for law in laws:
        if isinstance(law.law, Resampled):
            rows = table.family(law.family).index
            predicted = np.exp(law.law.fit.problem.predict(law.law.fit.theta[None])[0])
            frame.loc[rows, f"predicted_{law.form}"] = predicted
    return frame


def _pictures(laws: list[Law]) -> dict[str, bytes]:
    from isoflop.scaling import plots

    found: dict[str, bytes] = {}
    for form in dict.fromkeys(law.form for law in laws):
        fits = {
            x.family: x.law.fit for x in laws if x.form == form and isinstance(x.law, Resampled)
        }
        figure = plots.parametric(fits, unit="as in the table")
        if figure is not None:
            found[form] = _png(figure)
    return found


def _further(found: Sequence[Findings], source: Source, more: Said) -> Iterator[tuple[str, Figure]]:
    """Approach 1, and what was asked beside the laws of the loss."""
    from isoflop.scaling import sketches

    long = history(source)
    lower = {
        each.family: (curves(long[long["family"] == each.family]), each.envelope)
        for each in found
        if long is not None and isinstance(each.envelope, Envelope)
    }
    if lower:
        yield "envelope", sketches.envelopes(lower)
    for name, draw in more.figures.items():
        yield name, draw()


def _kept(folder: Path, name: str, image: bytes) -> str:
    """The figure as a file of its own, and as a part of the page."""
    file = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    put(folder / "figures" / f"{file}.png", image)
    data = base64.b64encode(image).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
