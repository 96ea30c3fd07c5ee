"""What do the runs look like? Figures that are read without their text.

Each function takes the run table (and curves) and returns a matplotlib Figure, or None where there
is nothing to draw. Figures are made without pyplot: no global state, no window, no backend.
Families are told apart by colour and by marker; budgets and sizes by lightness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from isoflop.scaling.interval import NATS, Array, compact, scientific
from isoflop.scaling.isoflop import Minimum, counted, families, finished
from isoflop.scaling.parametric import ParametricFit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008: eight colours that stay apart in every common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#5f6368"

Curves = Mapping[str, pd.DataFrame]
Colour = tuple[float, float, float, float]


def loss_against_compute(
    table: pd.DataFrame, curves: Curves, *, family: str | None = "axis.arch", unit: str = NATS
) -> Figure | None:
    """Every run's held-out loss over its FLOPs, the end as a point, and the lower envelope."""
    runs = finished(table)
    if not len(runs):
        return None
    figure, axes = panels(1, width=9.0, height=5.2)
    ax = axes[0]
    for name, (colour, marker) in _styles(table, family).items():
        group = runs[families(runs, family) == name]
        for run in group["run"]:
            x, y = _curve(curves, run, "flops", "val/loss")
            ax.plot(x, y, color=colour, alpha=0.3, linewidth=0.9)
        x, y = group["flops"].to_numpy(float), group["loss"].to_numpy(float)
        label = f"{name}, end of run"
        ax.scatter(x, y, s=24, color=colour, marker=marker, label=label, zorder=3)
    x, y = _envelope(runs["flops"].to_numpy(float), runs["loss"].to_numpy(float))
    ax.plot(x, y, color="black", linewidth=1.2, label="lowest loss for the compute")
    ax.set(xscale="log", yscale="log", xlabel="training compute (exact FLOPs)")
    _loss_axis(ax, f"held-out loss ({unit})")
    ax.set_title("Loss falls with compute")
    ax.legend(frameon=False)
    return figure


def isoflop_curves(
    table: pd.DataFrame,
    minima: Sequence[Minimum],
    *,
    family: str | None = "axis.arch",
    budget: str = "axis.flops",
    size: str = "params_without_input_embedding",
    unit: str = NATS,
) -> Figure | None:
    """Loss over size at equal compute, a panel per family, with parabolas and minima."""
    runs = finished(table)
    if not len(runs) or not minima:
        return None
    names = list(dict.fromkeys(minimum.family for minimum in minima))
    figure, axes = panels(len(names), width=4.9, height=4.6, title="The best size for each budget")
    shades = _shades(sorted({minimum.budget for minimum in minima}))
    for ax, name in zip(axes, names, strict=True):
        for minimum in (m for m in minima if m.family == name):
            group = runs[(families(runs, family) == name) & (runs[budget] == minimum.budget)]
            n, loss = group[size].to_numpy(float), group["loss"].to_numpy(float)
            _isoflop(ax, minimum, n, loss, shades[minimum.budget])
        ax.set(xscale="log", title=name, xlabel=f"parameters N ({_words(size)})")
        _counts(ax)
        ax.legend(frameon=False, title=f"budget ({counted(budget)})", fontsize=8)
    axes[0].set_ylabel(f"held-out loss ({unit})")
    _same_height(axes)
    return figure


def _isoflop(ax: Axes, minimum: Minimum, size: Array, loss: Array, colour: Colour) -> None:
    label = scientific(minimum.budget) + ("" if minimum.status == "interior" else ", no minimum")
    ax.plot(size, loss, "o", color=colour, markersize=4.5, label=label)
    if not (minimum.parabola and minimum.size and minimum.loss):
        order = np.argsort(size)
        ax.plot(size[order], loss[order], ":", color=colour, linewidth=1)
        return
    x = np.linspace(np.log(size.min()), np.log(size.max()), 80)
    ax.plot(np.exp(x), np.polyval(minimum.parabola, x), color=colour, linewidth=1.3)
    best, lowest = minimum.size, minimum.loss
    ax.errorbar(
        [best.value],
        [lowest.value],
        xerr=[[best.value - best.low], [best.high - best.value]],
        yerr=[[lowest.value - lowest.low], [lowest.high - lowest.value]],
        fmt="*",
        color="black",
        markerfacecolor=colour,
        markersize=11,
        elinewidth=1,
        capsize=2,
        zorder=4,
    )


