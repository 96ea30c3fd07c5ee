"""Does every model of the zoo read as models/interface.py promises?

All families go through all of it. What one of them states not to have (a denoiser's cache and its
causality, an encoder-decoder's documents) is tested to be absent. Counts, weights and training are
in test_contract_training.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import ZOO, CharRNNConfig, Config
from models.cache import Cache, CacheKind, GrowingCache, StateCache
from models.char_rnn import CharRNN
from models.decoder import Decoder
from models.interface import Denoiser, EncoderDecoder, Model

EXACT: tuple[CacheKind, ...] = ("static", "growing", "sliding", "fixed")


def test_every_architecture_is_in_the_suite(zoo: Any) -> None:
    assert set(zoo.names) == set(ZOO)
    assert all(ZOO[name].name == name for name in ZOO)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_have_one_row_per_token_in_the_models_dtype(
    zoo: Any, model: Model, dtype: torch.dtype
) -> None:
    tokens = zoo.tokens(model.config, 3, 7)
    logits = zoo.read(model.to(dtype), tokens)
    assert logits.shape == (*tokens.shape, zoo.vocab)
    assert logits.dtype == dtype
    assert logits.isfinite().all()


def test_in_bfloat16_positions_stay_apart(zoo: Any, model: Model) -> None:
    """The table of rotations is no weight: no cast makes it coarser, there and back."""
    tables = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, tables[name]), name


def test_under_autocast_it_says_nearly_the_same(zoo: Any, config: Config) -> None:
    """In bfloat16, with float32 weights: within 5 % of the logits' spread, and no warning (warnings
    are errors here): torch warns where it must leave its fused kernels."""
    if isinstance(config, CharRNNConfig):
        pytest.skip("oneDNN has no recurrent layers in bfloat16 on every CPU")
    model, tokens = zoo.build(config).eval(), zoo.tokens(config, 2, zoo.context)
    with torch.no_grad():
        exact = zoo.read(model, tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = zoo.read(model, tokens)
    assert (near.float() - exact).std() < 0.05 * exact.std()


def test_forward_is_the_head_of_the_hidden_states(zoo: Any, model: Model, config: Config) -> None:
    tokens = zoo.tokens(config, 2, 5)
    hidden = model.hidden(tokens, **zoo.beside(model, 2))
    assert hidden.shape == (2, 5, config.width)  # type: ignore[attr-defined]
    assert torch.equal(model.head(hidden), zoo.read(model, tokens))
    assert model.config == config


@pytest.mark.parametrize("changed", [0, 3, 23])
def test_no_token_sees_a_later_one_but_a_denoisers_all(
    zoo: Any, model: Model, changed: int
) -> None:
    before = zoo.tokens(model.config, 2, zoo.context)
    after = before.clone()
    after[:, changed] = (after[:, changed] + 1) % zoo.vocab
    old, new = zoo.read(model, before), zoo.read(model, after)
    moved = (new - old).abs().flatten(2).amax(dim=-1)
    seen = 0 if isinstance(model, Denoiser) else changed
    torch.testing.assert_close(new[:, :seen], old[:, :seen], rtol=0, atol=1e-5)
    far = 1e-7 if isinstance(model, CharRNN) else 1e-5  # a state forgets
    assert (moved[:, seen:] > far).all(), "a token sees itself and all before it"


def test_rows_of_a_batch_are_independent(zoo: Any, model: Model) -> None:
    tokens = zoo.tokens(model.config, 4, 9)
    alone = torch.cat([zoo.read(model, row[None]) for row in tokens])
    torch.testing.assert_close(zoo.read(model, tokens), alone, rtol=1e-5, atol=1e-5)


# --- caches ---------------------------------------------------------------------------------------


def new_cache(model: Model, batch: int, length: int, kind: CacheKind) -> Cache:
    """Skips kinds that a model refuses, after it has seen it refuse them by name."""
    if isinstance(model, Denoiser):
        with pytest.raises(ValueError, match="knows no cache"):
            model.new_cache(batch, length, kind)
        pytest.skip("stated: it reads in both directions")
    if not isinstance(model, Decoder) and kind != "static":
        with pytest.raises(ValueError, match=f"kind is '{kind}'"):
            model.new_cache(batch, length, kind)
        pytest.skip("stated: a state, or what an encoder said, has one kind")
    return model.new_cache(batch, length, kind)


def read_through(zoo: Any, model: Model, tokens: Tensor, chunks: list[int], cache: Cache) -> Tensor:
    parts = [zoo.read(model, chunk, cache) for chunk in torch.split(tokens, chunks, dim=1)]
    assert cache.length == sum(chunks)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("chunks", [[10], [1] * 10, [6, 1, 1, 1, 1], [4, 6], [1, 5, 4]])
def test_reading_through_a_cache_gives_the_same_logits(
    zoo: Any, model: Model, chunks: list[int], kind: CacheKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrowingCache, "FIRST", 2)
    cache = new_cache(model, 3, zoo.context, kind)
    tokens = zoo.tokens(model.config, 3, sum(chunks))
    through = read_through(zoo, model, tokens, chunks, cache)
    torch.testing.assert_close(through, zoo.read(model, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunks", [[10], [6, 1, 3]])
def test_a_quantised_cache_is_near(zoo: Any, config: Config, chunks: list[int]) -> None:
    """Stated: within 3 % of the logits' own spread, for weights as they are drawn."""
    model = zoo.build(config).eval()
    cache = new_cache(model, 3, zoo.context, "quantised")
    tokens = zoo.tokens(config, 3, 10)
    with torch.no_grad():
        exact, near = zoo.read(model, tokens), read_through(zoo, model, tokens, chunks, cache)
    assert (near - exact).abs().max() < 0.03 * exact.std()


