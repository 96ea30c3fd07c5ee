"""Is a loss in chunks the loss, and do regularisers add what their papers say?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from isoflop.data.rows import sample
from isoflop.objectives import Batch, loss
from isoflop.objectives.autoregressive import NextToken
from isoflop.objectives.regularise import contrast, losses, stretches
from isoflop.targets import Autoregressive, Regularisers
from models import GPT2Config, LlamaConfig, T5Config
from models.interface import Head, Model

VOCAB, SHAPE = 97, {"width": 16, "depth": 1, "heads": 2, "context": 12}


def built(kind: Any = GPT2Config) -> Model:
    torch.manual_seed(0)
    model: Model = kind(vocab=VOCAB, **SHAPE).build()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return model


def gradients(model: Model, total: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(model.parameters())))


@pytest.mark.parametrize("kind", [GPT2Config, LlamaConfig])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("native", [True, False])
def test_chunks_give_the_same_loss_and_gradients(
    kind: Any, weighted: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own kernel where there is one, and by ours for torch 2.11 and other heads."""
    model, batch = built(kind), NextToken().batch(sample(5, 12, VOCAB))
    if weighted:
        batch = replace(batch, weights=torch.rand(5, 12))
    whole = NextToken(VOCAB).loss(model, batch)
    expected = gradients(model, whole)
    largest: list[int] = []
    inner = loss.nats

    def watched(logits: Tensor, *rest: Any) -> Tensor:
        largest.append(logits.numel())
        return inner(logits, *rest)

    monkeypatch.setattr(loss, "LARGEST", 7 * VOCAB)
    monkeypatch.setattr(loss, "nats", watched)
    if not native:
        monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    parts = NextToken(VOCAB).loss(model, batch)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model, parts), expected, rtol=1e-4, atol=1e-4)
    assert all(size <= 7 * VOCAB for size in largest)
    assert bool(largest) or native


def test_a_head_that_is_more_than_a_product_says_so() -> None:
    assert built().matrix() is not None
    assert T5Config(vocab=9, **SHAPE, codebooks=2).build().matrix() is None


def forward(states: Tensor, matrix: Tensor) -> Any:
    """A model whose states are given."""

    class Fixed(torch.nn.Module):
        def head(self, hidden: Tensor) -> Tensor:
            return hidden @ matrix.T

        def forward(self, tokens: Tensor, score: Any = None) -> Tensor:
            head = Head(self, None)  # type: ignore[arg-type]
            found: Tensor = self.head(states) if score is None else score(states, head)
            return found

    return Fixed()


@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_and_z_loss_are_those_of_their_formulas(weighted: bool) -> None:
    torch.manual_seed(1)
    states, matrix = torch.randn(3, 5, 8), torch.randn(11, 8)
    targets = torch.randint(11, (3, 5))
    weights = torch.rand(3, 5) if weighted else None
    batch = Batch(inputs={"tokens": targets}, targets=targets, weights=weights)
    terms = Regularisers(smoothing=0.1, z_loss=0.01)
    pure, added = losses(terms, NextToken(11), forward(states, matrix), batch)
    assert added is not None
    each = torch.ones(15) if weights is None else weights.flatten()
    logits = (states @ matrix.T).flatten(0, 1)

    def entropy(smoothing: float) -> Tensor:
        values = torch.nn.functional.cross_entropy(
            logits, targets.flatten(), reduction="none", label_smoothing=smoothing
        )
        return (values * each).sum()

    torch.testing.assert_close(pure, entropy(0.0))
    z = 0.01 * (logits.logsumexp(1).square() * each).sum()
    torch.testing.assert_close(pure + added, entropy(0.1) + z)


def test_contrast_by_hand() -> None:
    """Two rows of two stretches: each one's positive is the other of its row."""
    pooled = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [-0.6, 0.8]]])
    flat, nats = pooled.flatten(0, 1), 0.0
    for i in range(4):
        scores = [math.exp(float(flat[i] @ flat[j]) / 0.5) for j in range(4)]
        nats -= math.log(scores[i ^ 1] / (sum(scores) - scores[i]))
    assert float(contrast(pooled, 0.5)) == pytest.approx(nats / 4, rel=1e-5)
    same = torch.ones(6, 3, 4)
    assert float(contrast(same, 0.1)) == pytest.approx(math.log(17), rel=1e-5)


def test_stretches_are_means_over_what_counts() -> None:
    states = torch.arange(12.0).reshape(1, 6, 2)
    counts = torch.tensor([[1, 1, 0, 0, 0, 0]])
    assert stretches(states, torch.ones(1, 6), 2).tolist() == [[[2, 3], [8, 9]]]
    assert stretches(states, counts, 2).tolist() == [[[1, 2], [0, 0]]]


def test_contrast_draws_the_stretches_of_a_row_together() -> None:
    model, batch = built(), NextToken().batch(sample(8, 12, VOCAB))
    terms = Regularisers(contrast=1.0, stretches=3, temperature=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = []
    for _ in range(15):
        pure, added = losses(terms, NextToken(VOCAB), model, batch)
        assert added is not None
        seen.append(float(added.detach()) / 96)
        optimizer.zero_grad()
        (added / 96).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert seen[-1] < seen[0] - 0.3
    torch.testing.assert_close(pure, NextToken(VOCAB).loss(model, batch), rtol=0.2, atol=0.0)


def test_without_terms_the_loss_is_the_objectives_own() -> None:
    model, batch = built(), NextToken().batch(sample(2, 12, VOCAB))
    pure, added = losses(Autoregressive(), NextToken(VOCAB), model, batch)
    assert added is None
    assert torch.equal(pure, NextToken(VOCAB).loss(model, batch))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"smoothing": 1.0}, r"objective.smoothing is 1\.0"),
        ({"z_loss": -1.0}, r"objective.z_loss is -1\.0"),
        ({"contrast": -1.0}, r"objective.contrast is -1\.0"),
        ({"temperature": 0.0}, r"objective.temperature is 0\.0"),
        ({"stretches": 1}, r"objective.stretches is 1"),
    ],
)
def test_impossible_values_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Autoregressive(**change)


def test_a_model_computes_its_loss_itself_so_that_both_compile_as_one() -> None:
    model, batch = built(), NextToken().batch(sample(5, 12, VOCAB))
    asked: list[bool] = []

    def watched(*_: Any, **inputs: Any) -> None:
        asked.append("score" in inputs)

    model.register_forward_pre_hook(
        lambda module, args, kwargs: watched(*args, **kwargs), with_kwargs=True
    )
    found = NextToken(VOCAB).loss(model, batch)
    assert asked == [True]
    torch.testing.assert_close(
        found, NextToken(VOCAB).loss(lambda **inputs: model(**inputs), batch)
    )
