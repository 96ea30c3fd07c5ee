"""Does the chain from compute to loss to accuracy predict the accuracies of larger models?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.interval import Refusal
from isoflop.scaling.response import Response, exponential, respond, sigmoid
from isoflop.scaling.tasks import TaskScore, TwoStep, task_score, two_step


def world(seed: int = 0, noise: float = 0.003, runs: int = 60) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    size, tokens = np.exp(random.uniform(16, 22, runs)), np.exp(random.uniform(20, 26, runs))
    loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.28
    loss = loss * np.exp(noise * random.normal(size=runs))
    accuracy = 0.25 + 0.6 / (1 + np.exp(2.5 * (loss - 3.0)))
    return size, tokens, loss, accuracy + 0.01 * random.normal(size=runs)


def test_both_curves_are_recovered() -> None:
    loss = np.linspace(2, 5, 40)
    accuracy = 0.25 + 0.6 / (1 + np.exp(2.5 * (loss - 3.0)))
    for chance in (None, 0.25):
        found = respond(loss, accuracy, sigmoid(chance), resamples=20)
        assert isinstance(found, Response)
        assert np.abs(found.predict(loss) - accuracy).max() < 1e-4
        assert np.abs(found.predict(np.array([1.0])) - 0.846).max() < 2e-3
    error = 0.9 - 4.0 * np.exp(-1.1 * loss)
    found = respond(loss, error, exponential(), resamples=20)
    assert isinstance(found, Response)
    assert np.abs(found.predict(loss) - error).max() < 1e-6


def test_the_chain_covers_new_runs_at_the_nominal_rate() -> None:
    inside = []
    for seed in range(25):
        size, tokens, loss, value = world(seed)
        steps = two_step(size, tokens, loss, value, sigmoid(0.25), resamples=60, seed=seed)
        assert isinstance(steps, TwoStep)
        new = world(1000 + seed, runs=20)
        low, high = steps.bands(new[0], new[1], seed=seed)
        inside.append(((low <= new[3]) & (new[3] <= high)).mean())
    assert 0.88 <= np.mean(inside) <= 0.99
    one = steps.predict(1e9, 2e10)
    assert one.low < one.value < one.high


@pytest.mark.parametrize("data", ["c4_original", "rpj", "rw_original"])
def test_the_published_models_follow_both_steps(gadre: pd.DataFrame, data: str) -> None:
    """Gadre et al. 2024: the mean error over tasks follows the loss on C4; that of the 7 models
    with the most compute (4 to 100 times that of the others) is predicted to 3 points of 30."""
    tasks = [name for name in gadre if name.startswith("acc_")]
    runs = gadre[gadre["dataset"] == data].dropna(subset=["loss_c4_val", *tasks])
    moving = [task for task in tasks if runs[task].max() - runs[task].min() > 0.15]
    assert len(moving) >= 15
    error = 1 - runs[moving].mean(axis=1).to_numpy(float)
    n, d = runs["params"].to_numpy(float), runs["tokens"].to_numpy(float)
    loss = runs["loss_c4_val"].to_numpy(float)
    found = task_score(n, d, 6 * n * d, loss, error, exponential(), resamples=100)
    assert isinstance(found, TaskScore) and found.points == 7
    assert found.error < 0.032 and found.error < 0.25 * found.naive
    # Single intervals do not hold at the nominal rate here: few models, and seven alike.
    assert found.covered >= 0.5 and found.reach >= 4


def test_what_cannot_be_chained_is_refused() -> None:
    size, tokens, loss, value = world(runs=5)
    assert isinstance(two_step(size, tokens, loss, value, exponential()), Refusal)
    size, tokens, loss, value = world(runs=30)
    flat = two_step(size, tokens, loss, np.full(30, 0.5), exponential(), resamples=5)
    assert isinstance(flat, Refusal) and flat.reason == "nothing to explain"
    with pytest.raises(ValueError, match="share is 2"):
        task_score(size, tokens, size * tokens, loss, value, exponential(), share=2)
    with pytest.raises(ValueError, match="must be finite"):
        respond(loss, np.where(value > 0.5, np.nan, value), exponential())
