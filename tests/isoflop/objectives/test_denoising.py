"""Is what was cut out of a row, and what was left, the row again?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop import objectives
from isoflop.data.rows import Rows, row_seeds
from isoflop.objectives import Batch
from isoflop.objectives.denoising import Denoising
from isoflop.run import SpanDenoising
from models import T5Config

TEXT = 40  # ids below are text


def rows_of(length: int, count: int, documents: Any = None) -> Rows:
    ids = np.random.default_rng(0).integers(TEXT, size=(count, length + 1))
    return Rows(ids=ids, seeds=row_seeds(7, 0, 0, count), documents=documents)


def joined(batch: Batch, row: int, denoising: Denoising) -> list[int]:
    """The text of a row, put together again from what is read and what is written."""
    source = batch.inputs["source"][row].tolist()
    target = [i for i in batch.targets[row].tolist() if i != denoising.blank]
    spans: dict[int, list[int]] = {}
    for token in target:
        if token >= TEXT:
            spans[token] = []
            current = spans[token]
        else:
            current.append(token)
    text: list[int] = []
    for token in source:
        if token < TEXT:
            text.append(token)
        elif token in spans:
            text += spans.pop(token)
    assert list(spans.values()) == [[]], "the last sentinel ends the writing"
    return text


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(2, 90),
    rate=st.floats(0.02, 0.9),
    mean=st.floats(1, 12),
    mixture=st.sampled_from(["spans", "ul2"]),
)
def test_nothing_is_lost_and_nothing_is_said_twice(
    length: int, rate: float, mean: float, mixture: Any
) -> None:
    denoising = Denoising(SpanDenoising(rate=rate, length=mean, mixture=mixture), TEXT)
    rows = rows_of(length, 6)
    batch = denoising.batch(rows)
    for row in range(6):
        assert joined(batch, row, denoising) == rows.ids[row, 1:].tolist()
    read, written = denoising.config.lengths(length)
    assert batch.inputs["source"].shape == (6, read)
    assert batch.inputs["tokens"].shape == batch.targets.shape == (6, written)
    assert (batch.inputs["tokens"][:, 0] == denoising.blank).all()
    assert torch.equal(batch.inputs["tokens"][:, 1:], batch.targets[:, :-1])


def test_a_row_is_cut_by_its_own_seed() -> None:
    denoising, rows = Denoising(SpanDenoising(mixture="ul2"), TEXT), rows_of(60, 8)
    whole, part = denoising.batch(rows), denoising.batch(rows.part(slice(3, 5)))
    assert torch.equal(whole.inputs["source"][3:5], part.inputs["source"])
    assert torch.equal(whole.targets[3:5], part.targets)
    other = denoising.batch(Rows(ids=rows.ids, seeds=row_seeds(8, 0, 0, 8)))
    assert not torch.equal(whole.targets, other.targets)


def test_spans_have_the_stated_rate_and_mean_and_stand_anywhere() -> None:
    denoising = Denoising(SpanDenoising(rate=0.2, length=4.0), TEXT)
    batch = denoising.batch(rows_of(100, 2000))
    assert batch.weights is None
    text = (batch.targets < TEXT).sum(dim=1)
    assert (text == 20).all()
    sentinels = (batch.inputs["source"] >= TEXT).sum(dim=1)
    assert (sentinels == 5).all()
    places = (batch.inputs["source"][:, :80] >= TEXT).float().mean(dim=0)
    assert places[3:].min() > 0.02, "no place is spared"


def test_the_seven_kinds_are_equally_frequent_and_say_their_mode() -> None:
    config = SpanDenoising(mixture="ul2")
    denoising = Denoising(config, TEXT)
    batch = denoising.batch(rows_of(64, 7000))
    modes = (batch.inputs["source"][:, 0] - TEXT - config.sentinels).tolist()
    shares = np.bincount(modes, minlength=3) / 7000
    np.testing.assert_allclose(shares, [2 / 7, 1 / 7, 4 / 7], atol=0.02)
    sequential = batch.inputs["source"][np.array(modes) == 1]
    assert (sequential[:, 49] == TEXT).all(), "a prefix, and one sentinel behind it"
    assert (sequential[:, 50:] == denoising.blank).all()


def test_padding_is_neither_read_nor_written() -> None:
    documents = np.zeros((3, 31), dtype=np.int32)
    documents[0, 20:] = -1
    documents[1, 1:] = -1
    documents[2, :4] = -1  # a window that has just entered its document
    denoising, rows = Denoising(SpanDenoising(), TEXT), rows_of(30, 3, documents)
    batch = denoising.batch(rows)
    assert joined(batch, 0, denoising) == rows.ids[0, 1:20].tolist()
    assert joined(batch, 2, denoising) == rows.ids[2, 4:].tolist()
    assert batch.weights is not None
    assert batch.weights[1].sum() == 0
    assert batch.inputs["present"].any(dim=1).all()
    assert not batch.inputs["present"][0, -5:].any()


def test_nats_are_per_written_token_and_bits_per_byte_of_its_text() -> None:
    denoising = Denoising(SpanDenoising(rate=0.2, length=4.0), TEXT)
    batch = denoising.batch(rows_of(100, 3))

    def ignorant(source: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, denoising.vocab)

    loss = float(denoising.loss(ignorant, batch))
    assert loss == pytest.approx(3 * 26 * math.log(denoising.vocab), rel=1e-5)
    assert batch.count == 3 * 26, "20 tokens, 5 sentinels and the end"
    assert batch.measure(torch.full((TEXT,), 2)) == 3 * 20 * 2, "sentinels are no bytes"


def test_the_runs_configuration_names_it() -> None:
    model = SpanDenoising().prepare(T5Config(width=8, depth=1, heads=1), 50)
    assert isinstance(objectives.build(SpanDenoising(), model), Denoising)
