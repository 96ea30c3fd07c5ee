"""Is the scatter between seeds found, with its course, and what it lets one tell apart?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.interval import Refusal
from isoflop.scaling.noise import SeedNoise, seed_noise
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap, fit


def law(size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    loss: np.ndarray = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.3
    return loss


def repeats(slope: float, seeds: int, seed: int = 0, level: float = 0.004) -> pd.DataFrame:
    """Nine cells, sd of ln L growing as loss^slope and `level` at the loss of 4 nats."""
    random = np.random.default_rng(seed)
    size, tokens = (a.ravel() for a in np.meshgrid([1e6, 1e7, 1e8], [1e8, 1e9, 1e10]))
    size, tokens = np.repeat(size, seeds), np.repeat(tokens, seeds)
    loss = law(size, tokens)
    loss = loss * np.exp(level * (loss / 4) ** slope * random.normal(size=len(loss)))
    flops = 6 * size * tokens
    return pd.DataFrame({"size": size, "tokens": tokens, "flops": flops, "loss": loss})


def test_the_course_of_the_noise_is_recovered() -> None:
    found = seed_noise(repeats(slope=2.0, seeds=40))
    assert isinstance(found, SeedNoise)
    assert found.slope == pytest.approx(2.0, abs=0.35)
    assert float(found.sd(4.0)) == pytest.approx(0.004, rel=0.12)
    assert found.cells == 9 and found.freedom == 9 * 39
    even = seed_noise(repeats(slope=0.0, seeds=3))
    assert isinstance(even, SeedNoise) and even.slope == 0.0
    assert even.value.low < 0.004 < even.value.high
    by_compute = seed_noise(repeats(slope=2.0, seeds=40), "flops")
    assert isinstance(by_compute, SeedNoise) and by_compute.slope < 0


def test_the_interval_of_the_noise_holds_it_at_the_nominal_rate() -> None:
    inside = []
    for seed in range(200):
        found = seed_noise(repeats(slope=0.0, seeds=2, seed=seed).iloc[:4])
        assert isinstance(found, SeedNoise)
        inside.append(found.value.low <= 0.004 <= found.value.high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_a_detectable_difference_is_detected_as_often_as_it_says() -> None:
    found = seed_noise(repeats(slope=0.0, seeds=40))
    assert isinstance(found, SeedNoise)
    random, seeds = np.random.default_rng(1), 4
    gap = found.detectable(4.0, seeds)
    means = 0.004 * random.normal(size=(4000, 2, seeds)).mean(axis=2)
    z = (gap + means[:, 0] - means[:, 1]) / (0.004 * np.sqrt(2 / seeds))
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.06)
    assert found.detectable(4.0, 16) == pytest.approx(gap / 2)
    with pytest.raises(ValueError, match="seeds 0"):
        found.detectable(4.0, 0)


def test_without_repeats_two_cells_are_named() -> None:
    refusal = seed_noise(repeats(slope=0.0, seeds=1))
    assert isinstance(refusal, Refusal) and refusal.reason == "no repeats"
    assert len(refusal.runs) == 2 and refusal.runs[0].flops < refusal.runs[1].flops
    with pytest.raises(ValueError, match="covariate is 'size'"):
        seed_noise(repeats(slope=0.0, seeds=2), "size")  # type: ignore[arg-type]


def test_other_seeds_scatter_the_law_as_the_noise_says() -> None:
    """Losses drawn anew from the truth scatter E as much as losses drawn about one fitted law."""
    table = repeats(slope=0.0, seeds=4)
    size, tokens = table["size"].to_numpy(), table["tokens"].to_numpy()
    found = fit(size, tokens, table["loss"])
    assert isinstance(found, ParametricFit)
    drawn = bootstrap(found, resamples=150, noise=np.full(len(size), 0.004))
    random = np.random.default_rng(2)
    truth = []
    for _ in range(60):
        one = fit(size, tokens, law(size, tokens) * np.exp(0.004 * random.normal(size=len(size))))
        assert isinstance(one, ParametricFit)
        truth.append(np.log(one.E))
    assert isinstance(drawn, Resampled) and len(drawn.theta) == 150
    assert np.std(drawn.draws("E")) == pytest.approx(np.std(truth), rel=0.35)
