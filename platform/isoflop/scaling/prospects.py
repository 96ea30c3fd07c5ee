"""Where do planned or possible runs lie, and what would they do to a prediction? Figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isoflop.scaling.interval import Array, compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, INK, ACCENT = "#9aa0a6", "#202124", "#D55E00"


def plane(
    done: tuple[Array, Array],
    candidates: tuple[Array, Array],
    value: Array,
    chosen: Sequence[int],
    spent: Array,
    interval: Array,
    *,
    value_label: str,
    cost_label: str,
) -> Figure:
    """Left: runs done and candidates as (parameters, tokens), coloured by `value` (m,), the chosen
    ones numbered. Right: half the 95 % prediction interval (k + 1,), a share of the loss, over what
    has been `spent` (k + 1,)."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter(*done, marker="x", s=22, color=GREY, label="done")
    good = np.isfinite(value) & (value > 0)
    if good.any():
        low, high = float(value[good].min()), float(value[good].max())
        norm = LogNorm(low * 0.99, high * 1.01)
        n, d = (axis[good] for axis in candidates)
        drawn = left.scatter(n, d, c=value[good], norm=norm, cmap="viridis", s=36, zorder=3)
        figure.colorbar(drawn, ax=left, label=value_label)
    for number, row in enumerate(chosen, 1):
        at = (float(candidates[0][row]), float(candidates[1][row]))
        left.annotate(str(number), at, textcoords="offset points", xytext=(5, 4), color=INK)
        left.scatter(*at, s=90, facecolor="none", edgecolor=ACCENT, zorder=4)
    left.set(xscale="log", yscale="log", xlabel="parameters", ylabel="tokens")
    _counted(left)
    right.plot(spent, 100 * interval, "o-", color=ACCENT, markersize=4)
    right.set(xlabel=cost_label, ylabel="95 % prediction interval at the target (± %)")
    right.set_ylim(bottom=0)
    for ax in (left, right):
        ax.grid(True, color="#e3e5e8", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def design(
    size: Array,
    tokens: Array,
    flops: Array,
    centre: tuple[Array, Array],
    feasible: NDArray[np.bool_],
) -> Figure:
    """The runs of an IsoFLOP design as (parameters, tokens), a colour per budget, with the expected
    optimum of each budget as a line; runs that do not fit in memory are hollow."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    ax = figure.subplots()
    budgets = np.unique(flops)
    for mark, budget in zip(np.linspace(0.85, 0.05, len(budgets)), budgets, strict=True):
        here, colour = flops == budget, colormaps["cividis"](mark)
        ax.plot(size[here], tokens[here], color=colour, linewidth=0.8)
        for fits in (True, False):
            rows = here & (feasible == fits)
            if rows.any():
                label = f"{budget:.2g} FLOPs".replace("e+", "e") if fits else None
                face = colour if fits else "none"
                ax.scatter(
                    size[rows], tokens[rows], s=30, facecolor=face, edgecolor=colour, label=label
                )
    ax.plot(*centre, "*", color=ACCENT, markersize=11, label="expected best")
    ax.set(xscale="log", yscale="log", xlabel="parameters", ylabel="tokens")
    _counted(ax)
    ax.grid(True, color="#e3e5e8", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return figure


def _counted(ax: Axes) -> None:
    """Both axes as 20k, 1M, not as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=20))
        axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axis.set_minor_locator(NullLocator())


def png(figure: Figure) -> bytes:
    """The figure as a file's bytes."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
