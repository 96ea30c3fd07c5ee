"""Do the curves tell which run was trained otherwise, and how foreseeable each end was?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.report.health import health
from isoflop.scaling.collapse import Collapse
from isoflop.scaling.interval import Refusal

SHARE = np.linspace(0.01, 1, 100)


def record(floor: float, scale: float, *, late: float = 0.0) -> pd.DataFrame:
    """`late`: a run whose loss falls only at the end."""
    loss = floor + scale * SHARE**-0.4 * (1 + late * np.sin(np.pi * SHARE))
    rate = 1e-3 * np.minimum(1, SHARE / 0.1) * (1.1 - SHARE)
    return pd.DataFrame(
        {"step": (SHARE * 1000).astype(int), "tokens": SHARE * 1e6, "train/loss": loss,
         "learning_rate": rate}
    )  # fmt: skip


def study(late: float = 0.0) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Four budgets; the best of the third falls late. Three seeds of the first."""
    rows, curves = [], {}
    for index, budget in enumerate((1e9, 1e10, 1e11, 1e12)):
        for seed in range(3 if index == 0 else 1):
            name = f"b{index}s{seed}"
            jitter = 1 + 0.003 * seed
            curves[name] = record(1.7, jitter / (1 + index), late=late if index == 2 else 0)
            rows.append({"run": name, "status": "finished", "axis.flops": budget, "axis.width": 8,
                         "axis.seed": seed, "loss": 1.7 + jitter / (1 + index)})  # fmt: skip
    return pd.DataFrame(rows), curves


def test_runs_trained_alike_collapse() -> None:
    found = health("x", *study(), "axis.flops", 1.7)
    assert isinstance(found.collapse, Collapse)
    assert found.collapse.measured and found.collapse.outliers == ()
    assert len(found.collapse.runs) == 4


def test_the_run_that_fell_late_is_named() -> None:
    found = health("x", *study(late=0.3), "axis.flops", 1.7)
    assert isinstance(found.collapse, Collapse) and found.collapse.outliers == ("b2s0",)


def test_the_end_of_a_smooth_run_is_foreseen() -> None:
    found = health("x", *study(), "axis.flops", 1.7)
    assert found.foreseen and len(found.foreseen.runs) == 6
    assert found.foreseen.typical < 0.01


@pytest.mark.parametrize("missing", ["tokens", "train/loss"])
def test_curves_without_losses_are_no_curves(missing: str) -> None:
    runs, curves = study()
    short = {name: frame.drop(columns=missing) for name, frame in curves.items()}
    found = health("x", runs, short, "axis.flops", None)
    assert isinstance(found.collapse, Refusal) and found.foreseen is None
