"""Do the fits say of published runs what their papers say?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.interval import Refusal
from isoflop.scaling.objective import named
from isoflop.scaling.parametric import ParametricFit, bootstrap, fit


def test_five_small_runs_predict_an_over_trained_large_one(gadre: pd.DataFrame) -> None:
    """Gadre et al. 2024: RedPajama, 4 sizes at 20 tokens per parameter and the smallest at 320,
    predict the loss on C4 of 1.4B parameters at 640 (300 times the compute) to 0.7 %."""
    runs = gadre[gadre["dataset"] == "rpj"]
    once = runs[(runs["chinchilla_multiplier"] == 1) & (runs["params"] < 5e8)]
    small = once.sort_values("params").iloc[[0, -3, -2, -1]]
    over = runs[(runs["chinchilla_multiplier"] == 16) & (runs["params"] < 2e7)]
    five = pd.concat([small, over])
    assert len(five) == 5
    law = fit(
        five["params"],
        five["tokens"],
        five["loss_c4_val"],
        form="gadre",
        objective=named("l2"),
    )
    assert isinstance(law, ParametricFit)
    large = runs[(runs["chinchilla_multiplier"] == 32) & (runs["params"] > 1e9)]
    predicted = law.predict(large["params"], large["tokens"])
    assert abs(predicted / large["loss_c4_val"].to_numpy() - 1).max() < 0.02


def test_the_replication_of_chinchilla(published: pd.DataFrame) -> None:
    """Besiroglu et al. 2024 read 240 points of the same figure: E 1.82, alpha 0.35, beta 0.37, and
    about 20 tokens per parameter at Chinchilla's budget, where Hoffmann et al. (alpha 0.34, beta
    0.28) would have said otherwise."""
    law = fit(published["N"], published["D"], published["loss"])
    assert isinstance(law, ParametricFit)
    best = bootstrap(law, resamples=300, seed=42).optimum(5.76e23)
    assert not isinstance(best, Refusal)
    assert best.ratio.low < 20 < best.ratio.high
    assert best.ratio.high / best.ratio.low > 3  # a wide interval is the honest one
    theirs = 1.8172 + 482.01 * published["N"] ** -0.3478 + 2085.43 * published["D"] ** -0.3658
    assert np.abs(np.log(law.predict(published["N"], published["D"]) / theirs)).max() < 0.02


def test_least_absolute_deviations_pass_through_runs(published: pd.DataFrame) -> None:
    """The optimum in L1 has as many residuals of zero as parameters, and no smoothing beats it."""
    law = fit(published["N"], published["D"], published["loss"], objective=named("l1"))
    huber = fit(published["N"], published["D"], published["loss"], delta=1e-6)
    assert isinstance(law, ParametricFit) and isinstance(huber, ParametricFit)
    assert (np.abs(law.residuals()) < 1e-9).sum() >= 5
    assert np.abs(law.residuals()).sum() <= np.abs(huber.residuals()).sum() * (1 + 1e-9)
    assert law.objective == pytest.approx(np.abs(law.residuals()).sum(), abs=1e-4)


def test_the_asymmetric_objective_lies_below_most_runs(published: pd.DataFrame) -> None:
    law = fit(published["N"], published["D"], published["loss"], objective=named("asymmetric"))
    assert isinstance(law, ParametricFit)
    assert (law.residuals() > 0).mean() < 0.2
    with pytest.raises(ValueError, match=r"only the asymmetric objective has it"):
        named("huber", over=3.0)


@pytest.mark.parametrize(
    "worlds", [60, pytest.param(400, marks=pytest.mark.slow)], ids=["60", "400"]
)
def test_seeded_worlds_are_recovered_at_the_nominal_rate(worlds: int) -> None:
    """Runs as in published studies, noise with heavy tails: 95 % intervals hold about 95 %."""
    truth = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
    inside: dict[str, list[bool]] = {name: [] for name in (*truth, "N*", "noise")}
    best = (0.35 * 480 / (0.37 * 2000)) ** (1 / 0.72) * (1e22 / 6) ** (0.37 / 0.72)
    for seed in range(worlds):
        random = np.random.default_rng(seed)
        size = np.sqrt(10 ** random.uniform(18, 21.5, 80) / 120)
        tokens = 20 * size * np.exp(random.uniform(-2, 2, 80))
        size = size * np.exp(random.uniform(-1, 1, 80))
        clean = 1.8 + 480 * size**-0.35 + 2000 * tokens**-0.37
        loss = clean * np.exp(0.004 * random.standard_t(5, 80))
        law = fit(size, tokens, loss)
        assert isinstance(law, ParametricFit)
        drawn = bootstrap(law, resamples=100, seed=seed)
        for name, value in truth.items():
            interval = drawn.interval(name)
            inside[name].append(interval.low <= value <= interval.high)
        optimum = drawn.optimum(1e22)
        assert not isinstance(optimum, Refusal)
        inside["N*"].append(optimum.size.low <= best <= optimum.size.high)
        one = drawn.predict(1e9, 2e10, noise=True)
        new = (1.8 + 480 * 1e9**-0.35 + 2000 * 2e10**-0.37) * np.exp(0.004 * random.standard_t(5))
        inside["noise"].append(one.low <= new <= one.high)
    rates = {name: float(np.mean(found)) for name, found in inside.items()}
    slack = 3 * np.sqrt(0.95 * 0.05 / worlds) + 0.02  # 100 resamples cut the tails a little
    assert all(rate >= 0.95 - slack for rate in rates.values()), rates


def test_exact_flops_tell_gadre_from_tied(gadre: pd.DataFrame) -> None:
    runs = gadre[gadre["dataset"] == "rpj"]
    flops = 6.0 * runs["params_no_embed"] * runs["tokens"]
    one, other = (
        fit(runs["params"], runs["tokens"], runs["loss_c4_val"], flops=c, form="gadre")
        for c in (flops, None)
    )
    assert isinstance(one, ParametricFit) and isinstance(other, ParametricFit)
    assert one.objective != pytest.approx(other.objective, rel=1e-3)
    assert one.factor < 6 == pytest.approx(other.factor)
