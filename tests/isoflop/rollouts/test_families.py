"""Do models behind an encoder, and denoisers, keep the promises of a rollout?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.rollouts.generate import Rollout, Sampling, generate
from isoflop.rollouts.unmask import infill
from isoflop.targets import Framing, MaskedDiffusion, SpanDenoising
from models import Config, DiffusionConfig, DiTConfig, SerialT5Config, T5Config
from models.interface import Denoiser, Model

VOCAB = 50  # ids below this are text
SHAPE: dict[str, Any] = {"context": 40, "width": 16, "depth": 2, "heads": 2}
DENOISING, DIFFUSION = SpanDenoising(mixture="ul2", sentinels=30), MaskedDiffusion()
CONFIGS: list[tuple[Config, Framing]] = [
    (DENOISING.prepare(T5Config(**SHAPE), VOCAB), DENOISING.framing(VOCAB)),
    (DENOISING.prepare(SerialT5Config(**SHAPE), VOCAB), DENOISING.framing(VOCAB)),
    (DIFFUSION.prepare(DiffusionConfig(**SHAPE), VOCAB), DIFFUSION.framing(VOCAB)),
    (DIFFUSION.prepare(DiTConfig(**SHAPE), VOCAB), Framing(passes=5, order="random")),
]
T5S, DENOISERS = CONFIGS[:2], CONFIGS[2:]
RAGGED = [np.array(x) for x in ([5], [1, 2, 3], [9, 8, 7, 6, 5, 4], [*range(20)], [3, 2, 1])]
SEEDS = [[10, 11], [12, 13], [14, 15], [16, 17], [18, 19]]
FREE = Sampling(1.0, 12, ())


def name(pair: tuple[Config, Framing]) -> str:
    return pair[0].name


def build(config: Config, sharpness: float = 6.0) -> Model:
    """Random weights, enlarged so that the distributions are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(sharpness).add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.fixture(params=CONFIGS, ids=name)
def asked(request: pytest.FixtureRequest) -> tuple[Model, Framing]:
    return build(request.param[0]), request.param[1]


def written(rows: list[Rollout]) -> list[list[int]]:
    return [row.completion_ids.tolist() for row in rows]


def test_a_row_does_not_depend_on_its_batch_mates(asked: tuple[Model, Framing]) -> None:
    model, framing = asked
    together = generate(model, RAGGED, SEEDS, FREE, framing)
    alone = [
        generate(model, [prompt], [[seed]], FREE, framing)[0]
        for prompt, two in zip(RAGGED, SEEDS, strict=True)
        for seed in two
    ]
    narrow = generate(model, RAGGED, SEEDS, FREE, framing, batch=1)
    assert written(together) == written(alone) == written(narrow)
    assert [(row.prompt_index, row.sample) for row in together] == [
        (index, i) for index in range(5) for i in range(2)
    ]
    for row in together:
        np.testing.assert_array_equal(row.prompt_ids, RAGGED[row.prompt_index])
    assert len({tuple(row) for row in written(together)}) == 10, "and seeds differ"


def test_markers_are_never_written_and_a_stop_ends_the_row(asked: tuple[Model, Framing]) -> None:
    model, framing = asked
    seeds = [list(range(8))] * 5
    stops = tuple(range(0, VOCAB, 12))
    whole = generate(model, RAGGED, seeds, FREE, framing)
    cut = generate(model, RAGGED, seeds, Sampling(1.0, 12, stops), framing)
    ended = 0
    for long, short in zip(whole, cut, strict=True):
        ids = long.completion_ids.tolist()
        assert len(ids) == 12 and max(ids) < VOCAB
        hits = [place for place, token in enumerate(ids) if token in stops]
        assert short.completion_ids.tolist() == (ids[: hits[0] + 1] if hits else ids)
        assert short.stop == ("stop" if hits else "length")
        assert len(short.logprobs) == len(short.entropies) == len(short.completion_ids)
        ended += bool(hits)
    assert 8 < ended < 40, "the test needs both kinds"


def test_random_state_and_modes_are_untouched(asked: tuple[Model, Framing]) -> None:
    model, framing = asked
    torch.manual_seed(3)
    model.train()
    before = torch.get_rng_state()
    generate(model, RAGGED, SEEDS, FREE, framing)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part.training for part in model.modules())


def test_without_a_framing_something_is_written_too(asked: tuple[Model, Framing]) -> None:
    rows = generate(asked[0], RAGGED, SEEDS, FREE)
    assert all(len(row.completion_ids) == 12 for row in rows)


def test_ids_beyond_the_text_are_no_prompt(asked: tuple[Model, Framing]) -> None:
    with pytest.raises(ValueError, match=f"outside the vocabulary of {VOCAB}"):
        generate(asked[0], [np.array([VOCAB])], [[0]], FREE, asked[1])


# --- behind an encoder ---------------------------------------------------------------------------