EQUATIONS = {
    "chinchilla": r"$L = E + A\,N^{-\alpha} + B\,D^{-\beta}$",
    "tied": r"$L = E + A\,N^{-\alpha} + B\,D^{-\alpha}$",
    "kaplan": r"$L = [(N_c/N)^{\alpha_N/\alpha_D} + D_c/D]^{\alpha_D}$",
    "gadre": r"$L = E + (a\,M^\eta + b\,M^{-\eta})\,C^{-\eta}$",
}


def parametric(fits: Mapping[str, ParametricFit], *, unit: str = NATS) -> Figure | None:
    """The law's loss against the measured one, and what it leaves unexplained."""
    if not fits:
        return None
    figure, (left, right) = panels(2, width=4.9, height=4.2)
    ends = []
    for index, (name, fit) in enumerate(fits.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        measured = np.exp(fit.problem.target)
        residual = 100 * np.expm1(fit.residuals())
        predicted = measured * (1 + residual / 100)
        ends += [measured.min(), measured.max()]
        left.scatter(measured, predicted, s=20, color=colour, marker=marker, label=name)
        size = np.exp(fit.problem.x + fit.centre[0])
        right.scatter(size, residual, s=20, color=colour, marker=marker, label=name)
    left.plot([min(ends), max(ends)], [min(ends), max(ends)], color=GREY, linewidth=1)
    left.set(xlabel=f"measured loss ({unit})", ylabel="loss by the law")
    form = next(iter(fits.values())).form.name
    left.set_title(f"{EQUATIONS.get(form, f'The form {form}')} against the runs")
    left.legend(frameon=False)
    right.axhline(0, color=GREY, linewidth=1)
    right.set(xscale="log", xlabel="parameters N", ylabel="law less measured loss (%)")
    right.set_title("What the law leaves unexplained")
    _counts(right)
    return figure


def loss_curves(
    table: pd.DataFrame, curves: Curves, *, family: str | None = "axis.arch", unit: str = NATS
) -> Figure | None:
    """Held-out loss over the tokens read, a panel per family, larger models darker."""
    runs = table[[len(_curve(curves, run, "tokens", "val/loss")[0]) > 0 for run in table["run"]]]
    if not len(runs):
        return None
    names = [name for name in _styles(table, family) if (families(runs, family) == name).any()]
    figure, axes = panels(len(names), width=4.9, height=4.4, title="Learning curves")
    column = "params_without_input_embedding"
    shades = _shades(sorted(runs[column].astype(float).unique()))
    for ax, name in zip(axes, names, strict=True):
        group = runs[families(runs, family) == name].sort_values(column)
        for run, size in zip(group["run"], group[column].astype(float), strict=True):
            x, y = _curve(curves, run, "tokens", "val/loss")
            ax.plot(x, y, color=shades[size], linewidth=1.1, marker=".", markersize=3)
        ax.set(xscale="log", yscale="log", title=name, xlabel="tokens read")
        _loss_axis(ax, f"held-out loss ({unit})" if ax is axes[0] else "")
        _counts(ax)
        _size_legend(ax, shades)
    _same_height(axes)
    return figure


TELLING = (
    "reward", "loop", "repetition", "entropy", "distinct_2", "parses_as_python", "novel_8",
    "longest_copy", "recalled", "compression",
)  # fmt: skip
MEMORY = ("recalled", "longest_copy")
PANELS = 12  # of rollout metrics in a figure


def rollouts_against_compute(
    table: pd.DataFrame, *, family: str | None = "axis.arch"
) -> Figure | None:
    """What was written at the end of each run, by metric, over the run's compute."""
    runs = finished(table)
    metrics = [m for m in _metrics(table.columns) if runs[m].notna().any()]
    if not metrics:
        return None
    title = "What the trained models write (bars: 95 % intervals)"
    figure, axes = panels(len(metrics), width=3.4, height=2.9, columns=3, title=title)
    for ax, metric in zip(axes, metrics, strict=True):
        for name, (colour, marker) in _styles(table, family).items():
            group = runs[(families(runs, family) == name) & runs[metric].notna()]
            x, y = group["flops"].to_numpy(float), group[metric].to_numpy(float)
            low, high = _bounds(group, metric, y)
            ax.vlines(x, low, high, color=colour, alpha=0.4, linewidth=1)
            ax.scatter(x, y, s=16, color=colour, marker=marker, alpha=0.7, label=name)
        ax.set(
            xscale="log", title=_words(metric.removeprefix("rollout/")), xlabel="compute (FLOPs)"
        )
        _few_powers(ax)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def rollouts_over_training(
    table: pd.DataFrame, curves: Curves, *, family: str | None = "axis.arch"
) -> Figure | None:
    """How each metric of the rollouts moves while the models learn, one line per run."""
    known = [curve for curve in curves.values() if len(curve)]
    names = dict.fromkeys(m for curve in known for m in _metrics(curve.columns))
    metrics = [m for m in names if any(m in curve and curve[m].notna().any() for curve in known)]
    if not metrics:
        return None
    title = "What the models write while they learn"
    figure, axes = panels(len(metrics), width=3.4, height=2.9, columns=3, title=title)
    for ax, metric in zip(axes, metrics, strict=True):
        for name, (colour, marker) in _styles(table, family).items():
            label: str | None = name
            for run in table.loc[families(table, family) == name, "run"]:
                x, y = _curve(curves, run, "tokens", metric)
                if len(x):
                    (line,) = ax.plot(x, y, color=colour, alpha=0.45, linewidth=0.9, label=label)
                    line.set(marker=marker, markersize=3)
                    label = None
        # Step 0 has read no tokens and is drawn at the left end of a scale that has a zero.
        ax.set_xscale("symlog", linthresh=_first_tokens(known), linscale=0.3)
        ax.set(title=_words(metric.removeprefix("rollout/")), xlabel="tokens read")
        _few_counts(ax)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _first_tokens(curves: Sequence[pd.DataFrame]) -> float:
    tokens = np.concatenate([curve["tokens"].to_numpy(float) for curve in curves])
    above = tokens[tokens > 0]
    return float(above.min()) if len(above) else 1.0


def telling(names: Sequence[str]) -> list[str]:
    """Of rollout metrics, those that say most: of each of the `TELLING` that of every set, `PANELS`
    at most. A metric nobody has heard of comes behind them. Where two sets recall, prefixes that
    were read and their control, memory is what the study is after."""
    known = {name: name.rpartition("/")[2] for name in names}
    first = MEMORY if list(known.values()).count("recalled") > 1 else ()
    ranks = {metric: rank for rank, metric in reversed([*enumerate((*first, *TELLING))])}
    order = sorted(known, key=lambda name: ranks.get(known[name], 99))
    heard = [name for name in order if known[name] in TELLING]
    return (heard or order)[:PANELS]


def _metrics(columns: pd.Index) -> list[str]:
    """The telling rollout metrics among the columns, without their bounds."""
    names = [str(c) for c in columns if str(c).startswith("rollout/")]
    return telling([name for name in names if not name.endswith((".low", ".high"))])


def _bounds(group: pd.DataFrame, metric: str, value: Array) -> tuple[Array, Array]:
    ends = [group.get(f"{metric}.{end}", pd.Series(value, group.index)) for end in ("low", "high")]
    low, high = (end.to_numpy(float) for end in ends)
    return np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high)


