"""Which figures answer to the pointer? The same runs as in the pictures, with their names.

Plain values for plotly.js (traces and a layout), so no plotting library is loaded to write them:
the page carries plotly's own script, and the PNG beside each figure is what papers take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isoflop.scaling.collapse import Collapse
from isoflop.scaling.interval import compact, scientific
from isoflop.scaling.isoflop import Minimum, families, finished
from isoflop.scaling.plots import COLOURS

if TYPE_CHECKING:
    from isoflop.report.analysis import Analysis

Curves = Mapping[str, pd.DataFrame]
Plot = dict[str, Any]
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")


def interactive(table: pd.DataFrame, curves: Curves, analysis: Analysis) -> dict[str, Plot]:
    """Traces and layouts by the name of the picture that they stand in for."""
    runs = finished(table)
    if not len(runs):
        return {}
    names = list(dict.fromkeys(families(table, analysis.family)))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    plots = {
        "loss-against-compute": _compute(runs, curves, analysis, colours),
        "loss-curves": _curves(runs, curves, analysis, colours),
    }
    if analysis.minima:
        plots["isoflop"] = _isoflop(runs, analysis, colours)
    if any(isinstance(h.collapse, Collapse) for h in analysis.health):
        plots["collapse"] = _collapse(runs, analysis, colours)
    return plots


def _compute(
    runs: pd.DataFrame, curves: Curves, analysis: Analysis, colours: Mapping[str, str]
) -> Plot:
    """Ends of runs as points, held-out losses on the way as lines of the same group."""
    traces = []
    for index, (name, colour) in enumerate(colours.items()):
        group = runs[families(runs, analysis.family) == name]
        x, y = _paths(group, curves, "flops", "val/loss")
        line = {"color": colour, "width": 1}
        traces.append(
            {"x": x, "y": y, "mode": "lines", "line": line, "opacity": 0.35, "name": name,
             "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
        )  # fmt: skip
        traces.append(
            {"x": _floats(group["flops"]), "y": _floats(group["loss"]), "mode": "markers",
             "text": [_described(row, analysis) for row in group.to_dict("records")],
             "hovertemplate": "%{text}<extra></extra>", "name": name, "legendgroup": name,
             "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[index % len(SYMBOLS)]}}
        )  # fmt: skip
    return _plot(
        traces, "training compute (exact FLOPs)", f"held-out loss ({analysis.unit})", "log"
    )


def _curves(
    runs: pd.DataFrame, curves: Curves, analysis: Analysis, colours: Mapping[str, str]
) -> Plot:
    traces = []
    for name, colour in colours.items():
        group = runs[families(runs, analysis.family) == name]
        for first, row in enumerate(group.to_dict("records")):
            x, y = _paths(pd.DataFrame([row]), curves, "tokens", "val/loss")
            traces.append(
                {"x": x, "y": y, "mode": "lines+markers", "name": name, "legendgroup": name,
                 "showlegend": first == 0, "text": _described(row, analysis),
                 "hovertemplate": "%{text}<br>%{x:.3s} tokens: %{y:.4f}<extra></extra>",
                 "line": {"color": colour, "width": 1}, "marker": {"size": 4}}
            )  # fmt: skip
    return _plot(traces, "tokens read", f"held-out loss ({analysis.unit})", "log")


def _isoflop(runs: pd.DataFrame, analysis: Analysis, colours: Mapping[str, str]) -> Plot:
    traces = []
    for minimum in analysis.minima:
        group = runs[
            (families(runs, analysis.family) == minimum.family)
            & (runs[analysis.budget] == minimum.budget)
        ].sort_values(analysis.size)
        colour = colours[minimum.family]
        name = f"{minimum.family}, {scientific(minimum.budget)}"
        size = group[analysis.size].to_numpy(float)
        traces.append(
            {"x": size.tolist(), "y": _floats(group["loss"]), "mode": "markers", "name": name,
             "legendgroup": name, "marker": {"color": colour, "size": 7},
             "text": [_described(row, analysis) for row in group.to_dict("records")],
             "hovertemplate": "%{text}<extra></extra>"}
        )  # fmt: skip
        traces += _valley(minimum, size, colour, name, analysis.budgets)
    return _plot(
        traces, f"parameters N ({analysis.size.removeprefix('params_').replace('_', ' ')})",
        f"held-out loss ({analysis.unit})", "log",
    )  # fmt: skip


def _valley(minimum: Minimum, size: Any, colour: str, name: str, budgets: str) -> list[Plot]:
    """The parabola and its minimum, where there is one."""
    shared = {"legendgroup": name, "showlegend": False}
    if not (minimum.parabola and minimum.size and minimum.loss):
        return []
    x = np.linspace(np.log(size.min()), np.log(size.max()), 60)
    style = {"color": colour, "width": 1.3}
    line = {"x": np.exp(x).tolist(), "y": np.polyval(minimum.parabola, x).tolist(),
            "mode": "lines", "line": style, "hoverinfo": "skip"}  # fmt: skip
    n, loss = minimum.size, minimum.loss
    star = {"x": [n.value], "y": [loss.value], "mode": "markers",
            "marker": {"symbol": "star", "size": 13, "color": colour,
                       "line": {"color": "black", "width": 1}},
            "error_x": {"type": "data", "symmetric": False, "array": [n.high - n.value],
                        "arrayminus": [n.value - n.low], "color": "black", "thickness": 1},
            "text": [f"best at {scientific(minimum.budget)} {budgets}: N {compact(n.value)} "
                     f"({compact(n.low)} to {compact(n.high)}), loss {loss.value:.4f} "
                     f"({loss.low:.4f} to {loss.high:.4f})"],
            "hovertemplate": "%{text}<extra></extra>"}  # fmt: skip
    return [line | shared, star | shared]


def _collapse(runs: pd.DataFrame, analysis: Analysis, colours: Mapping[str, str]) -> Plot:
    labels = dict(zip(runs["run"], runs.get("label", runs["run"]), strict=True))
    traces = []
    for one in analysis.health:
        if isinstance(one.collapse, Collapse):
            for run, curve in zip(one.collapse.runs, one.collapse.curves, strict=True):
                traces.append(
                    {"x": one.collapse.x.tolist(), "y": curve.tolist(), "mode": "lines",
                     "name": str(labels.get(run, run)), "line": {"color": colours[one.family]},
                     "hovertemplate": "%{fullData.name}<br>%{x:.2f}: %{y:.3f}<extra></extra>"}
                )  # fmt: skip
    return _plot(traces, "share of the run's tokens", "(L - E) / (L at the end - E)", "linear")


def _paths(
    group: pd.DataFrame, curves: Curves, x: str, y: str
) -> tuple[list[float | None], list[float | None]]:
    """All runs' curves as one line, with gaps between the runs: one trace draws quickly."""
    across: list[float | None] = []
    up: list[float | None] = []
    for run in group["run"]:
        frame = curves.get(run)
        if frame is None or not {x, y} <= set(frame):
            continue
        kept = frame.dropna(subset=[y])
        kept = kept[kept[x] > 0]
        across += [*_floats(kept[x]), None]
        up += [*_floats(kept[y]), None]
    return across, up


def _described(row: Mapping[Any, Any], analysis: Analysis) -> str:
    """What a pointer on a run shows."""
    from html import escape

    lines = [
        escape(str(row.get("label", row["run"]))),
        f"loss {float(row['loss']):.4f}",
        f"N {compact(float(row[analysis.size]))}, D {compact(float(row['tokens']))}",
        f"{scientific(float(row['flops']))} FLOPs",
    ]
    return "<br>".join(lines)


def _floats(values: Any) -> list[float | None]:
    return [float(v) if np.isfinite(float(v)) else None for v in values]


def _plot(traces: list[Plot], x: str, y: str, kind: str) -> Plot:
    numbers = {"exponentformat": "power"} if kind == "log" else {}
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": x}, "type": kind, **numbers},
            "yaxis": {"title": {"text": y}},
            "hovermode": "closest",
            "margin": {"l": 60, "r": 10, "t": 20, "b": 50},
            "height": 460,
            "legend": {"groupclick": "togglegroup"},
        },
    }