def test_a_cache_of_another_kind_is_refused(model: Model) -> None:
    said = "knows no cache" if isinstance(model, Denoiser) else "kind is 'paged'"
    with pytest.raises(ValueError, match=said):
        model.new_cache(1, 4, "paged")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", EXACT)
def test_one_prefill_serves_many_samples_and_finished_rows_are_dropped(
    zoo: Any, model: Model, kind: CacheKind
) -> None:
    cache = new_cache(model, 2, 11, kind)
    prompts = zoo.tokens(model.config, 2, 6)
    more = zoo.tokens(model.config, 6, 5, seed=2)
    expected = zoo.read(model, torch.cat((prompts.repeat_interleave(3, dim=0), more), dim=1))
    zoo.read(model, prompts, cache)
    cache = cache.expand(3)
    rows = torch.arange(6)
    for step in range(5):
        logits = zoo.read(model, more[rows, step : step + 1], cache)[:, 0]
        torch.testing.assert_close(logits, expected[rows, 6 + step], rtol=1e-4, atol=1e-5)
        if step in (1, 2):  # first a sample of the second prompt ends, then one of the first
            going = rows != (3 if step == 1 else 0)
            rows, cache = rows[going], cache.keep(going)
    assert rows.tolist() == [1, 2, 4, 5]


def test_a_cache_has_the_models_dtype(model: Model) -> None:
    cache = new_cache(model.double(), 2, 8, "static")
    parts = cache.state if isinstance(cache, StateCache) else (cache.keys, cache.values)  # type: ignore[attr-defined]
    assert all(part.dtype == torch.float64 for part in parts)
    assert (cache.batch, cache.capacity, cache.length) == (2, 8, 0)


def test_a_sequence_beyond_the_context_is_refused(zoo: Any, model: Model) -> None:
    """But by relative positions, which have no end."""
    long = zoo.tokens(model.config, 1, zoo.context + 1)
    if isinstance(model, EncoderDecoder):
        assert zoo.read(model, long).isfinite().all()
        return
    with pytest.raises(ValueError, match=f"{len(long[0])} tokens long.*context is {zoo.context}"):
        zoo.read(model, long)
    cache = new_cache(model, 1, zoo.context, "static")
    zoo.read(model, long[:, :-1], cache)
    with pytest.raises(ValueError, match=f"{zoo.context} of them cached"):
        zoo.read(model, long[:, -1:], cache)
    with pytest.raises(ValueError, match=f"length is {zoo.context + 1}"):
        model.new_cache(1, zoo.context + 1)


# --- documents and positions ----------------------------------------------------------------------