def read(prompt: NDArray[np.int64]) -> Tensor:
    """[S] prompt <0>, as a sequential cut of UL2 leaves it."""
    framed = [VOCAB + 30 + 1, *prompt.tolist(), VOCAB]
    return torch.tensor([framed])


@pytest.mark.parametrize("pair", T5S, ids=name)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_and_their_values_are_those_of_a_full_pass(
    pair: tuple[Config, Framing], temperature: float
) -> None:
    model = build(pair[0])
    start = [model.config.vocab - 1, VOCAB]
    for row in generate(model, RAGGED, SEEDS, Sampling(temperature, 12, ()), pair[1]):
        ids = row.completion_ids.astype(np.int64)
        given = torch.tensor([[*start, *ids.tolist()]])
        with torch.no_grad():
            logits = model(given, source=read(RAGGED[row.prompt_index]))[0, 1:-1, :VOCAB]
        full = logits.log_softmax(-1).numpy()
        np.testing.assert_allclose(row.logprobs, full[np.arange(12), ids], atol=1e-4)
        np.testing.assert_allclose(row.entropies, -(np.exp(full) * full).sum(1), atol=1e-4)
        if temperature == 0:
            assert full.argmax(axis=1).tolist() == ids.tolist()


# --- denoisers -----------------------------------------------------------------------------------


def denoiser(index: int = 0) -> Denoiser:
    model = build(DENOISERS[index][0])
    assert isinstance(model, Denoiser)
    return model


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("passes", [1, 3, 100])
def test_known_tokens_stay_and_every_blank_is_filled(order: Any, passes: int) -> None:
    model, texts = denoiser(), [np.arange(14), np.arange(14)[::-1].copy(), np.arange(9)]
    for text in texts:
        text[3:8] = VOCAB
    found = infill(model, texts, [1, 2, 3], FREE, Framing(passes=passes, order=order))
    for text, (ids, logprobs, entropies) in zip(texts, found, strict=True):
        known = text != VOCAB
        np.testing.assert_array_equal(ids[known], text[known])
        assert (ids < VOCAB).all()
        assert (logprobs[~known] < 0).all() and (entropies[~known] > 0).all()
        assert not logprobs[known].any() and not entropies[known].any()


def test_the_model_sees_as_many_passes_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, left = denoiser(), []
    inner = model.hidden

    def counted(tokens: Tensor, **given: Any) -> Tensor:
        left.append((tokens == VOCAB).sum(dim=1).tolist())
        return inner(tokens, **given)

    monkeypatch.setattr(model, "hidden", counted)
    generate(model, RAGGED[:1], [[1, 2]], FREE, Framing(passes=5))
    assert left == [[12, 12], [9, 9], [7, 7], [4, 4], [2, 2]]
    left.clear()
    generate(model, RAGGED[:1], [[1]], FREE)
    assert left == [[count] for count in range(12, 0, -1)]


def test_the_surest_is_written_first() -> None:
    """Greedy with a pass per token, by hand."""
    model, text = denoiser(), np.array([4, VOCAB, VOCAB, 7, VOCAB, 9])
    (found, _, _) = infill(model, [text], [0], Sampling(0.0, 1, ()))[0]
    tokens = torch.from_numpy(text)[None]
    for _ in range(3):
        hidden = tokens[0] == VOCAB
        with torch.no_grad():
            p = model(tokens, times=hidden[None].float().mean(1))[0, :, :VOCAB].softmax(-1)
        place = int(torch.where(hidden, p.amax(-1), -1.0).argmax())
        tokens[0, place] = p[place].argmax()
    assert found.tolist() == tokens[0].tolist()


def test_random_order_draws_from_the_models_distribution() -> None:
    """One blank: the chi-squared of 4,000 draws from what the model says there."""
    model, text = denoiser(), np.array([4, VOCAB, 6])
    found = infill(model, [text] * 4000, range(4000), FREE, Framing(order="random"), batch=4000)
    with torch.no_grad():
        p = model(torch.from_numpy(text)[None])[0, 1, :VOCAB].softmax(-1).numpy()
    observed = np.bincount([ids[1] for ids, _, _ in found], minlength=VOCAB)
    common = p * 4000 > 5
    chi = ((observed - p * 4000) ** 2 / (p * 4000))[common].sum()
    assert chi < common.sum() + 4 * np.sqrt(2 * common.sum())


@pytest.mark.parametrize(
    ("texts", "seeds", "said"),
    [
        ([np.array([1])], [1, 2], "1 texts need as many seeds, not 2"),
        ([np.array([1]), np.zeros(41, dtype=int)], [1, 2], r"text 1 has shape \(41,\)"),
        ([np.array([VOCAB + 1])], [1], "text 0 holds ids outside"),
    ],
)
def test_errors_name_the_value(texts: Any, seeds: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        infill(denoiser(), texts, seeds, FREE)
