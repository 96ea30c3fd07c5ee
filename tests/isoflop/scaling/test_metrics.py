"""Do metrics of generated text follow their laws, with a break only where it predicts better?"""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.scaling.interval import Refusal
from isoflop.scaling.metrics import MetricLaw, metric_law

FLOPS = np.repeat(np.geomspace(1e15, 1e20, 12), 3)


def noise(scale: float, seed: int = 0) -> np.ndarray:
    values: np.ndarray = scale * np.random.default_rng(seed).normal(size=len(FLOPS))
    return values


def fitted(found: MetricLaw | Refusal) -> MetricLaw:
    assert isinstance(found, MetricLaw)
    return found


@pytest.mark.parametrize("floor", [0.3, None])
def test_a_power_to_the_human_floor(floor: float | None) -> None:
    clean = 0.3 + 0.5 * (FLOPS / 1e15) ** -0.2
    found = fitted(metric_law(clean + noise(0.003), FLOPS, floor=floor, resamples=100))
    assert found.curve.shape.name == "power"
    truth = 0.3 + 0.5 * 1e6**-0.2
    ahead = found.predict(1e21)
    assert ahead.value == pytest.approx(truth, abs=0.01) and ahead.low <= truth <= ahead.high
    assert found.predict(1e21, noise=True).high > ahead.high
    assert found.needed(0.35) == pytest.approx(1e15 * 0.1**-5, rel=0.4)
    assert found.needed(0.9) is None


def test_values_may_rise_to_their_floor() -> None:
    rising = 4.0 - 2.0 * (FLOPS / 1e15) ** -0.3
    found = fitted(metric_law(rising + noise(0.01), FLOPS, floor=4.0, resamples=50))
    assert found.predict(1e22).value == pytest.approx(4.0 - 2.0 * 1e7**-0.3, abs=0.02)


def test_a_break_is_found_where_there_is_one() -> None:
    x = np.log(FLOPS / 1e15)
    bend = np.maximum(x - 5.0, 0.0)
    clean = 0.2 + 0.6 * np.exp(-0.05 * x - 0.4 * bend)
    found = fitted(metric_law(clean + noise(0.002), FLOPS, floor=0.2, resamples=50))
    assert found.curve.shape.name == "broken"
    assert found.held_out["broken"] < 0.9 * found.held_out["power"]


def test_rates_are_logistic_against_loss() -> None:
    loss = 2.0 + 3.0 * (FLOPS / 1e15) ** -0.1
    rate = 0.9 / (1 + np.exp(3.0 * (loss - 3.2)))
    observed = np.clip(rate + noise(0.01), 0, 1)
    found = fitted(metric_law(observed, FLOPS, loss=loss, floor=0.9, kind="rate", resamples=100))
    assert found.against == "loss" and found.curve.shape.name == "logistic"
    at = found.predict(2.4)
    assert at.value == pytest.approx(0.9 / (1 + np.exp(3.0 * (2.4 - 3.2))), abs=0.02)
    assert found.needed(0.45) == pytest.approx(3.2, abs=0.05)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a rate lies in \[0, 1\]"):
        metric_law(2 * np.ones(36), FLOPS, kind="rate")
    with pytest.raises(ValueError, match="kind is 'ratio'"):
        metric_law(np.ones(36), FLOPS, kind="ratio")  # type: ignore[arg-type]
    few = metric_law(np.arange(3.0), FLOPS[[0, 9, 20]])
    assert isinstance(few, Refusal) and few.reason == "too few points"
    with pytest.raises(ValueError, match="flops is -1"):
        fitted(metric_law(np.exp(-np.log(FLOPS) / 9), FLOPS, floor=0.0, resamples=5)).predict(-1)
