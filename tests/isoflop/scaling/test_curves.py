from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.curves import akima, unbias
from isoflop.scaling.interval import Refusal
from isoflop.scaling.isoflop import minima

World = Callable[..., pd.DataFrame]
STEEP = {"alpha": 0.6, "beta": 0.2, "A": 900.0, "B": 14.0}


def truth(table: pd.DataFrame) -> float:
    """ln N* of the one budget: the sizes are spread evenly about it."""
    return float(np.log(table["params_without_input_embedding"]).mean())


@pytest.mark.parametrize("width", [1.0, 2.0, 3.0])
def test_the_correction_finds_the_true_minimum(world: World, width: float) -> None:
    table = world({"a": STEEP}, budgets=(1e11,), noise=0.0, width=width, sizes=9)
    (plain,) = minima(table, resamples=2)
    (found,) = minima(table, resamples=2, curve="corrected", lopsided={"a": (0.6, 0.2)})
    assert plain.size and found.size and found.loss and plain.loss
    off = [abs(np.log(m.size.value) - truth(table)) for m in (plain, found) if m.size]
    assert off[0] > 0.04 * width and off[1] < 1e-6
    n = np.exp(truth(table))
    exact = 1.8 + 900 * n**-0.6 + 14 * (1e11 / 6 / n) ** -0.2
    assert found.loss.value == pytest.approx(exact, rel=1e-9)
    assert abs(plain.loss.value - exact) > 1e-5


def test_a_symmetric_curve_needs_no_correction() -> None:
    x = np.linspace(-1, 1, 7)
    best, loss = unbias(x, np.array([[0.1, 0.0, 2.0], [-0.1, 0.0, 2.0]]), 0.3, 0.3)
    assert best[0] == pytest.approx(0, abs=1e-9) and loss[0] == pytest.approx(2, abs=1e-3)
    assert np.isnan(best[1]) and np.isnan(loss[1])
    with pytest.raises(ValueError, match="alpha is 0 and beta is 1; both must be above 0"):
        unbias(x, np.ones((1, 3)), 0, 1)


def test_corrected_intervals_hold_the_truth_where_the_parabolas_do_not(world: World) -> None:
    inside: dict[str, list[bool]] = {"parabola": [], "corrected": [], "spline": []}
    for seed in range(40):
        table = world({"a": STEEP}, budgets=(1e11,), noise=0.001, seed=seed, width=2.5, sizes=12)
        for curve, found in inside.items():
            (one,) = minima(
                table,
                resamples=200,
                curve=curve,
                lopsided={"a": (0.6, 0.2)},  # type: ignore[arg-type]
            )
            if one.size:
                found.append(one.size.low <= np.exp(truth(table)) <= one.size.high)
    assert len(inside["corrected"]) >= 38
    assert np.mean(inside["corrected"]) >= 0.85
    assert np.mean(inside["spline"]) >= 0.85
    assert np.mean(inside["parabola"]) < np.mean(inside["corrected"])


def test_the_spline_goes_through_the_runs() -> None:
    x = np.linspace(-2, 2, 9)
    losses = np.vstack([2 + 0.1 * (x - 0.3) ** 2, 2 + 0.01 * x])
    best, loss, inside = akima(x, losses)
    assert best[0] == pytest.approx(0.3, abs=0.02) and loss[0] == pytest.approx(2, abs=1e-4)
    assert inside.tolist() == [True, False] and best[1] == -2


def test_what_a_curve_takes_is_said(world: World) -> None:
    table = world({"a": {}}, budgets=(1e11,))
    with pytest.raises(ValueError, match="must be parabola, corrected or spline"):
        minima(table, curve="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes alpha and beta of 'a'"):
        minima(table, curve="corrected")
    (refused,) = minima(table.head(3), curve="spline")
    assert isinstance(refused.status, Refusal)
