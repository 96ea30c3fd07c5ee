"""Are the laws of learning rate and batch found again, and sweeps that miss their optimum said?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.hyperparameters import HyperLaw, hyper_laws, optima
from isoflop.scaling.interval import Refusal

A, B = -0.35, 0.15  # ln lr* = ln 0.5 + A ln N + B ln D
BATCH = 0.4  # ln batch* ~ BATCH ln D


def sweep(noise: float = 0.0, seed: int = 0, off: float = 0.0, batch: bool = False) -> pd.DataFrame:
    """Cells of 4 sizes and 3 lengths, 7 learning rates (and 5 batches) by factors of 2 about a
    centre that is `off` in ln lr."""
    random, rows = np.random.default_rng(seed), []
    for size in (1e7, 4e7, 1.6e8, 6e8):
        for tokens in (1e9, 5e9, 2.5e10):
            best = np.log(0.5) + A * np.log(size) + B * np.log(tokens)
            full = BATCH * np.log(tokens) + 3
            for step in range(-3, 4):
                for wide in (-2, -1, 0, 1, 2) if batch else (0,):
                    u, v = off + step * np.log(2), wide * np.log(2)
                    loss = 3 * (tokens / 1e9) ** -0.05 * np.exp(0.006 * u**2 + 0.004 * v**2)
                    rows.append({"size": size, "tokens": tokens, "loss": loss,
                                 "lr": np.exp(best + u), "batch": np.exp(full + v)})  # fmt: skip
    table = pd.DataFrame(rows)
    table["loss"] *= np.exp(noise * random.normal(size=len(table)))
    return table.assign(family="all", flops=6 * table["size"] * table["tokens"])


def test_exact_sweeps_give_the_law_back() -> None:
    table = sweep(batch=True)
    cells = optima(table, ["lr", "batch"], resamples=50)
    assert len(cells) == 12 and all(cell.status == "interior" for cell in cells)
    laws = hyper_laws(cells, ["lr", "batch"], resamples=50)
    lr, batch = laws["all", "lr"], laws["all", "batch"]
    assert isinstance(lr, HyperLaw) and isinstance(batch, HyperLaw)
    assert lr.exponents["N"].value == pytest.approx(A, abs=1e-6)
    assert lr.exponents["D"].value == pytest.approx(B, abs=1e-6)
    assert lr.coefficient.value == pytest.approx(0.5, rel=1e-4)
    assert batch.exponents["D"].value == pytest.approx(BATCH, abs=1e-6)
    assert batch.exponents["N"].value == pytest.approx(0, abs=1e-6)
    at = lr.predict(1e9, 1e11)
    assert at.value == pytest.approx(0.5 * 1e9**A * 1e11**B, rel=1e-4)


def test_the_exponents_lie_in_their_intervals_at_the_nominal_rate() -> None:
    inside = []
    for seed in range(60):
        cells = optima(sweep(noise=0.002, seed=seed), ["lr"], resamples=100)
        law = hyper_laws(cells, ["lr"], resamples=400)["all", "lr"]
        assert isinstance(law, HyperLaw)
        for name, truth in (("N", A), ("D", B)):
            inside.append(law.exponents[name].low <= truth <= law.exponents[name].high)
    assert np.mean(inside) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / len(inside))


@pytest.mark.parametrize(("off", "side"), [(2.5, "smaller"), (-2.5, "larger")])
def test_an_optimum_at_the_edge_is_flagged_with_values_to_try(off: float, side: str) -> None:
    table = sweep(off=off)
    cells = optima(table, ["lr"], resamples=20)
    assert all(isinstance(cell.status, Refusal) for cell in cells)
    refusal = cells[0].status
    assert isinstance(refusal, Refusal) and refusal.reason == "optimum at the edge"
    assert f"try {side} lr: " in refusal.cure
    tried = [float(word) for word in refusal.cure.split(": ")[1].split(" and ")]
    best = 0.5 * cells[0].size ** A * cells[0].tokens ** B
    swept = table[(table["size"] == cells[0].size) & (table["tokens"] == cells[0].tokens)]["lr"]
    assert min(tried) < best < swept.min() or max(tried) > best > swept.max()
    law = hyper_laws(cells, ["lr"])["all", "lr"]
    assert isinstance(law, Refusal) and law.reason == "too few points" and "try" in law.cure


def test_cells_on_one_line_give_a_law_in_compute() -> None:
    table = sweep()
    table = table[np.isclose(table["tokens"] / 1e9, np.array([1, 5, 25, 0])[
        np.searchsorted([1e7, 4e7, 1.6e8, 6e8], table["size"])])]  # fmt: skip
    law = hyper_laws(optima(table, ["lr"], resamples=20), ["lr"])["all", "lr"]
    assert isinstance(law, HyperLaw) and set(law.exponents) == {"C"}
    one = sweep().query("tokens == 1e9")
    alone = hyper_laws(optima(one, ["lr"], resamples=20), ["lr"])["all", "lr"]
    assert isinstance(alone, HyperLaw) and set(alone.exponents) == {"N"}
    assert alone.exponents["N"].value == pytest.approx(A, abs=1e-6)


def test_too_short_sweeps_and_wrong_columns_are_refused() -> None:
    table = sweep()
    short = table[table.groupby(["size", "tokens"]).cumcount() < 2]
    refusal = optima(short, ["lr"])[0].status
    assert isinstance(refusal, Refusal) and refusal.reason == "too few points"
    with pytest.raises(ValueError, match="'wd' must be a column"):
        optima(table, ["wd"])
    with pytest.raises(ValueError, match="values above 0"):
        optima(table.assign(lr=0.0), ["lr"])
