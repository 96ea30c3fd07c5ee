"""How do the envelope and the laws of other things than the loss look? Figures for `--out`.

Every figure shows the runs, the curve through them, and its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoflop.scaling.envelope import Curve, Envelope
from isoflop.scaling.hyperparameters import Cell, HyperLaw
from isoflop.scaling.interval import LEVEL, Array, Refusal, compact, scientific
from isoflop.scaling.metrics import MetricLaw
from isoflop.scaling.response import Response
from isoflop.scaling.tasks import TwoStep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GREY, INK, ACCENT = "#9aa0a6", "#202124", "#D55E00"
FINE = 200  # points of a drawn curve


def envelopes(found: Mapping[str, tuple[Sequence[Curve], Envelope]]) -> Figure:
    """Approach 1 by family. Above: the loss curves and their lower envelope; below: the size of
    the run that is best at each compute, and N* ~ C^a."""
    across = len(found)
    figure, axes = _panels(2, across)
    for index, (family, (runs, lower)) in enumerate(found.items()):
        above, below = axes[index], axes[across + index]
        for run in runs:
            above.plot(run.flops, run.loss, color=GREY, linewidth=0.8)
        above.plot(lower.flops, lower.loss, ".", color=ACCENT, markersize=4, label="envelope")
        above.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel="loss", title=family)
        above.legend(frameon=False)
        below.plot(lower.flops, lower.size, ".", color=ACCENT, markersize=4)
        x = np.log(lower.flops)
        level = np.log(lower.size).mean() - lower.a.value * x.mean()
        low, high = lower.a.low, lower.a.high
        below.plot(lower.flops, np.exp(level + lower.a.value * x), color=INK,
                   label=f"a = {lower.a.value:.2f} [{low:.2f}, {high:.2f}]")  # fmt: skip
        below.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel="best size (parameters)")
        below.legend(frameon=False)
        for axis in (above.xaxis, below.xaxis):
            _counted(axis, scientific)
        _counted(above.yaxis, lambda loss: f"{loss:.3g}")
        _counted(below.yaxis, compact)
    return figure


def optima(name: str, cells: Sequence[Cell], laws: Mapping[str, HyperLaw | Refusal]) -> Figure:
    """The best value of a hyper-parameter by size, a panel per family; the law at each cell's own
    tokens. Cells without an optimum are not drawn."""
    figure, axes = _panels(1, len(laws))
    for ax, (family, law) in zip(axes, laws.items(), strict=True):
        own = [c for c in cells if c.family == family and not isinstance(c.status, Refusal)]
        sizes = np.array([cell.size for cell in own])
        best = [cell.best[name] for cell in own]
        value = np.array([b.value for b in best])
        reach = np.abs([[b.value - b.low for b in best], [b.high - b.value for b in best]])
        if own:
            ax.errorbar(sizes, value, reach, fmt="o", color=ACCENT, markersize=4, capsize=2)
        if isinstance(law, HyperLaw):
            said = [law.predict(cell.size, cell.tokens, cell.flops) for cell in own]
            order = np.argsort(sizes)
            ax.plot(sizes[order], np.array([s.value for s in said])[order], "_", color=INK,
                    markersize=14, label="law")  # fmt: skip
            ax.legend(frameon=False)
        powers = (
            " ".join(f"{axis}^{v.value:.2f}" for axis, v in law.exponents.items())
            if isinstance(law, HyperLaw)
            else "no law"
        )
        ax.set(xscale="log", yscale="log", xlabel="parameters", ylabel=f"best {name}",
               title=f"{family}: {powers}")  # fmt: skip
        _counted(ax.xaxis, compact)
        _counted(ax.yaxis, lambda value: f"{value:.3g}")
    return figure


def task(name: str, steps: TwoStep, loss: Array, value: Array) -> Figure:
    """The second step: the task over the loss."""
    figure, (ax,) = _panels(1, 1)
    ax.plot(loss, value, "o", color=ACCENT, markersize=4)
    _curve(ax, steps.curve, np.linspace(loss.min(), loss.max(), FINE), lambda x: x)
    ax.set(xlabel="held-out loss", ylabel=name)
    ax.invert_xaxis()  # better models to the right
    return figure


def metric(name: str, law: MetricLaw, at: Array, value: Array) -> Figure:
    """A metric over compute, or over the loss (falling to the right), and its floor."""
    figure, (ax,) = _panels(1, 1)
    ax.plot(at, value, "o", color=ACCENT, markersize=4)
    if law.against == "flops":
        x = np.geomspace(at.min(), at.max(), FINE)
        _curve(ax, law.curve, x, np.log)
        ax.set(xscale="log", xlabel="FLOPs")
        _counted(ax.xaxis, scientific)
    else:
        _curve(ax, law.curve, np.linspace(at.min(), at.max(), FINE), np.negative)
        ax.set(xlabel="held-out loss")
        ax.invert_xaxis()
    if law.floor is not None:
        ax.axhline(law.floor, color=GREY, linestyle="--", linewidth=1, label="floor")
        ax.legend(frameon=False)
    ax.set(ylabel=name)
    return figure


def _panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes:
        ax.grid(True, which="major", color="#e3e5e8", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _counted(axis: Axis, written: Callable[[float], str]) -> None:
    """Marks at 1, 2 and 5 times the powers of ten, as people write them, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = float(np.log10(high / low))
    subs = (
        (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.2 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    )
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axis.set_minor_locator(NullLocator())


def _curve(ax: Axes, curve: Response, shown: Array, variable: Callable[[Array], Array]) -> None:
    """The curve and its interval over `shown`; `variable` makes of it what the curve is over."""
    x = variable(shown)
    drawn = curve.each(curve.draws, x[None])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    ax.plot(shown, curve.predict(x), color=INK)
    ax.fill_between(shown, low, high, color=GREY, alpha=0.25, linewidth=0)
