"""Is the noise scale the one that theory gives, and does measuring it leave no trace?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isoflop.data.rows import Rows, sample
from isoflop.objectives.autoregressive import NextToken
from isoflop.run import Evaluation, Run
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import points
from isoflop.training.loop import Inputs, train
from isoflop.training.noise_scale import combine, measure, noise_scale

MakeRun = Callable[..., Run]


def test_exact_norms_give_the_exact_scale() -> None:
    """E|G_B|^2 = |G|^2 + S / B."""
    signal, noise = 3.0, 700.0
    found = combine(signal + noise / 32, signal + noise / 512, 32, 512)
    assert found.signal == pytest.approx(signal) and found.noise == pytest.approx(noise)
    assert found.tokens == pytest.approx(noise / signal)


def test_noise_without_signal_has_no_scale() -> None:
    assert combine(10.0, 0.5, 1, 16).tokens is None


def test_batches_must_differ() -> None:
    with pytest.raises(ValueError, match="must differ"):
        combine(1.0, 1.0, 8, 8)


def test_the_estimate_agrees_with_the_gradients_of_single_rows(make_run: MakeRun) -> None:
    """The variance of row gradients about their mean, by hand, over many rows of random text."""
    run = make_run("gpt2", batch_tokens=64 * 32)
    torch.manual_seed(0)
    model, objective = run.model.build(), NextToken()
    rows = sample(64, 32, 257)
    rows = Rows(
        ids=rows.ids % 8, seeds=rows.seeds
    )  # few tokens: every row pulls the weights the same way
    each = []
    for index in range(64):
        batch = objective.batch(rows.part(slice(index, index + 1)))
        loss = objective.loss(model, batch) / batch.count
        parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        each.append(torch.cat([p.flatten() for p in parts if p is not None]).double().numpy())
    gradients = np.stack(each)
    noise = 32 * gradients.var(axis=0, ddof=1).sum()  # of one token: a row's mean is over 32
    signal = (gradients.mean(axis=0) ** 2).sum() - noise / 32 / 64
    found = measure(model, objective, rows, run, Ranks())
    assert found is not None
    assert found.noise == pytest.approx(noise, rel=0.25)  # 8 chunks know their variance so well
    assert found.signal == pytest.approx(signal, rel=0.25)


def test_nothing_of_the_model_changes(make_run: MakeRun) -> None:
    run = make_run("llama")
    model = run.model.build()
    before = [p.detach().clone() for p in model.parameters()]
    assert measure(model, NextToken(), sample(4, 32, 257), run, Ranks()) is not None
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_one_row_cannot_tell(make_run: MakeRun) -> None:
    run = make_run("gpt2")
    assert measure(run.model.build(), NextToken(), sample(1, 32, 257), run, Ranks()) is None


def test_a_run_measures_it_without_changing_a_bit(
    make_run: MakeRun, make_inputs: Callable[[Run], Inputs], tmp_path: Path
) -> None:
    run = make_run("llama", evaluation=Evaluation(tokens=256, times=2))
    asked = replace(run, evaluation=replace(run.evaluation, noise_scale=True))
    assert asked.identity != run.identity
    plain = train(run, make_inputs(run), Ranks(), tmp_path / "plain").progress.history
    found = train(asked, make_inputs(asked), Ranks(), tmp_path / "asked").progress.history
    assert [r.get("train/loss") for r in found] == [r.get("train/loss") for r in plain]
    measured = [r for r in found if "gradient/noise" in r]
    assert [r["step"] for r in measured] == [0, *points(run.steps, 2)]
    assert (noise_scale(found) or 1) > 0 and noise_scale(plain) is None


def test_the_ratio_is_of_means() -> None:
    history = [
        {"step": 0, "gradient/signal": 1e9, "gradient/noise": 1.0},
        {"step": 4, "gradient/signal": -1.0, "gradient/noise": 100.0},
        {"step": 8, "gradient/signal": 3.0, "gradient/noise": 300.0},
    ]
    assert noise_scale(history) == pytest.approx(200.0)
    assert noise_scale(history[:2]) is None
