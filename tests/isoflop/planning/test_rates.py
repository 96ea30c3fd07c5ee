"""Do batches and learning rates follow the rule, and a pilot's own sweeps where it has them?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop.planning.pilot import load
from isoflop.planning.rates import BATCH, RATE, Rates, best, learn, swept
from isoflop.planning.shapes import ladder, size
from models import GPT2Config, LlamaConfig

SHAPES = ladder(LlamaConfig, vocab=512, context=64)


def best_rate(n: float, d: float) -> float:
    return 1.5 * n**-0.6 * d**0.1


def sweep(family: str = "llama", bend: float = 0.05, noise: float = 5e-4) -> pd.DataFrame:
    """Seven rates in each of twelve cells; the best one follows a law in N and D."""
    random = np.random.default_rng(0)
    rows = []
    for n in (1e4, 4e4, 1.6e5, 6.4e5):
        for ratio in (5.0, 20.0, 80.0):
            middle = best_rate(n, n * ratio)
            for step in np.linspace(-1.2, 1.2, 7):
                loss = 1.8 + 30 * n**-0.34 + 90 * (n * ratio) ** -0.33
                loss *= 1 + bend * step**2 / 2 + noise * random.normal()
                rows.append(
                    {
                        "axis.arch": family, "status": "finished", "loss": loss,
                        "params_without_input_embedding": n, "tokens": n * ratio,
                        "flops": 6 * n * n * ratio, RATE: middle * np.exp(step), BATCH: 4096,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def pilot(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    sweep().to_csv(path, index=False)
    return path


def test_without_a_sweep_the_rule_holds() -> None:
    config, rates = SHAPES[20], Rates()
    assert rates.batch_tokens("llama", config, 1e18) == pytest.approx(
        0.2920 * 1e18**0.3271, rel=1e-3
    )
    assert rates.batch_tokens("llama", config, 1e18, workers=8) % (64 * 8) == 0
    assert rates.batch_tokens("llama", config, 1e8) == 64
    assert rates.learning_rate("llama", config, 1e20) == pytest.approx(9.9e-4, rel=0.01)


def test_a_pilots_sweeps_say_the_rate(pilot: Path) -> None:
    known = load(pilot)
    assert any("learning_rate of llama by the pilot's sweeps" in x for x in known.rates.notes)
    for config, flops in ((SHAPES[6], 1e11), (SHAPES[10], 1e12)):
        tokens = flops / config.flops_per_token().training
        rate = known.rates.learning_rate("llama", config, flops)
        assert rate == pytest.approx(best_rate(size(config), tokens), rel=0.1)
        assert known.rates.batch_tokens("llama", config, flops) == Rates().batch_tokens(
            "llama", config, flops
        ), "the batch was not swept"


def test_a_law_holds_for_its_own_architecture(pilot: Path) -> None:
    rates = load(pilot).rates
    other = ladder(GPT2Config, vocab=512, context=64)[8]
    assert rates.learning_rate("gpt2", other, 1e12) == Rates().learning_rate("gpt2", other, 1e12)


def test_the_pilots_law_is_of_its_best_runs(pilot: Path) -> None:
    """Else the bad rates of a sweep would count as what a size can reach."""
    law = load(pilot).law("llama")
    assert law is not None and law.noise < 0.01
    frame = sweep().rename(
        columns={"axis.arch": "family", "params_without_input_embedding": "size"}
    )
    assert swept(frame) == [RATE] and len(best(frame)) == 12
    assert len(best(frame.drop(columns=[RATE]))) == len(frame)


def test_a_sweep_without_an_optimum_leaves_the_rule_and_says_so() -> None:
    frame = sweep(noise=0.0).rename(
        columns={"axis.arch": "family", "params_without_input_embedding": "size"}
    )
    middle = frame.groupby(["size", "tokens"])[RATE].transform("median")
    rates = learn(frame[frame[RATE] > middle])
    assert not rates.laws and rates.notes[0].startswith("learning_rate of llama by the rule: ")
