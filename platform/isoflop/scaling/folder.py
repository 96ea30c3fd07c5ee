"""What is kept of a fit? A folder: one page, the laws as JSON and CSV, the residuals, a figure."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from isoflop.scaling import command
from isoflop.scaling.files import put
from isoflop.scaling.parametric import Resampled

if TYPE_CHECKING:
    from isoflop.scaling.columns import Runs
    from isoflop.scaling.command import Law, Question

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#202124}"
    "pre{background:#f6f8fa;padding:1em;overflow-x:auto}img{max-width:100%}"
)


def write(folder: Path, question: Question, table: Runs, laws: list[Law]) -> Path:
    """Writes `report.html` (self-contained), `laws.json`, `laws.csv`, `residuals.csv` and
    `figures/*.png`; returns the page's path. Every file is put in place whole."""
    records = [command.record(question, law) for law in laws]
    put(folder / "laws.json", json.dumps(records, indent=1, allow_nan=False).encode())
    put(folder / "laws.csv", _parameters(laws).to_csv(index=False).encode())
    put(folder / "residuals.csv", _residuals(table, laws).to_csv(index_label="row").encode())
    pictures = []
    for name, image in _pictures(laws).items():
        put(folder / "figures" / f"{name}.png", image)
        data = base64.b64encode(image).decode()
        pictures.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">')
    shown = html.escape(command.text(question, table, laws))
    page = (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(question.path.name)}</title>'
        f"<style>{STYLE}</style><h1>Laws of {html.escape(question.path.name)}</h1>"
        f"<pre>{shown}</pre>{''.join(pictures)}"
        "<p>Left: points on the line are runs the law describes exactly. Right: a trend would mean "
        "that the law has the wrong form.</p>"
    )
    return put(folder / "report.html", page.encode())


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
        figure = plots.parametric(fits)
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            found[form] = buffer.getvalue()
    return found