@pytest.fixture
def packing(model: Model) -> Model:
    """A model whose rows may hold several documents."""
    if isinstance(model, EncoderDecoder):
        tokens = torch.zeros(1, 4, dtype=torch.long)
        for name in ("documents", "positions"):
            with pytest.raises(ValueError, match=f"{name} is 'given'"):
                model(tokens, source=tokens, **{name: tokens})
        pytest.skip("stated: a row is one document, and positions are relative")
    return model


def test_packed_documents_read_as_if_alone(zoo: Any, packing: Model) -> None:
    tokens = zoo.tokens(packing.config, 2, zoo.context)
    documents = zoo.documents(*zoo.lengths).expand(2, -1)
    together = zoo.read(packing, tokens, documents=documents)
    alone = [zoo.read(packing, part) for part in tokens.split(zoo.lengths, dim=1)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)


def test_documents_may_differ_between_rows_and_end_in_padding(zoo: Any, packing: Model) -> None:
    tokens = zoo.tokens(packing.config, 2, zoo.context)
    documents = torch.stack([zoo.documents(*zoo.lengths)[0], zoo.documents(20, 4)[0]])
    documents[1, 20:] = -1
    together = zoo.read(packing, tokens, documents=documents)
    assert together.isfinite().all()
    alone = [zoo.read(packing, part) for part in tokens[:1].split(zoo.lengths, dim=1)]
    torch.testing.assert_close(together[:1], torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)
    padded = zoo.read(packing, tokens[1:, :20])
    torch.testing.assert_close(together[1:, :20], padded, rtol=1e-4, atol=1e-5)


def test_one_document_is_plain_text(zoo: Any, packing: Model) -> None:
    tokens = zoo.tokens(packing.config, 2, zoo.context)
    ones = torch.zeros_like(tokens, dtype=torch.int32)
    plain = zoo.read(packing, tokens)
    torch.testing.assert_close(
        zoo.read(packing, tokens, documents=ones), plain, rtol=1e-5, atol=1e-5
    )


def test_gradients_do_not_cross_documents(zoo: Any, packing: Model) -> None:
    tokens = zoo.tokens(packing.config, 1, zoo.context)
    seen: list[Tensor] = []
    embedding = next(m for m in packing.modules() if isinstance(m, nn.Embedding))
    handle = embedding.register_forward_hook(lambda m, i, out: seen.append(out) or out)  # type: ignore[func-returns-value]
    documents = zoo.documents(*zoo.lengths)
    with torch.enable_grad():
        states = packing.hidden(tokens, documents=documents, **zoo.beside(packing, 1))
        (gradient,) = torch.autograd.grad(states[:, 8].square().sum(dim=0)[0], seen[0])
    handle.remove()
    touched = gradient.abs().amax(dim=-1)[0] > 0
    last = 19 if isinstance(packing, Denoiser) else 9  # it reads its whole document
    assert touched[8:last].all() and not touched[:8].any() and not touched[last:].any()


def test_positions_left_out_count_from_zero(zoo: Any, packing: Model) -> None:
    tokens = zoo.tokens(packing.config, 2, 9)
    plain = zoo.read(packing, tokens)
    for positions in (torch.arange(9), torch.arange(9).expand(2, 9)):
        told = zoo.read(packing, tokens, positions=positions)
        torch.testing.assert_close(told, plain, rtol=1e-5, atol=1e-5)


def test_places_that_do_not_fit_are_refused(zoo: Any, packing: Model) -> None:
    tokens, documents = zoo.tokens(packing.config, 2, 4), torch.zeros(2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"shape of documents is \(2, 3\); it must be \(2, 4\)"):
        packing(tokens, documents=documents[:, :3])
    with pytest.raises(ValueError, match="shape of positions"):
        packing(tokens, positions=torch.arange(3))
    with pytest.raises(ValueError, match=f"positions is '0..{zoo.context}'"):
        packing(tokens, positions=torch.tensor([0, 1, 2, zoo.context]))
    cache = new_cache(packing, 2, 8, "static")
    with pytest.raises(ValueError, match="cache is 'given'; it must be left out"):
        packing(tokens, cache, documents=documents)
