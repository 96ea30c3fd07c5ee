"""Does each objective learn what it must: to copy, to fill in, and a source's entropy, no less?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoflop import objectives, targets
from isoflop.data.rows import Rows, row_phases, row_seeds
from isoflop.objectives import Objective
from isoflop.rollouts.generate import Sampling, generate
from isoflop.rollouts.unmask import infill
from isoflop.run import MaskedDiffusion, SpanDenoising
from models import Config, DiffusionConfig, DiTConfig, SerialT5Config, T5Config
from models.interface import Denoiser, Model

SHAPE: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4}
CYCLE, CONTEXT = 6, 16
GREEDY = Sampling(0.0, 4, ())


def cyclic(count: int, seed: int) -> NDArray[np.int64]:
    """Rows (count, T + 1) that count up modulo 6, from anywhere: whatever is hidden is certain."""
    starts = np.random.default_rng(seed).integers(CYCLE, size=(count, 1))
    return (starts + np.arange(CONTEXT + 1)) % CYCLE


def framed(ids: NDArray[np.int64], step: int) -> Rows:
    count = len(ids)
    phases = row_phases(0, step, 0, count, count)
    return Rows(ids=ids, seeds=row_seeds(0, step, 0, count), phases=phases)


def learn(
    objective_config: targets.Objective, shape: Config, vocab: int, source: Any, steps: int
) -> tuple[Model, Objective]:
    """A model after `steps` batches of 32 rows from `source(count, seed)`.

    It begins with larger weights than it is built with: at this width they are too flat to learn
    from in seconds.
    """
    config = objective_config.prepare(shape, vocab)
    torch.manual_seed(0)
    model, objective = config.build(), objectives.build(objective_config, config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(steps):
        batch = objective.batch(framed(source(32, step), step))
        loss = objective.loss(model, batch) / batch.count
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
    return model.eval(), objective


def held_out(model: Model, objective: Objective, ids: NDArray[np.int64]) -> float:
    batch = objective.batch(framed(ids, 10**6))
    with torch.no_grad():
        return float(objective.loss(model, batch) / batch.count)


@pytest.mark.parametrize("kind", [T5Config, SerialT5Config])
def test_span_denoising_learns_to_fill_in(kind: type[T5Config]) -> None:
    config = SpanDenoising(rate=0.3, sentinels=12)
    model, objective = learn(config, kind(**SHAPE, context=CONTEXT), CYCLE, cyclic, 250)
    assert held_out(model, objective, cyclic(64, 999)) < 0.05


@pytest.mark.slow
def test_a_mixture_learns_to_fill_in_and_to_go_on() -> None:
    """It has seen texts that end where a prompt does."""
    config = SpanDenoising(mixture="ul2", sentinels=12)
    model, objective = learn(config, T5Config(**SHAPE, context=CONTEXT), CYCLE, cyclic, 800)
    assert held_out(model, objective, cyclic(64, 999)) < 0.2
    prompts = [row[:12] for row in cyclic(8, 5)]
    for row in generate(model, prompts, [[0]] * 8, GREEDY, config.framing(CYCLE)):
        last = prompts[row.prompt_index][-1]
        assert row.completion_ids.tolist() == ((last + np.arange(1, 5)) % CYCLE).tolist()


@pytest.mark.parametrize("kind", [DiffusionConfig, DiTConfig])
def test_masked_diffusion_learns_to_fill_in_and_to_go_on(kind: type[DiffusionConfig]) -> None:
    config = MaskedDiffusion()
    model, objective = learn(config, kind(**SHAPE, context=CONTEXT), CYCLE, cyclic, 400)
    assert isinstance(model, Denoiser)
    certain = np.log(CYCLE) / CONTEXT  # the start is free, once per row
    assert certain * 0.98 < held_out(model, objective, cyclic(512, 999)) < certain * 1.05
    rows = cyclic(8, 5)[:, 1:]
    gaps = rows.copy()
    gaps[:, 4:11] = CYCLE
    filled = infill(model, list(gaps), range(8), GREEDY, config.framing(CYCLE))
    assert np.array_equal(np.stack([ids for ids, _, _ in filled]), rows)
    for row in generate(model, list(rows[:, :8]), [[0]] * 8, GREEDY, config.framing(CYCLE)):
        assert row.completion_ids.tolist() == rows[row.prompt_index, 8:12].tolist()


# --- a Markov source, whose exact bound is known -------------------------------------------------

TRANSITIONS = np.array([
    [0.70, 0.10, 0.10, 0.10],
    [0.05, 0.05, 0.80, 0.10],
    [0.25, 0.25, 0.25, 0.25],
    [0.45, 0.05, 0.05, 0.45],
])  # fmt: skip


def stationary() -> NDArray[np.float64]:
    values, vectors = np.linalg.eig(TRANSITIONS.T)
    found = np.real(vectors[:, np.argmax(np.real(values))])
    distribution: NDArray[np.float64] = found / found.sum()
    return distribution


def markov(count: int, seed: int) -> NDArray[np.int64]:
    random = np.random.default_rng([seed, 1])
    limits, states = TRANSITIONS.cumsum(axis=1), np.empty((count, CONTEXT + 1), dtype=np.int64)
    states[:, 0] = random.choice(4, size=count, p=stationary())
    for t in range(1, CONTEXT + 1):
        states[:, t] = (random.random((count, 1)) > limits[states[:, t - 1]]).sum(axis=1)
    return np.minimum(states, 3)


def exact(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """p(token | what is visible) at each place (B, T, 4), by forward and backward messages."""
    B, T = tokens.shape
    seen = np.where(tokens[:, :, None] == 4, 1.0, np.eye(5)[tokens][:, :, :4])
    ahead, back = np.empty((B, T, 4)), np.ones((B, T, 4))
    ahead[:, 0] = stationary()
    for t in range(1, T):
        ahead[:, t] = (ahead[:, t - 1] * seen[:, t - 1]) @ TRANSITIONS
    for t in range(T - 2, -1, -1):
        back[:, t] = (back[:, t + 1] * seen[:, t + 1]) @ TRANSITIONS.T
    p = ahead * back
    result: NDArray[np.float64] = p / p.sum(axis=2, keepdims=True)
    return result


def test_the_bound_of_a_markov_source_is_approached_and_not_beaten() -> None:
    """Against what the true conditionals pay for the same hidden tokens: the error cancels."""
    config = MaskedDiffusion()
    shape = DiffusionConfig(**SHAPE, context=CONTEXT)
    model, objective = learn(config, shape, 4, markov, 800)
    ids = markov(3000, 10**6)
    batch = objective.batch(framed(ids, 10**6))
    truth = torch.from_numpy(np.log(exact(batch.inputs["tokens"].numpy())))
    least = float(objective.loss(lambda tokens, times: truth, batch) / batch.count)
    chain = -(stationary() * np.log(stationary())).sum()
    step = -(stationary()[:, None] * TRANSITIONS * np.log(TRANSITIONS)).sum()
    entropy = (chain + (CONTEXT - 1) * step) / CONTEXT
    assert least == pytest.approx(entropy, rel=0.02), "the bound is tight for the truth"
    assert 0.998 * least < held_out(model, objective, ids) < 1.02 * least
