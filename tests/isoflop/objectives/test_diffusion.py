"""Is the loss a bound on the negative log likelihood, and the right one?"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from isoflop import objectives
from isoflop.data.rows import Rows, row_phases, row_seeds
from isoflop.objectives.diffusion import Unmasking
from isoflop.run import MaskedDiffusion
from models import DiffusionConfig

BLANK = 3  # of three ids of text
JOINT = np.random.default_rng(5).dirichlet(np.ones(27) * 0.4).reshape(3, 3, 3)
# What the bound is for a model that knows every conditional: all orders give the same sum.
ENTROPY = float(-(JOINT * np.log(JOINT)).sum())


def oracle(tokens: Tensor, times: Tensor) -> Tensor:
    """The exact conditionals of a hidden token given the visible ones, as logits (B, 3, 4)."""
    logits = torch.zeros(*tokens.shape, 4)
    for b, row in enumerate(tokens.tolist()):
        known = JOINT[tuple(slice(None) if i == BLANK else slice(i, i + 1) for i in row)]
        for t in range(3):
            p = known.sum(axis=tuple({0, 1, 2} - {t}))
            if len(p) == 3:
                logits[b, t, :3] = torch.from_numpy(np.log(p / p.sum()))
    return logits


def rows_of(ids: np.ndarray, step: int = 0) -> Rows:
    count = len(ids)
    first = np.zeros((count, 1), dtype=np.int64)  # never predicted
    phases = row_phases(0, step, 0, count, count)
    seeds = row_seeds(0, step, 0, count)
    return Rows(ids=np.concatenate((first, ids), axis=1), seeds=seeds, phases=phases)


def test_for_a_model_that_knows_the_truth_the_bound_is_the_entropy() -> None:
    """Every text as often as it occurs: then the bound is tight, whatever is hidden."""
    objective = Unmasking(3, BLANK)
    texts = np.array(list(itertools.product(range(3), repeat=3)))
    bound = 0.0
    draws = 300
    for text, p in zip(texts, JOINT.flatten(), strict=True):
        batch = objective.batch(rows_of(np.repeat(text[None], draws, axis=0), int(text.sum())))
        bound += p * float(objective.loss(oracle, batch)) / draws
    assert bound == pytest.approx(ENTROPY, rel=0.02)


def test_an_ignorant_model_pays_the_logarithm_of_the_vocabulary_without_the_blank() -> None:
    objective = Unmasking(1000, 1000)
    rows = rows_of(np.random.default_rng(0).integers(1000, size=(64, 50)))
    batch = objective.batch(rows)
    loss = objective.loss(lambda tokens, times: torch.zeros(64, 50, 1001), batch)
    assert float(loss / batch.count) == pytest.approx(math.log(1000), rel=1e-5)
    assert batch.count == 64 * 50, "the bound is on all tokens, not on the hidden ones"
    assert batch.measure(torch.full((1000,), 2)) == 64 * 50 * 2


def test_the_numbers_of_hidden_tokens_cover_all_evenly() -> None:
    rows = rows_of(np.zeros((64, 16), dtype=np.int64))
    batch = Unmasking(3, BLANK).batch(rows)
    hidden = (batch.inputs["tokens"] == BLANK).sum(dim=1)
    assert np.bincount(hidden, minlength=17)[1:].tolist() == [4] * 16
    torch.testing.assert_close(batch.inputs["times"], hidden / 16)
    assert batch.weights is not None
    assert torch.equal(batch.weights > 0, batch.inputs["tokens"] == BLANK)
    torch.testing.assert_close(batch.weights.sum(dim=1), torch.full((64,), 16.0))


def test_every_place_is_hidden_equally_often() -> None:
    batch = Unmasking(3, BLANK).batch(rows_of(np.zeros((8000, 10), dtype=np.int64)))
    shares = (batch.inputs["tokens"] == BLANK).float().mean(dim=0)
    np.testing.assert_allclose(shares, 0.55, atol=0.03)


def test_a_row_depends_on_its_own_seed_and_phase_only() -> None:
    rows = rows_of(np.random.default_rng(0).integers(3, size=(16, 20)))
    whole, part = (Unmasking(3, BLANK).batch(r) for r in (rows, rows.part(slice(5, 9))))
    assert torch.equal(whole.inputs["tokens"][5:9], part.inputs["tokens"])
    alone = Rows(ids=rows.ids, seeds=rows.seeds)  # nobody spread the phases
    again, part = (Unmasking(3, BLANK).batch(r) for r in (alone, alone.part(slice(5, 9))))
    assert torch.equal(again.inputs["tokens"][5:9], part.inputs["tokens"])


def test_padding_is_never_hidden_and_never_counts() -> None:
    rows = rows_of(np.ones((8, 10), dtype=np.int64))
    documents = np.zeros((8, 11), dtype=np.int32)
    documents[:, 6:] = -1
    documents[7] = -1
    batch = Unmasking(3, BLANK).batch(Rows(ids=rows.ids, seeds=rows.seeds, documents=documents))
    assert not (batch.inputs["tokens"][:, 5:] == BLANK).any()
    assert not (batch.inputs["tokens"][7] == BLANK).any()
    assert batch.count == 7 * 5
    assert batch.inputs["documents"].tolist() == documents[:, 1:].tolist()
    assert batch.weights is not None
    torch.testing.assert_close(batch.weights.sum(dim=1), torch.tensor([5.0] * 7 + [0.0]))


def test_the_runs_configuration_names_it() -> None:
    model = MaskedDiffusion().prepare(DiffusionConfig(width=8, depth=1, heads=1), 50)
    found = objectives.build(MaskedDiffusion(), model)
    assert isinstance(found, Unmasking)
    assert (found.vocab, found.blank) == (50, 50)
