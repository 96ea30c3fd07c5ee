"""Is a schedule's law recovered from one curve, and does it predict another schedule?"""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.scaling.interval import Array, Refusal
from isoflop.scaling.schedules import AnnealingLaw, fit_curve, grounds

PEAK = 3e-3
TRUE = AnnealingLaw(2.1, 0.5, 0.5, 0.4, 0.99, 0.0, 1)


def warmed(tail: Array) -> Array:
    return np.concatenate([np.linspace(PEAK / 100, PEAK, 100), tail])


def cosine(steps: int) -> Array:
    x = np.linspace(0, 1, steps)
    return warmed(PEAK * (0.1 + 0.45 * (1 + np.cos(np.pi * x))))


def constant_then_down(steps: int) -> Array:
    flat = int(0.8 * steps)
    return warmed(np.concatenate([np.full(flat, PEAK), np.linspace(PEAK, 0, steps - flat)]))


def recorded(
    rates: Array, every: int = 10, noise: float = 0.0, seed: int = 0
) -> tuple[Array, Array]:
    steps = np.arange(every, len(rates) + 1, every)
    factor = 1 + noise * np.random.default_rng(seed).normal(size=len(steps))
    return steps, TRUE.predict(rates)[steps - 1] * factor


def fitted(*args: object, **options: object) -> AnnealingLaw:
    law = fit_curve(*args, **options)  # type: ignore[arg-type]
    assert isinstance(law, AnnealingLaw)
    return law


def test_grounds_by_hand() -> None:
    ground, annealed = grounds([1.0, 1.0, 0.5, 0.5], memory=0.5)
    assert ground.tolist() == [1.0, 2.0, 2.5, 3.0]
    assert annealed.tolist() == [0.0, 0.0, 0.5, 0.75]


def test_the_law_is_recovered_from_its_own_curve() -> None:
    rates = cosine(2000)
    law = fitted(*recorded(rates), rates)
    assert law.memory == 0.99 and law.alpha == pytest.approx(TRUE.alpha, abs=0.03)
    assert law.floor == pytest.approx(TRUE.floor, rel=0.01)
    assert law.error < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_one_schedule_predicts_another(seed: int) -> None:
    """From cosine to a run of another length that stays up and then cools down."""
    known, asked = cosine(2000), constant_then_down(3000)
    law = fitted(*recorded(known, noise=0.003, seed=seed), known)
    assert law.predict(asked)[-1] == pytest.approx(TRUE.predict(asked)[-1], rel=0.02)


def test_the_end_is_predicted_from_the_first_part() -> None:
    rates = cosine(2000)
    law = fitted(*recorded(rates, noise=0.002), rates, until=1500)
    assert law.predict(rates)[-1] == pytest.approx(TRUE.predict(rates)[-1], rel=0.02)


def test_a_constant_rate_has_nothing_annealed() -> None:
    rates = np.full(900, PEAK)
    law = fitted(*recorded(rates), rates)
    assert law.gain == 0.0 and law.error < 1e-3


def test_too_few_points_are_refused() -> None:
    rates = cosine(200)
    assert isinstance(fit_curve(*recorded(rates, every=60), rates), Refusal)


def test_steps_beyond_the_schedule_are_an_error() -> None:
    with pytest.raises(ValueError, match="do not fit a schedule of 5 steps"):
        fit_curve([9], [2.0], [1.0] * 5)


@pytest.mark.parametrize("rates", [[], [0.0, 0.0], [-1.0, 1.0], [[1.0]]])
def test_rates_must_be_rates(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="rates must be learning rates"):
        grounds(rates, 0.9)
