"""Is the loss the cross entropy of the next token, and can it be trusted as a bound?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from isoflop import objectives
from isoflop.data.loader import Batches, windows
from isoflop.data.rows import Rows, row_seeds, sample
from isoflop.data.shards import write
from isoflop.objectives import Batch
from isoflop.objectives.autoregressive import NextToken
from isoflop.run import AdamW, Autoregressive, Evaluation, Run, override
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import HeldOut
from isoflop.training.loop import Inputs, train
from models import GPT2Config


def framed(targets: Tensor) -> Batch:
    return Batch(inputs={"tokens": torch.zeros_like(targets)}, targets=targets)


def test_equals_the_sum_by_hand() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], [[1.0, 1.0, 1.0], [0.0, -5.0, 5.0]]])
    targets = torch.tensor([[2, 1], [0, 1]])
    expected = 0.0
    for b in range(2):
        for t in range(2):
            row = logits[b, t].tolist()
            log_sum = math.log(sum(math.exp(x) for x in row))
            expected += log_sum - row[targets[b, t]]
    loss = NextToken().loss(lambda tokens: logits, framed(targets))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_model_that_knows_nothing_costs_the_logarithm_of_the_vocabulary() -> None:
    batch = NextToken().batch(sample(3, 5, 1000))
    loss = NextToken().loss(lambda tokens: torch.zeros(*tokens.shape, 1000), batch)
    assert float(loss) == pytest.approx(15 * math.log(1000), rel=1e-6)
    assert batch.count == 15


def test_the_model_sees_the_inputs_and_no_targets() -> None:
    seen = []

    def forward(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return torch.zeros(*tokens.shape, 10)

    ids = np.arange(10).reshape(2, 5)
    batch = NextToken().batch(Rows(ids=ids, seeds=row_seeds(0, 0, 0, 2)))
    NextToken().loss(forward, batch)
    assert len(seen) == 1 and seen[0].tolist() == ids[:, :-1].tolist()
    assert batch.targets.tolist() == ids[:, 1:].tolist()


def test_documents_are_not_predicted_from_each_other_nor_is_padding() -> None:
    documents = np.array([[0, 0, 1, 1, -1, -1], [0, 0, 0, 0, 0, 0]], dtype=np.int32)
    ids = np.arange(12).reshape(2, 6)
    batch = NextToken().batch(Rows(ids=ids, seeds=row_seeds(0, 0, 0, 2), documents=documents))
    assert batch.weights is not None
    assert batch.weights.tolist() == [[1, 0, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.inputs["documents"].tolist() == documents[:, :-1].tolist()
    uniform = NextToken().loss(lambda tokens, documents: torch.zeros(2, 5, 12), batch)
    assert float(uniform / batch.count) == pytest.approx(math.log(12))
    assert batch.measure(torch.arange(12)) == 1 + 3 + 7 + 8 + 9 + 10 + 11


def test_low_precision_logits_are_raised_first() -> None:
    """In bfloat16, log(sum exp) of 50,000 equal logits would be off by a percent."""
    ids = torch.zeros(1, 2, dtype=torch.int64)
    logits = torch.zeros(1, 2, 50_000, dtype=torch.bfloat16)
    loss = NextToken().loss(lambda tokens: logits, framed(ids))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(2 * math.log(50_000), rel=1e-6)


def test_the_runs_configuration_names_it() -> None:
    model = GPT2Config(width=8, depth=1, heads=1)
    assert isinstance(objectives.build(Autoregressive(), model), NextToken)


# --- a source whose entropy is known -------------------------------------------------------------

TRANSITIONS = np.array([
    [0.70, 0.10, 0.10, 0.10],
    [0.05, 0.05, 0.80, 0.10],
    [0.25, 0.25, 0.25, 0.25],
    [0.50, 0.00, 0.00, 0.50],
])  # fmt: skip


def markov(length: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    limits, draws = TRANSITIONS.cumsum(axis=1), random.random(length)
    states = np.zeros(length, dtype=np.uint32)
    for i in range(1, length):
        states[i] = np.searchsorted(limits[states[i - 1]], draws[i], side="right")
    return states


def entropy_rate() -> float:
    values, vectors = np.linalg.eig(TRANSITIONS.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    logs = np.log(np.where(TRANSITIONS > 0, TRANSITIONS, 1.0))
    return float(-(stationary[:, None] * TRANSITIONS * logs).sum())


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_the_entropy_of_a_markov_source_is_approached_and_not_beaten(
    model: str, unresolved: Callable[..., Run], tmp_path: Path
) -> None:
    """Against what the true probabilities pay for the same tokens: the sampling error cancels."""
    train_file = write(tmp_path, "train", [markov(60_000, seed=1)], np.uint16)
    validation = write(tmp_path, "validation", [markov(30_000, seed=2)], np.uint16)
    rows = windows(validation, 32, 900)
    truth = float(-np.log(TRANSITIONS[rows.ids[:, :-1], rows.ids[:, 1:]]).mean())
    assert truth == pytest.approx(entropy_rate(), abs=0.02)
    run = unresolved(
        model,
        tokens=150 * 512,
        batch_tokens=512,
        optimizer=AdamW(lr=2e-2, weight_decay=0.0),
        evaluation=Evaluation(tokens=900 * 32, times=1),
    )
    run = override(run, "model.depth", "1").resolve(vocab=4, fingerprint="markov")
    text = HeldOut(rows, torch.ones(4, dtype=torch.int64))
    batches = Batches(train_file, context=32, rows=run.rows, seed=0)
    outcome = train(run, Inputs(batches=batches, held_out=text), Ranks(), tmp_path / "run")
    loss = outcome.progress.history[-1]["val/loss"]
    assert truth - 0.002 < loss < truth + 0.02
