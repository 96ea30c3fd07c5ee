"""What does a collapse look like? Every family's normalised curves over one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from isoflop.scaling.collapse import Collapse
from isoflop.scaling.plots import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isoflop.report.health import Health


def figure(table: pd.DataFrame, health: Sequence[Health]) -> Figure | None:
    """A panel per family whose curves were compared; None where there is none."""
    known = [(h.family, h.collapse) for h in health if isinstance(h.collapse, Collapse)]
    if not known:
        return None
    from matplotlib import colormaps

    labels = dict(zip(table["run"], table.get("label", table["run"]), strict=True))
    drawn, axes = panels(
        len(known), width=4.9, height=4.2, title="Do the loss curves collapse onto one?"
    )
    for ax, (family, found) in zip(axes, known, strict=True):
        for index, (run, curve) in enumerate(zip(found.runs, found.curves, strict=True)):
            shade = colormaps["viridis"](0.9 - 0.8 * index / max(1, len(found.runs) - 1))
            ax.plot(found.x, curve, color=shade, linewidth=1.3, label=str(labels.get(run, run)))
        ax.set(title=f"{family}, E = {found.floor:.2f}", xlabel="share of the run's tokens")
        ax.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("(L - E) / (L at the end - E)")
    return drawn
