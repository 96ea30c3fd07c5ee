"""Does the envelope of loss curves find the exponents that the curves were made with?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.envelope import Curve, Envelope, curves, envelope
from isoflop.scaling.interval import Refusal

ALPHA, BETA = 0.36, 0.30
TRUTH = BETA / (ALPHA + BETA)


def made(sizes: int = 12, noise: float = 0.0, seed: int = 0, decay: bool = False) -> list[Curve]:
    """Runs with a constant learning rate, each from far below to far above its best length."""
    random, runs = np.random.default_rng(seed), []
    for index, size in enumerate(np.geomspace(1e7, 2e9, sizes)):
        tokens = np.geomspace(1.0, 400.0, 120) * size
        loss = 1.8 + 300 * size**-ALPHA + 400 * tokens**-BETA
        loss *= np.exp(noise * random.normal(size=120))
        rate = np.linspace(1, 0.1, 120) if decay else np.ones(120)
        runs.append(Curve(f"run {index}", size, tokens, 6 * size * tokens, loss, rate))
    return runs


def test_the_exponents_are_recovered() -> None:
    found = envelope(made(), resamples=200)
    assert isinstance(found, Envelope)
    assert found.a.value == pytest.approx(TRUTH, abs=0.02)
    assert found.a.value + found.b.value == pytest.approx(1, abs=1e-6)
    assert found.a.low <= TRUTH <= found.a.high
    assert np.allclose(6 * found.size * found.tokens, found.flops, rtol=1e-6)
    assert found.runs > 5 and found.midway > 0.9 and found.caution is None


def test_noise_is_smoothed_and_shows_in_the_interval() -> None:
    inside = []
    for seed in range(10):
        found = envelope(made(noise=0.003, seed=seed), resamples=100, seed=seed)
        assert isinstance(found, Envelope)
        assert found.a.value == pytest.approx(TRUTH, abs=0.06)
        inside.append(found.a.low <= TRUTH <= found.a.high)
    assert np.mean(inside) >= 0.8


def test_the_lowest_loss_is_the_envelopes() -> None:
    runs = made()
    found = envelope(runs, resamples=5, smooth=0.0)
    assert isinstance(found, Envelope)
    for run in runs:
        other = np.interp(np.log(found.flops), np.log(run.flops), run.loss, left=9, right=9)
        assert (found.loss <= other + 1e-4).all()


def test_decaying_rates_are_cautioned() -> None:
    found = envelope(made(decay=True), resamples=5)
    assert isinstance(found, Envelope) and found.caution is not None
    assert found.caution.reason == "mid-schedule losses" and "decays" in str(found.caution)
    assert len(found.caution.runs) == found.runs
    for run in found.caution.runs:  # they end on the envelope
        i = int(np.abs(found.flops / run.flops - 1).argmin())
        assert (run.size, run.tokens) == pytest.approx((found.size[i], found.tokens[i]))


def test_a_long_table_makes_the_same_curves() -> None:
    runs = made()
    table = pd.concat(
        pd.DataFrame({"run": r.run, "size": r.size, "tokens": r.tokens, "flops": r.flops,
                      "loss": r.loss, "rate": r.rate}) for r in runs
    )  # fmt: skip
    read = curves(table.sample(frac=1, random_state=0))
    one, two = envelope(read, resamples=20), envelope(runs, resamples=20)
    assert isinstance(one, Envelope) and isinstance(two, Envelope)
    assert one.a.value == pytest.approx(two.a.value, abs=0.01)


def test_what_cannot_be_read_is_refused() -> None:
    few = envelope(made(3))
    assert isinstance(few, Refusal) and few.reason == "too few points" and few.runs
    one = envelope(made(1))
    assert isinstance(one, Refusal) and one.reason == "one size only"
    assert isinstance(envelope([]), Refusal)
    short = [Curve(r.run, r.size, r.tokens[:2], r.flops[:2], r.loss[:2]) for r in made(4)]
    edge = envelope(short)
    assert isinstance(edge, Refusal) and edge.reason == "optimum at the edge"
    with pytest.raises(ValueError, match="resamples 0"):
        envelope(made(), resamples=0)


def test_the_same_seed_gives_the_same_interval() -> None:
    one, two = (envelope(made(noise=0.002), resamples=50, seed=3) for _ in range(2))
    assert isinstance(one, Envelope) and isinstance(two, Envelope)
    assert one.a == two.a
