"""Does an objective fit its model, make room for its markers, and survive JSON?"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop import targets
from isoflop.run import (
    AdamW,
    Autoregressive,
    MaskedDiffusion,
    Run,
    SpanDenoising,
    override,
)
from models import ZOO, DiffusionConfig, GPT2Config, T5Config

SHAPE: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "context": 32}
PAIRS = [
    (GPT2Config(**SHAPE), Autoregressive()),
    (DiffusionConfig(**SHAPE), MaskedDiffusion()),
    (T5Config(**SHAPE), SpanDenoising(rate=0.3)),
    (T5Config(**SHAPE), SpanDenoising(mixture="ul2")),
]


def make(model: Any, objective: targets.Objective) -> Run:
    return Run(
        model=model, objective=objective, optimizer=AdamW(lr=0.01), batch_tokens=64, tokens=640
    )


def test_text_has_one_token_at_a_position() -> None:
    with pytest.raises(ValueError, match=r"model\.codebooks is 3; it must be 1"):
        make(T5Config(**SHAPE, codebooks=3), SpanDenoising())


@pytest.mark.parametrize(("model", "objective"), PAIRS)
def test_a_run_survives_json_with_its_objective(model: Any, objective: targets.Objective) -> None:
    for run in (make(model, objective), make(model, objective).resolve(vocab=50, fingerprint="x")):
        again = Run.from_json(json.loads(json.dumps(run.as_json())), ZOO)
        assert again == run
    assert run.as_json()["objective"]["kind"] == objective.name
    assert again.identity == run.identity


@pytest.mark.parametrize(("model", "objective"), PAIRS)
def test_resolving_makes_room_for_the_markers(model: Any, objective: targets.Objective) -> None:
    run = make(model, objective).resolve(vocab=50, fingerprint="x")
    assert run.model.vocab == 50 + objective.markers
    assert run.model.text_vocab == 50
    assert run.resolve(vocab=50, fingerprint="x") == run
    with pytest.raises(ValueError, match=r"model.vocab is 9, but the tokenizer"):
        make(replace(model, vocab=9), objective).resolve(vocab=50, fingerprint="x")


def test_what_a_field_is_worth_decides_the_identity_and_its_default_does_not() -> None:
    model = T5Config(**SHAPE)
    changes = [{}, {"rate": 0.3}, {"length": 5.0}, {"sentinels": 50}, {"mixture": "ul2"}]
    runs = [make(model, SpanDenoising(**change)) for change in changes]  # type: ignore[arg-type]
    assert len({run.resolve(vocab=50, fingerprint="x").identity for run in runs}) == len(changes)
    assert make(*PAIRS[0]).as_json()["objective"] == {"kind": "autoregressive"}


def test_a_model_of_another_family_is_refused_at_once() -> None:
    for model, _ in PAIRS:
        for _, objective in PAIRS:
            if model.family != objective.family:
                with pytest.raises(ValueError, match=f"{objective.name}.*{model.name}.*learn"):
                    make(model, objective)


def test_every_architecture_has_an_objective() -> None:
    known = {objective.family for objective in targets.OBJECTIVES.values()}
    assert {kind.family for kind in ZOO.values()} == known
    for model, objective in PAIRS:
        assert targets.suiting(model) is type(objective)


def test_overrides_choose_an_objective_and_its_fields() -> None:
    run = make(*PAIRS[2])
    assert override(run, "objective", "span_denoising").objective == SpanDenoising()
    assert override(run, "objective.rate", "0.5").objective == SpanDenoising(rate=0.5)
    assert override(run, "objective.mixture", "ul2").objective == SpanDenoising(
        rate=0.3, mixture="ul2"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate": 0.0}, "objective.rate is 0.0"),
        ({"rate": 1.0}, "objective.rate is 1.0"),
        ({"length": 0.5}, "objective.length is 0.5"),
        ({"mixture": "all"}, "objective.mixture is 'all'"),
        ({"sentinels": 1}, "objective.sentinels is 1"),
    ],
)
def test_impossible_values_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SpanDenoising(**change)


def test_too_few_sentinels_or_tokens_are_refused_before_training() -> None:
    few = make(T5Config(**SHAPE), SpanDenoising(rate=0.5, length=1.0, sentinels=16))
    with pytest.raises(ValueError, match=r"sentinels is 16; it must be above the 16 spans"):
        few.resolve(vocab=50, fingerprint="x")
    with pytest.raises(ValueError, match="context is 1"):
        SpanDenoising().lengths(1)


@given(tokens=st.integers(2, 400), rate=st.floats(0.01, 0.99), length=st.floats(1, 80))
def test_a_cut_leaves_something_and_takes_something(
    tokens: int, rate: float, length: float
) -> None:
    noise, spans = targets.Corruption(mode="X", length=length, rate=rate).cuts(tokens)
    assert 1 <= spans <= noise < tokens
    assert spans <= tokens - noise


def test_t5s_own_lengths() -> None:
    """512 tokens read of 568 of text at 15 % and spans of 3, and 114 written (Raffel et al. 2020,
    released code). The ends are counted among both there; here only what is written has one.
    """
    source, target = SpanDenoising().lengths(568)
    assert (source + 1, target) == (512, 114)
