"""What did a search find? One sentence or two, figures, and the best trials."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isoflop.report.tables import text
from isoflop.scaling.plots import COLOURS, GREY, panels
from isoflop.space import SAMPLERS, Aim, Choice, Distribution, Findings, Numbers, Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 10  # trials of the page's table
MOST_AXES = 8  # panels over axes, for each aim
TELLING = 0.2  # an axis that explains less of an aim is not spoken of
WORDS = {"val/loss": "held-out loss", "val/bits_per_byte": "held-out bits per byte"}
HELD: dict[str, Any] = {  # the lines at what held-out text has
    "color": GREY, "linestyle": "--", "linewidth": 1.2, "zorder": 1, "label": "held-out text",
}  # fmt: skip
UNITS = {"val/loss": " nats per token", "flops": " FLOPs", "seconds": " s"}


class Searched:
    """The findings of a search with its run table, as the report shows them."""

    def __init__(
        self,
        found: Findings,
        table: pd.DataFrame,
        references: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """`references`: what rollout metrics are of held-out text, by the run beside which they
        were measured."""
        self.found, self.table = found, table
        self.aims = found.settings.aims
        self.held = [_held(aim, references or {}) for aim in self.aims]
        self.ended = [one for one in found.tried if one.status == "finished"]
        self.labels = dict(zip(table["run"], table["label"], strict=True)) if len(table) else {}
        self.free = {k: v for k, v in found.space.items() if isinstance(v, Distribution)}

    @property
    def several(self) -> bool:
        return len(self.aims) > 1

    @property
    def best(self) -> list[Tried]:
        """The best trial, or the Pareto front in the order of its first aim."""
        chosen = [one for one in self.ended if one.run in self.found.best and one.kept]
        distinct = {one.run: one for one in sorted(chosen, key=lambda one: one.values)}
        return list(distinct.values())

    @property
    def text(self) -> str:
        """The verdict."""
        if not self.ended:
            given_up = [one.why for one in self.found.tried if one.status == "failed"]
            reason = f": {len(given_up)} were given up ({given_up[0]})" if given_up else ""
            return f"No trial has a value, so nothing can be said{reason}."
        if not self.best:
            bounds = ", ".join(self.found.settings.constraints)
            return f"None of the {len(self.ended)} trials that finished keeps {bounds}."
        said = self._front() if self.several else self._winner()
        return " ".join([said, *self._text(), *self._edges(), *self._importance(), *self._early()])

    def _text(self) -> list[str]:
        """What to choose by from a front."""
        known = [
            f"{name(aim)} {text(value)}"
            for aim, value in zip(self.aims, self.held, strict=True)
            if value is not None
        ]
        return [f"Held-out text has {', '.join(known)}."] if known else []

    def _winner(self) -> str:
        best, aim = self.best[0], self.aims[0]
        each = {one.run: one.values[0] for one in self.ended if one.kept}
        ranked = sorted(each.values(), reverse=aim.towards == "up")
        later = ""
        if len(ranked) > 1:
            later = f", {text(abs(ranked[1] - ranked[0]))} better than the next"
        return (
            f"Of {len(self.ended)} trials that ended, {self._named(best)} is the best: "
            f"{name(aim)} {text(best.values[0])}{UNITS.get(str(aim), '')}{later}."
        )

    def _front(self) -> str:
        if len(self.best) == 1:
            only = self.best[0]
            values = ", ".join(
                f"{name(aim)} {text(value)}"
                for aim, value in zip(self.aims, only.values, strict=True)
            )
            return (
                f"Of {len(self.ended)} trials that ended, {self._named(only)} is the best in every "
                f"aim: {values}."
            )
        ends = []
        for index, aim in enumerate(self.aims):
            best = sorted(self.best, key=lambda one: one.values[index])
            top = best[-1] if aim.towards == "up" else best[0]
            ends.append(f"{self._named(top)} has the best {name(aim)}, {text(top.values[index])}")
        return (
            f"Of {len(self.ended)} trials that ended, {len(self.best)} are such that no other is "
            f"better in one aim and as good in the others: {'; '.join(ends)}."
        )

    def _named(self, one: Tried) -> str:
        return str(self.labels.get(one.run) or f"trial {one.number}")

    def _edges(self) -> list[str]:
        """An optimum at the end of a range is no optimum."""
        if self.several:
            return []
        best = self.best[0]
        at = [
            f"{axis} lies at the {end} end of its range ({spec}): widen it before you trust this."
            for axis, spec in self.free.items()
            if isinstance(spec, Numbers)
            and best.point[axis] is not None
            and (end := spec.edge(best.point[axis]))
        ]
        return [f"But {line}" for line in at]

    def _importance(self) -> list[str]:
        found = []
        for aim, shares in zip(self.aims, self.found.importance, strict=True):
            told = [f"{axis} {share:.0%}" for axis, share in shares.items() if share >= TELLING]
            if told:
                found.append(f"What moves {name(aim)} here: {', '.join(told)}.")
        return found

    def _early(self) -> list[str]:
        pruned = [one for one in self.found.tried if one.status == "pruned"]
        if not pruned:
            return []
        return [f"{len(pruned)} trials were ended early or diverged."]

    @property
    def sampler(self) -> str:
        """What chose the points, in words."""
        return SAMPLERS[self.found.settings.sampler]

    @property
    def heads(self) -> list[str]:
        return ["trial", "run", *self.free, *(name(aim) for aim in self.aims)]

    @property
    def rows(self) -> list[list[str]]:
        """The front, or the best trials first."""
        chosen = self.best
        if not self.several:
            order = sorted(
                (o for o in self.ended if o.kept),
                key=lambda one: one.values,
                reverse=self.aims[0].towards == "up",
            )
            chosen = order[:SHOWN]
        return [
            [
                str(one.number),
                self._named(one),
                *(text(one.point[axis]) for axis in self.free),
                *(text(value) for value in one.values),
            ]
            for one in chosen
        ]

    @property
    def described(self) -> list[str]:
        """How it was searched."""
        settings = self.found.settings
        lines = [f"{axis}: {spec}" for axis, spec in self.free.items()]
        aims = ", ".join(f"{name(aim)} ({aim.towards})" for aim in self.aims)
        bounds = f"; keeping {', '.join(settings.constraints)}" if settings.constraints else ""
        return [*lines, f"{settings.trials} trials by {settings.sampler}, after {aims}{bounds}"]

    def frame(self) -> pd.DataFrame:
        """One row per trial."""
        rows = [
            {
                "trial": one.number,
                "run": one.run,
                "status": one.status,
                **{f"axis.{axis}": value for axis, value in one.point.items()},
                **dict(
                    zip(map(str, self.aims), one.values or [None] * len(self.aims), strict=True)
                ),
                "constraints_kept": one.kept,
                "best": one.run in self.found.best,
            }
            for one in self.found.tried
        ]
        return pd.DataFrame(rows)

    def figures(self) -> list[tuple[str, Figure | None]]:
        """Those that the trials can fill."""
        if not self.ended:
            return []
        drawn = [
            ("search", self._history()),
            ("axes", self._axes()),
            ("importance", self._shares()),
        ]
        if self.several:
            drawn.insert(0, ("pareto", self._pareto()))
        return drawn

    def plots(self) -> dict[str, Any]:
        """What answers to the pointer."""
        if not self.several or not self.ended:
            return {}
        traces = []
        for label, chosen in (
            ("front", self.best),
            ("others", [o for o in self.ended if o not in self.best]),
        ):
            traces.append(
                {
                    "x": [one.values[0] for one in chosen],
                    "y": [one.values[1] for one in chosen],
                    "mode": "markers",
                    "name": label,
                    "text": [self._told(one) for one in chosen],
                    "hovertemplate": "%{text}<extra></extra>",
                    "marker": {"size": 10, "color": COLOURS[0] if label == "front" else "#b9bdc3"},
                }
            )
        axes = [{"title": {"text": name(aim)}} for aim in self.aims[:2]]
        layout = {"xaxis": axes[0], "yaxis": axes[1], "height": 460, "hovermode": "closest"}
        return {"pareto": {"data": traces, "layout": layout}}

    def _told(self, one: Tried) -> str:
        values = [
            f"{name(aim)} {text(value)}" for aim, value in zip(self.aims, one.values, strict=True)
        ]
        return "<br>".join([f"trial {one.number}: {self._named(one)}", *values])

    def _history(self) -> Figure:
        figure, axes = panels(
            len(self.aims), width=7.0 if self.several else 9.0, height=4.2, columns=2
        )
        lost = [one.number for one in self.found.tried if one.status in ("pruned", "failed")]
        for index, (ax, aim) in enumerate(zip(axes, self.aims, strict=True)):
            numbers = [one.number for one in self.ended]
            values = np.array([one.values[index] for one in self.ended])
            for kept in (True, False):
                mask = np.array([one.kept is kept for one in self.ended])
                ax.scatter(
                    np.array(numbers)[mask],
                    values[mask],
                    s=26,
                    zorder=3,
                    facecolors=COLOURS[0] if kept else "none",
                    edgecolors=COLOURS[0],
                )
            kept_values = np.array(
                [v if o.kept else np.nan for o, v in zip(self.ended, values, strict=True)]
            )
            best = np.fmax if aim.towards == "up" else np.fmin
            ax.step(
                numbers,
                best.accumulate(kept_values),
                where="post",
                color="black",
                linewidth=1.2,
                label="best so far",
            )
            worst = values.min() if aim.towards == "up" else values.max()
            ax.scatter(lost, [worst] * len(lost), marker="x", s=24, color=GREY)
            ax.set(xlabel="trial", ylabel=name(aim))
            _scaled(ax.set_yscale, values)
            ax.legend(frameon=False)
        return figure

    def _axes(self) -> Figure:
        shown = list(self.free.items())[:MOST_AXES]
        pairs = list(itertools.product(enumerate(self.aims), shown))
        figure, axes = panels(len(pairs), width=4.2, height=3.4, columns=min(len(shown), 4))
        for ax, ((index, aim), (axis, spec)) in zip(axes, pairs, strict=True):
            self._over_axis(ax, index, axis, spec)
            ax.set(xlabel=axis, ylabel=name(aim))
            value = self.held[index]
            if value is not None:
                ax.axhline(value, **HELD)
        return figure

    def _over_axis(self, ax: Axes, index: int, axis: str, spec: Distribution) -> None:
        from matplotlib.ticker import MaxNLocator

        chosen = [one for one in self.ended if one.point[axis] is not None]
        x = [one.point[axis] for one in chosen]
        if isinstance(spec, Choice):  # in the order in which they were given, tried or not
            x = [spec.options.index(value) for value in x]
            ax.set_xticks(range(len(spec.options)), [str(option) for option in spec.options])
        y = np.array([one.values[index] for one in chosen])
        if not chosen:
            return
        ax.scatter(
            x,
            y,
            c=[one.number for one in chosen],
            cmap="Blues",
            vmin=-len(self.ended) / 2,
            s=28,
            edgecolors=GREY,
            linewidths=0.4,
            zorder=3,
        )
        if isinstance(spec, Numbers) and spec.log:
            ax.set_xscale("log")
        elif isinstance(spec, Numbers) and spec.whole:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _scaled(ax.set_yscale, y)

    def _shares(self) -> Figure | None:
        told = [
            (aim, shares)
            for aim, shares in zip(self.aims, self.found.importance, strict=True)
            if shares
        ]
        if not told:
            return None
        figure, axes = panels(len(told), width=6.0, height=3.2, columns=2)
        for ax, (aim, shares) in zip(axes, told, strict=True):
            names = sorted(shares, key=lambda axis: shares[axis])
            ax.barh(names, [shares[axis] for axis in names], color=COLOURS[0])
            ax.set(xlim=(0, 1), xlabel=f"share of the spread of {name(aim)}")
            ax.tick_params(axis="y", pad=1)
        longest = max(len(axis) for _, shares in told for axis in shares)
        figure.subplots_adjust(left=min(0.45, 0.06 + 0.011 * longest * (2 / len(told))))
        return figure

    def _pareto(self) -> Figure:
        pairs = list(itertools.combinations(range(len(self.aims)), 2))
        figure, axes = panels(
            len(pairs), width=6.4 if len(pairs) > 1 else 8.0, height=4.6, columns=2
        )
        front = self.best
        for ax, (first, second) in zip(axes, pairs, strict=True):
            for one in self.ended:
                ax.scatter(
                    one.values[first],
                    one.values[second],
                    s=26,
                    zorder=2,
                    linewidths=0.9,
                    facecolors="none" if not one.kept else "#c9ced6",
                    edgecolors=GREY,
                )
            line = sorted((one.values[first], one.values[second]) for one in front)
            style = "-" if len(self.aims) == 2 else ""
            ax.plot(
                *zip(*line, strict=True),
                marker="o",
                linestyle=style,
                color=COLOURS[0],
                drawstyle="steps-post",
                zorder=3,
                label="front",
            )
            ax.set(xlabel=name(self.aims[first]), ylabel=name(self.aims[second]))
            for setter, index in ((ax.set_xscale, first), (ax.set_yscale, second)):
                _scaled(setter, np.array([one.values[index] for one in self.ended]))
            for line_at, value in ((ax.axvline, self.held[first]), (ax.axhline, self.held[second])):
                if value is not None:
                    line_at(value, **HELD)
            _legend(ax)
        return figure


def _held(aim: Aim, references: Mapping[str, Mapping[str, float]]) -> float | None:
    """The metric of held-out text: the middle of what stands beside the runs. None of an aim that
    is a distance from it."""
    known = references.get(aim.metric)
    if aim.towards == "reference" or not known:
        return None
    return float(np.median(list(known.values())))


def _legend(ax: Axes) -> None:
    """Each kind of mark once."""
    marks = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(list(marks.values()), list(marks), frameon=False)


def name(aim: Aim) -> str:
    """As people say it."""
    plain = WORDS.get(aim.metric, aim.metric.removeprefix("rollout/").replace("_", " "))
    return f"distance of {plain} from held-out text" if aim.towards == "reference" else plain


def _scaled(setter: Any, values: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """Logarithmic where positive values spread over more than a factor of 10."""
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        setter("log")
