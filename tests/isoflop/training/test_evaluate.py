"""Is the held-out loss what it says: nats per token, and bits per byte of the same text?"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isoflop.data.loader import windows
from isoflop.data.prepare import Prepared
from isoflop.data.rows import Rows, row_seeds
from isoflop.objectives.autoregressive import NextToken
from isoflop.run import Run
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import HeldOut, evaluate, points
from models.interface import Model

MakeRun = Callable[..., Run]


class Fixed:
    """Stands for a model that gives every token the same distribution: p(0), p(1), p(2)."""

    training = False

    def __call__(self, tokens: Tensor) -> Tensor:
        return torch.tensor([0.5, 0.25, 0.25]).log().expand(*tokens.shape, 3)

    def eval(self) -> None: ...
    def train(self, mode: bool) -> None: ...


def test_nats_and_bits_by_hand() -> None:
    """Targets 0 1 2 0: 1 + 2 + 2 + 1 bits over 4 tokens; their texts have 3, 1, 2 bytes."""
    ids = np.array([[0, 0, 1], [0, 2, 0]])
    text = HeldOut(Rows(ids=ids, seeds=row_seeds(0, 0, 0, 2)), torch.tensor([3, 1, 2]))
    score = evaluate(Fixed(), text, NextToken(), Ranks(), rows=1)  # type: ignore[arg-type]
    assert score.loss == pytest.approx(6 / 4 * math.log(2))
    assert score.bits_per_byte == pytest.approx(6 / 9)


def test_a_mixture_by_hand() -> None:
    """Zeros cost 1 bit and have 3 bytes, ones cost 2 and have 1: a token of the mixture is a zero
    in three of four cases, whatever the windows of each source count.
    """
    sources = {
        "zeros": Rows(ids=np.zeros((1, 5), dtype=np.int64), seeds=row_seeds(0, 0, 0, 1)),
        "ones": Rows(ids=np.ones((3, 5), dtype=np.int64), seeds=row_seeds(0, 0, 0, 3)),
    }
    text = HeldOut.of(sources, torch.tensor([3, 1, 2]), {"zeros": 0.75, "ones": 0.25})
    for rows in (1, 2, 3):
        score = evaluate(Fixed(), text, NextToken(), Ranks(), rows)  # type: ignore[arg-type]
        assert score.loss == pytest.approx(1.25 * math.log(2))
        assert score.bits_per_byte == pytest.approx(1.25 / 2.5)
        assert score.parts["zeros"].loss == pytest.approx(math.log(2))
        assert score.parts["ones"].bits_per_byte == pytest.approx(2)


def test_a_single_source_is_no_mixture() -> None:
    rows = Rows(ids=np.zeros((1, 5), dtype=np.int64), seeds=row_seeds(0, 0, 0, 1))
    assert not HeldOut.of({"": rows}, torch.ones(3), {"": 1.0}).sources


def test_a_text_of_no_bytes_has_a_score() -> None:
    rows = Rows(ids=np.zeros((1, 5), dtype=np.int64), seeds=row_seeds(0, 0, 0, 1))
    text = HeldOut(rows, torch.tensor([0, 1, 1]))
    score = evaluate(Fixed(), text, NextToken(), Ranks(), rows=1)  # type: ignore[arg-type]
    assert math.isfinite(score.bits_per_byte)


@pytest.fixture
def text(bpe_text: Prepared) -> HeldOut:
    """11 windows: no whole number of batches of 2, 3 or 4."""
    rows = windows(bpe_text.validation(), 32, 11)
    assert len(rows) == 11
    return HeldOut(rows, torch.from_numpy(bpe_text.tokenizer().token_bytes()))


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, unresolved: MakeRun, bpe_text: Prepared) -> Model:
    run = unresolved(request.param).resolve(vocab=bpe_text.vocab, fingerprint="x")
    torch.manual_seed(0)
    built = run.model.build()
    with torch.no_grad():
        for weight in built.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)  # so that tokens differ in probability
    return built


def size(text: HeldOut) -> float:
    return NextToken().batch(text.rows).measure(text.token_bytes)


@torch.no_grad()
def test_equals_a_sum_over_single_tokens(model: Model, text: HeldOut) -> None:
    nats = 0.0
    for row in text.rows.ids:
        ids, targets = torch.from_numpy(row[:-1]), row[1:].tolist()
        probabilities = model(ids[None]).double().softmax(-1)[0]
        nats -= sum(math.log(p[t]) for p, t in zip(probabilities.tolist(), targets, strict=True))
    score = evaluate(model, text, NextToken(), Ranks(), rows=4)
    assert score.loss == pytest.approx(nats / (11 * 32), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / size(text), rel=1e-6)


def test_the_number_of_rows_at_a_time_does_not_matter(model: Model, text: HeldOut) -> None:
    """In particular, a last batch that is not full counts by its tokens."""
    scores = [evaluate(model, text, NextToken(), Ranks(), rows=rows) for rows in (1, 2, 4, 11, 99)]
    for score in scores:
        assert score.loss == pytest.approx(scores[0].loss, rel=1e-6)
        assert score.bits_per_byte == pytest.approx(scores[0].bits_per_byte, rel=1e-6)


def test_bytes_are_those_of_the_text(bpe_text: Prepared, text: HeldOut) -> None:
    """Tokens of a vocabulary of words stand for as many bytes as their text has."""
    tokenizer = bpe_text.tokenizer()
    targets = text.rows.ids[:, 1:].tolist()
    inside = [[i for i in row if i != tokenizer.end_of_text] for row in targets]
    lengths = [len(tokenizer.decode(row).encode()) for row in inside]
    end = int(tokenizer.token_bytes()[tokenizer.end_of_text])
    ends = sum(row.count(tokenizer.end_of_text) for row in targets)
    assert size(text) == sum(lengths) + ends * end
    assert size(text) > 1.3 * 11 * 32


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_gets_no_gradients(
    training: bool, model: Model, text: HeldOut
) -> None:
    model.train(training)
    evaluate(model, text, NextToken(), Ranks(), rows=4)
    assert model.training == training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("steps", "times", "expected"), [
    (1000, 1, (1000,)),
    (1000, 4, (125, 250, 500, 1000)),
    (20, 3, (5, 10, 20)),
    (3, 9, (1, 2, 3)),
    (1, 5, (1,)),
])  # fmt: skip
def test_points(steps: int, times: int, expected: tuple[int, ...]) -> None:
    assert points(steps, times) == expected


@given(steps=st.integers(1, 10**7), times=st.integers(1, 3000))
def test_points_are_sorted_unique_and_end_at_the_end(steps: int, times: int) -> None:
    found = points(steps, times)
    assert list(found) == sorted(set(found))
    assert found[-1] == steps and found[0] >= 1
    assert len(found) <= times
