"""Does a healthy ladder collapse, and is a run that was trained otherwise found?"""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.scaling.collapse import Collapse, LossCurve, collapse, curve, ladder_of
from isoflop.scaling.interval import Refusal

FLOOR = 1.7


def made(
    name: str, scale: float, seed: int, *, noise: float = 0.004, bend: float = 0.0, n: int = 100
) -> LossCurve:
    """A curve of the common shape; `bend` above 0 falls more slowly at first and later faster."""
    x = np.arange(1, n + 1) / n
    shape = x**-0.5 * (1 + bend * np.sin(np.pi * x))
    noisy = 1 + noise * np.random.default_rng(seed).normal(size=n)
    found = curve(name, 1000 * x, FLOOR + scale * shape * noisy)
    assert found is not None
    return found


def ladder(**options: float) -> list[LossCurve]:
    return [made(f"run{i}", 1.5 / (i + 1), i, **options) for i in range(5)]  # type: ignore[arg-type]


def fitted(*args: object, **options: object) -> Collapse:
    found = collapse(*args, **options)  # type: ignore[arg-type]
    assert isinstance(found, Collapse)
    return found


def test_runs_of_one_shape_collapse_to_within_their_noise() -> None:
    found = fitted(ladder(), floor=FLOOR)
    assert found.spread < 0.01 and found.outliers == ()
    assert found.curves[:, -1] == pytest.approx(1.0)
    assert not found.measured


def test_the_floor_is_found_where_none_is_given() -> None:
    found = fitted(ladder(noise=0.0))
    assert found.floor == pytest.approx(FLOOR, abs=0.06)


def test_a_floor_above_a_run_is_not_believed() -> None:
    assert fitted(ladder(noise=0.0), floor=9.0).floor < FLOOR + 0.3


def test_a_wrong_floor_collapses_worse() -> None:
    runs = ladder()
    assert fitted(runs, floor=0.5).spread > 5 * fitted(runs, floor=FLOOR).spread


def test_a_run_that_was_trained_otherwise_is_found() -> None:
    repeats = [[made(f"seed{s}", 0.5, 100 + s) for s in range(3)]]
    runs = [*ladder()[:4], made("bent", 0.3, 9, bend=0.15)]
    found = fitted(runs, floor=FLOOR, repeats=repeats)
    assert found.measured and found.outliers == ("bent",)


def test_the_tolerance_is_that_of_the_seeds() -> None:
    def tolerance(noise: float) -> float:
        repeats = [[made(f"s{s}", 0.5, 50 + s, noise=noise) for s in range(8)]]
        return fitted(ladder(), floor=FLOOR, repeats=repeats).tolerance

    assert tolerance(0.04) / tolerance(0.01) == pytest.approx(4, rel=0.05)


def test_too_few_runs_are_refused_with_a_cure() -> None:
    found = collapse(ladder()[:2])
    assert isinstance(found, Refusal) and "more budgets" in found.cure


def test_a_curve_needs_points() -> None:
    assert curve("x", [1, 2, 3], [3.0, 2.0, 1.0]) is None
    assert curve("x", np.arange(9), np.full(9, np.nan)) is None


def test_the_ladder_is_the_best_run_of_each_budget() -> None:
    curves = {run.run: run for run in ladder()}
    sizes = {"run0": (1e9, 3.0), "run1": (1e9, 2.9), "run2": (1e10, 2.5), "gone": (1e10, 1.0)}
    assert [run.run for run in ladder_of(sizes, curves)] == ["run1", "run2"]