def _curve(curves: Curves, run: str, x: str, y: str) -> tuple[Array, Array]:
    """Two columns of a run's curve where both were measured; empty where the run has none."""
    curve = curves.get(run)
    if curve is None or x not in curve or y not in curve:
        return np.empty(0), np.empty(0)
    known = curve[[x, y]].astype(float).dropna()
    if not x.startswith("step") and not y.startswith("rollout/"):
        known = known[known[x] > 0]  # a logarithmic axis has no zero
    return known[x].to_numpy(), known[y].to_numpy()


def _envelope(flops: Array, loss: Array) -> tuple[Array, Array]:
    """The runs that no cheaper run beats. Runs within a few percent of compute count as equal."""
    cost = np.round(np.log(flops) / 0.05)
    order = np.lexsort((loss, cost))
    first = np.unique(cost[order], return_index=True)[1]
    best = order[first]
    lowest = np.minimum.accumulate(loss[best])
    kept = best[loss[best] <= lowest]
    return flops[kept], loss[kept]


def _styles(table: pd.DataFrame, family: str | None) -> dict[str, tuple[str, str]]:
    names = sorted(families(table, family).unique())
    return {n: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, n in enumerate(names)}


def _shades(values: Sequence[float]) -> dict[float, Colour]:
    """Light to dark in the order of the values, from the perceptually even map cividis."""
    from matplotlib import colormaps

    marks = np.linspace(0.85, 0.05, len(values)) if len(values) > 1 else [0.4]
    return {value: colormaps["cividis"](mark) for value, mark in zip(values, marks, strict=True)}


