"""Is a difference that is called detectable found about as often as promised?"""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.planning.pilot import ruled
from isoflop.scaling.forms import Points
from isoflop.scaling.interval import Array
from isoflop.scaling.power import detectable, simulate

TARGET = 3e14


def grid(seeds: int = 1, budgets: int = 4) -> Points:
    flops = np.repeat(1e12 * 3.0 ** np.arange(budgets), 5)
    size = np.sqrt(flops / 120) * np.tile(2.0 ** np.arange(-2, 3), budgets)
    points = Points.of(size, flops / 6 / size, flops)
    return Points(*(np.tile(part, seeds) for part in (points.x, points.y, points.c, points.u)))


def best(flops: float, theta: Array, points: Points) -> Array:
    law = ruled(points, np.log(3.5))
    budget = float(np.log(flops / 6)) - law.centre[0] - law.centre[1]
    x = law.form.split(theta, budget)
    return law.form.along(theta, x, budget - x, np.full(len(x), np.log(flops) - law.centre[2]))


def test_a_detectable_difference_is_detected() -> None:
    """Two families whose losses differ by it, in other worlds than those it was computed from."""
    points = grid()
    law = ruled(points, np.log(3.5))
    said = detectable(law, simulate(law, points, 0.005, worlds=200), TARGET, 6.0)
    one = best(TARGET, simulate(law, points, 0.005, worlds=150, seed=1), points)
    two = best(TARGET, simulate(law, points, 0.005, worlds=150, seed=2), points)
    error = np.sqrt(2) * said.deviation
    for shift, low, high in ((said.difference, 0.68, 0.95), (0.0, 0.0, 0.12)):
        found = np.mean(np.abs(one + shift - two) > 1.96 * error)
        assert low <= found <= high
    assert said.lost == 0 and said.worlds == 200


def test_the_multiplier_is_the_compute_that_makes_up_for_it() -> None:
    points = grid()
    law = ruled(points, np.log(3.5))
    said = detectable(law, simulate(law, points, 0.005, worlds=40), TARGET, 6.0)
    lower = best(TARGET * said.multiplier, law.theta, points)[0]
    assert best(TARGET, law.theta, points)[0] - lower == pytest.approx(said.difference, rel=1e-3)
    assert said.multiplier > 1 and said.nats > said.difference


def test_more_seeds_less_noise_and_nearer_targets_detect_more() -> None:
    points = grid()
    law = ruled(points, np.log(3.5))

    def difference(points: Points, noise: float, flops: float) -> float:
        return detectable(law, simulate(law, points, noise, worlds=60), flops, 6.0).difference

    usual = difference(points, 0.005, TARGET)
    assert difference(points, 0.002, TARGET) < 0.6 * usual
    assert difference(grid(seeds=3), 0.005, TARGET) < 0.8 * usual
    assert difference(points, 0.005, 2.7e13) < 0.8 * usual


def test_a_floor_is_not_reached_by_any_compute() -> None:
    points = grid()
    law = ruled(points, np.log(3.5))
    said = detectable(law, simulate(law, points, 0.3, worlds=20), TARGET, 6.0)
    assert said.multiplier == np.inf or said.multiplier > 10
    with pytest.raises(ValueError, match="worlds is 3; it must be at least 10"):
        simulate(law, points, 0.1, worlds=3)
