"""Does a step learn, draw its random numbers from its place alone, and keep to its limits?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isoflop.data.loader import Batches, windows
from isoflop.data.rows import sample
from isoflop.data.shards import write
from isoflop.objectives import Batch
from isoflop.objectives.autoregressive import NextToken
from isoflop.run import AdamW, Evaluation, Run
from isoflop.training import optimizer
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import HeldOut
from isoflop.training.loop import Inputs, Outcome, train
from isoflop.training.precision import autocast
from isoflop.training.step import seed_step, update

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]


def losses(outcome: Outcome) -> list[float]:
    return [r["train/loss"] for r in outcome.progress.history if "train/loss" in r]


def draw(run: Run, step: int, ranks: Ranks) -> float:
    seed_step(run, step, ranks)
    return torch.rand(()).item()


def test_random_numbers_belong_to_seed_step_and_rank(make_run: MakeRun) -> None:
    runs = [make_run(seed=seed) for seed in (0, 1, 2**64 - 2, 2**64 - 1)]
    places = [(step, Ranks(rank=r, world=4)) for step in (0, 1, 500) for r in range(4)]
    drawn = [draw(run, *place) for run in runs for place in places]
    assert len(set(drawn)) == len(runs) * len(places)
    assert drawn == [draw(run, *place) for run in runs for place in places]


def batch() -> Batch:
    return NextToken().batch(sample(4, 32, 257))


def test_the_gradient_is_clipped_and_its_norm_is_that_before(make_run: MakeRun) -> None:
    """Plain descent shows the gradient that was used: of its own norm, or of the limit."""
    moved: dict[float, float] = {}
    norms: dict[float, float] = {}
    for clip in (0.0, 0.25, 1e9):
        run = make_run("gpt2", optimizer=AdamW(lr=1.0, clip=clip))
        torch.manual_seed(0)
        model = run.model.build()
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        descent = torch.optim.SGD(model.parameters(), lr=1.0)
        _, norm = update(model, descent, NextToken(), batch(), run, Ranks())
        after = nn.utils.parameters_to_vector(model.parameters()).detach()
        moved[clip], norms[clip] = float((after - before).norm()), float(norm)
        assert all(p.grad is None for p in model.parameters()), "nothing is left for the next step"
    assert norms[0.0] == norms[0.25] == norms[1e9] > 0.25
    assert moved[0.25] == pytest.approx(0.25, rel=1e-4)
    assert moved[0.0] == moved[1e9] == pytest.approx(norms[0.0], rel=1e-4)


def test_a_step_returns_the_loss_before_it(make_run: MakeRun) -> None:
    run = make_run("llama")
    torch.manual_seed(0)
    model = run.model.build()
    given = batch()
    expected = NextToken().loss(model, given).item() / 128
    optim = optimizer.build(model, run.optimizer)
    loss, _ = update(model, optim, NextToken(), given, run, Ranks())
    assert float(loss) == expected and not loss.requires_grad
    assert NextToken().loss(model, given).item() / 128 < expected


def test_automatic_precision_is_exact_on_a_processor() -> None:
    product = torch.ones(2, 2)
    for precision, dtype in (
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
    ):
        with autocast(precision, "cpu"):
            assert (product @ product).dtype == dtype


@pytest.mark.parametrize("model", ["gpt2", "llama", "llama-tied"])
def test_a_repetitive_text_is_learnt(model: str, unresolved: MakeRun, tmp_path: Path) -> None:
    """Seven tokens in a circle, one of them twice: from ln 16 nats to nearly none."""
    circle = np.tile(np.array([3, 1, 4, 1, 5, 9, 2], dtype=np.uint32), 600)
    file = write(tmp_path, "train", [circle], np.uint16)
    run = unresolved(model, tokens=100 * 128, evaluation=Evaluation(tokens=256, times=2)).resolve(
        vocab=16, fingerprint="circle"
    )
    batches = Batches(file, context=32, rows=run.rows, seed=0)
    text = HeldOut(windows(file, 32, 8), torch.ones(16, dtype=torch.int64))
    outcome = train(run, Inputs(batches=batches, held_out=text), Ranks(), tmp_path / "run")
    assert losses(outcome)[0] == pytest.approx(math.log(16), rel=0.05)
    assert losses(outcome)[-1] < 0.3
    assert outcome.progress.history[-1]["val/loss"] < 0.3


def test_a_lower_precision_trains_with_float32_weights(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("gpt2", precision="bfloat16", tokens=4 * 128)
    exact = make_run("gpt2", precision="float32", tokens=4 * 128)
    low = train(run, make_inputs(run), Ranks(), tmp_path / "low")
    high = train(exact, make_inputs(exact), Ranks(), tmp_path / "high")
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert losses(low) != losses(high)
    assert losses(low) == pytest.approx(losses(high), rel=0.02)