def _size_legend(ax: Axes, shades: Mapping[float, Colour]) -> None:
    from matplotlib.lines import Line2D

    sizes = list(shades)
    chosen = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    handles = [Line2D([], [], color=shades[s], label=compact(s)) for s in chosen]
    ax.legend(handles=handles, frameon=False, title="parameters")


def _loss_axis(ax: Axes, label: str) -> None:
    """Plain numbers on a logarithmic axis that spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8), numticks=30))
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    ax.yaxis.set_major_formatter(formatter)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel(label)


def _counts(ax: Axes) -> None:
    """Parameters or tokens along a logarithmic axis as 20k, 1M, not as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = ax.get_xlim()
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.xaxis.set_minor_locator(NullLocator())


def _same_height(axes: Sequence[Axes]) -> None:
    """One range of loss for all panels, so that they compare by eye."""
    limits = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(float(limits[:, 0].min()), float(limits[:, 1].max()))


def _words(column: str) -> str:
    return column.removeprefix("params_").replace("_", " ")


def panels(
    count: int, *, width: float, height: float, columns: int = 4, title: str = ""
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of that size in inches, row by row.

    Margins are stated, not searched for: matplotlib's layout engines draw every figure twice.
    """
    from matplotlib.figure import Figure

    across = min(count, columns)
    rows = -(-count // across)
    wide, high = max(width * across, 6.4), height * rows + (0.45 if title else 0.1)
    figure = Figure(figsize=(wide, high))
    axes = [figure.add_subplot(rows, across, index + 1) for index in range(count)]
    top = high - (0.68 if title else 0.4)
    inside_width, inside_height = wide / across - 0.9, (top - 0.6 - (rows - 1) * 0.95) / rows
    figure.subplots_adjust(
        left=0.75 / wide,
        right=1 - 0.2 / wide,
        bottom=0.6 / high,
        top=top / high,
        wspace=0.75 / inside_width,
        hspace=0.95 / inside_height,
    )
    if title:
        figure.suptitle(title, fontweight="bold", y=1 - 0.1 / high, va="top")
    for ax in axes:
        ax.grid(True, which="major", color="#e3e5e8", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _few_powers(ax: Axes) -> None:
    """FLOPs along a small panel: the ends and the middle of what is drawn, as people write them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    offsets = np.concatenate([np.asarray(points.get_offsets()) for points in ax.collections])
    drawn = offsets[offsets[:, 0] > 0, 0]  # the bars have an offset of 0
    low, high = (float(drawn.min()), float(drawn.max())) if len(drawn) else ax.get_xlim()
    marks = np.geomspace(low, high, 3) if high > 1.5 * low else [low]
    ax.xaxis.set_major_locator(FixedLocator(list(marks)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: scientific(value)))
    ax.xaxis.set_minor_locator(NullLocator())


def _few_counts(ax: Axes) -> None:
    """Tokens along a small panel whose scale has a zero: it, and every second power of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    powers = np.arange(0, np.log10(max(10.0, ax.get_xlim()[1])), 1)
    shown = [0.0, *10.0 ** powers[-1::-2][:2]]
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value) if value else "0"))
    ax.xaxis.set_minor_locator(NullLocator())
