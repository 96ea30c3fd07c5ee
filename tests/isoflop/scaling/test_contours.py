from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.contours import contours, lines, lowest
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap, fit

World = Callable[..., pd.DataFrame]
BUDGETS = (1e10, 1e11, 1e12, 1e13)


def frame(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns={"params_without_input_embedding": "size"})[
        ["size", "tokens", "flops", "loss"]
    ].assign(family="all runs")


def law(runs: pd.DataFrame) -> Resampled:
    found = fit(runs["size"], runs["tokens"], runs["loss"])
    assert isinstance(found, ParametricFit)
    return bootstrap(found, resamples=100)


def test_budgets_are_runs_of_nearly_equal_compute(world: World) -> None:
    runs = frame(world({"a": {}}, budgets=BUDGETS))
    runs["flops"] *= np.exp(np.random.default_rng(0).uniform(-0.03, 0.03, len(runs)))
    found = contours(runs)
    assert found is not None and found.notna().all()
    assert sorted(found.unique()) == pytest.approx(BUDGETS, rel=0.03)
    assert contours(runs.iloc[::3].head(3)) is None
    assert contours(runs.assign(flops=np.geomspace(1e10, 1e12, len(runs)))) is None


def test_approaches_agree_on_one_law(world: World) -> None:
    runs = frame(world({"a": {}}, budgets=BUDGETS, noise=0.0005))
    resampled = law(runs)
    found = lowest(runs, resampled, resamples=100, seed=0)
    assert found is not None
    minima, growth = found
    assert growth.a is not None and growth.a.value == pytest.approx(0.34 / 0.67, abs=0.02)
    shown = "\n".join(lines("all runs", minima, growth, resampled))
    assert "N* ~ C^a" in shown and "agrees" in shown and shown.count("FLOPs") == 4


def test_a_contradiction_is_said(world: World) -> None:
    runs = frame(world({"a": {}}, budgets=BUDGETS, noise=0.0005))
    other = frame(world({"a": {"alpha": 0.6, "A": 400.0}}, budgets=BUDGETS, noise=0.0005))
    found = lowest(runs, None, resamples=100, seed=0)
    assert found is not None
    assert "CONTRADICTS" in "\n".join(lines("all runs", *found, law(other)))
