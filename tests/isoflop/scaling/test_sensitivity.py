from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.columns import Columns, runs
from isoflop.scaling.sensitivity import CONVENTIONS, lines, sensitivity


def made(outlier: float = 0.0, noise: float = 0.0) -> pd.DataFrame:
    random = np.random.default_rng(0)
    axes = np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 5)
    size, tokens = (a.ravel() for a in np.meshgrid(*axes))
    loss = (1.8 + 400 * size**-0.34 + 900 * tokens**-0.3) * np.exp(noise * random.normal(size=30))
    loss[0] *= 1 + outlier
    columns = {"params_all": size + 3e7 * (size / 1e9) ** 0.5, "params_without_embeddings": size}
    return pd.DataFrame({**columns, "tokens": tokens, "loss": loss})


def moved(table: pd.DataFrame, **columns: str) -> pd.DataFrame:
    found = runs(table, Columns(n="params_without_embeddings"))
    rows = sensitivity(found.frame, table, target=1e21)
    return pd.DataFrame([{**row.record()} for row in rows])


def test_exact_runs_move_with_nothing_but_the_count() -> None:
    found = moved(made())
    assert set(found["choice"]) == {"drop", "delta", "objective", "parameters"}
    same = found[(found["choice"] != "parameters") & (found["setting"] != "asymmetric")]
    assert np.allclose(same["a"], 0.3 / 0.64, rtol=1e-3) and np.allclose(
        same["alpha"], 0.34, rtol=2e-3
    )
    counted = found[found["choice"] == "parameters"].set_index("setting")
    assert set(counted.index) <= set(CONVENTIONS) and len(counted) == 2
    assert counted.loc["params_without_embeddings", "a"] == pytest.approx(0.3 / 0.64, rel=1e-3)
    assert abs(counted.loc["params_all", "a"] - 0.3 / 0.64) > 0.003


def test_an_outlier_moves_least_squares_and_is_gone_once_dropped() -> None:
    found = moved(made(outlier=0.3)).set_index(["choice", "setting"])
    truth = 0.3 / 0.64
    assert abs(found.loc[("objective", "l2"), "a"] - truth) > 0.005
    assert found.loc[("objective", "l1"), "a"] == pytest.approx(truth, abs=1e-3)
    assert found.loc[("drop", "1"), "a"] == pytest.approx(truth, abs=1e-3)
    assert found.loc[("drop", "3"), "points"] == 27


def test_every_setting_has_its_line() -> None:
    table = made(noise=0.003)
    frame = runs(table, Columns(n="params_all")).frame
    rows = sensitivity(frame, table, target=1e21)
    shown = lines(rows)
    assert len(shown) == len(rows) + 1 and "params_all" in "\n".join(shown)
    refused = sensitivity(frame.iloc[:5], table, target=1e21)
    assert all(row.refusal is not None for row in refused)
    assert "5 runs cannot fix a law of 5 parameters" in lines(refused)[1]
