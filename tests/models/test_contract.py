"""Does every model of the zoo keep the promises of models/interface.py?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import ZOO, CharRNNConfig, Config
from models.cache import Cache, CacheKind, GrowingCache, StateCache
from models.char_rnn import CharRNN
from models.decoder import Decoder
from models.interface import Model
from models.modern import Modern
from models.moe import Routing

VOCAB, CONTEXT = 61, 24

# One small shape per architecture; a new line in ZOO needs one here, or this suite fails.
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"width": 32, "depth": 3, "heads": 4},
    "llama": {"width": 32, "depth": 3, "heads": 4, "kv_heads": 2},
    "lformer": {"width": 32, "depth": 3, "heads": 4},
    "modern": {"width": 32, "depth": 3, "heads": 4, "window": 6, "global_every": 2},
    "moe": {"width": 32, "depth": 2, "heads": 4, "routing": Routing(experts=4)},
    "char_rnn": {"width": 32, "depth": 2},
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"kind": name, **shape} for name, shape in SMALL.items()},
    "llama-tied": {"kind": "llama", **SMALL["llama"], "tied": True},
    "llama-plain": {"kind": "llama", **SMALL["llama"], "kv_heads": None, "ffn": 40},
    "modern-gated": {"kind": "modern", **SMALL["modern"], "gated": True, "tied": True, "cap": 0.0},
    "moe-switch": {"kind": "moe", **SMALL["moe"], "routing": Routing(experts=3, top=1, every=1)},
    "gru": {"kind": "char_rnn", **SMALL["char_rnn"], "cell": "gru"},
}
COMPILED = ("gpt2", "llama", "lformer", "modern")  # without a graph break


EXACT: tuple[CacheKind, ...] = ("static", "growing", "sliding")


def small(variant: str, **changes: Any) -> Config:
    """A configuration that builds in milliseconds."""
    shape = {"vocab": VOCAB, "context": CONTEXT, **VARIANTS[variant], **changes}
    return ZOO[shape.pop("kind")](**shape)


def build(config: Config, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return config.build()


def tokens_of(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=VARIANTS)
def config(request: pytest.FixtureRequest) -> Config:
    return small(request.param)


@pytest.fixture
def model(config: Config) -> Iterator[Model]:
    """As a generator uses it, with `excited` weights."""
    with torch.no_grad():
        yield excited(build(config)).eval()


def excited(model: Model) -> Model:
    """Matrices of a decoder ten times their initial size, and noise on everything: attention then
    prefers some tokens over others, and nothing is zero that training would move.
    """
    gain = 1 if isinstance(model, CharRNN) else 10
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(gain if weight.ndim > 1 else 1).add_(torch.randn_like(weight) * 0.1)
    return model


def test_every_architecture_has_a_small_configuration() -> None:
    assert set(SMALL) == {name for name in ZOO if ZOO[name].family == "decoder"}
    assert all(ZOO[name].name == name for name in ZOO)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_have_one_row_per_token_in_the_models_dtype(
    model: Model, dtype: torch.dtype
) -> None:
    logits = model.to(dtype)(tokens_of(3, 7))
    assert logits.shape == (3, 7, VOCAB)
    assert logits.dtype == dtype
    assert logits.isfinite().all()


def test_forward_is_the_head_of_the_hidden_states(model: Model, config: Config) -> None:
    tokens = tokens_of(2, 5)
    hidden = model.hidden(tokens)
    assert hidden.shape == (2, 5, config.width)  # type: ignore[attr-defined]
    assert torch.equal(model.head(hidden), model(tokens))
    assert model.config == config


@pytest.mark.parametrize("changed", [0, 3, CONTEXT - 1])
def test_no_token_sees_a_later_one(model: Model, changed: int) -> None:
    before = tokens_of(2, CONTEXT)
    after = before.clone()
    after[:, changed] = (after[:, changed] + 1) % VOCAB
    old, new = model(before), model(after)
    torch.testing.assert_close(new[:, :changed], old[:, :changed], rtol=0, atol=1e-6)
    difference = (new - old)[:, changed:].abs().amax(dim=-1)
    far = 1e-7 if isinstance(model, CharRNN) else 1e-4  # a state forgets
    assert (difference > far).all(), "a token sees itself and all before it"


def test_rows_of_a_batch_are_independent(model: Model) -> None:
    tokens = tokens_of(4, 9)
    alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), alone, rtol=1e-5, atol=1e-5)


def new_cache(model: Model, batch: int, length: int, kind: CacheKind) -> Cache:
    if isinstance(model, CharRNN) and kind != "static":
        pytest.skip("a state has one kind")
    return model.new_cache(batch, length, kind)


def read_through(model: Model, tokens: Tensor, chunks: list[int], cache: Cache) -> Tensor:
    parts = [model(chunk, cache) for chunk in torch.split(tokens, chunks, dim=1)]
    assert cache.length == sum(chunks)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("chunks", [[10], [1] * 10, [6, 1, 1, 1, 1], [4, 6], [1, 5, 4]])
def test_reading_through_a_cache_gives_the_same_logits(
    model: Model, chunks: list[int], kind: CacheKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrowingCache, "FIRST", 2)
    tokens, cache = tokens_of(3, sum(chunks)), new_cache(model, 3, CONTEXT, kind)
    torch.testing.assert_close(
        read_through(model, tokens, chunks, cache), model(tokens), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("chunks", [[10], [6, 1, 3]])
def test_a_quantised_cache_is_near(config: Config, chunks: list[int]) -> None:
    """Stated: within 3 % of the logits' own spread, for weights as they are drawn."""
    model = build(config).eval()
    tokens, cache = tokens_of(3, 10), new_cache(model, 3, CONTEXT, "quantised")
    with torch.no_grad():
        exact, near = model(tokens), read_through(model, tokens, chunks, cache)
    assert (near - exact).abs().max() < 0.03 * exact.std()


def test_a_cache_of_another_kind_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="kind is 'paged'"):
        model.new_cache(1, 4, "paged")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", EXACT)
def test_one_prefill_serves_many_samples_and_finished_rows_are_dropped(
    model: Model, kind: CacheKind
) -> None:
    prompts, more = tokens_of(2, 6), tokens_of(6, 5, seed=2)
    whole = torch.cat((prompts.repeat_interleave(3, dim=0), more), dim=1)
    expected = model(whole)
    cache = new_cache(model, 2, 11, kind)
    model(prompts, cache)
    cache = cache.expand(3)
    rows = torch.arange(6)
    for step in range(5):
        logits = model(more[rows, step : step + 1], cache)[:, 0]
        torch.testing.assert_close(logits, expected[rows, 6 + step], rtol=1e-5, atol=1e-5)
        if step in (1, 2):  # first a sample of the second prompt ends, then one of the first
            going = rows != (3 if step == 1 else 0)
            rows, cache = rows[going], cache.keep(going)
    assert rows.tolist() == [1, 2, 4, 5]


def test_a_cache_has_the_models_dtype(model: Model) -> None:
    cache = model.double().new_cache(2, 8)
    parts = cache.state if isinstance(cache, StateCache) else (cache.keys, cache.values)
    assert all(part.dtype == torch.float64 for part in parts)
    assert (cache.batch, cache.capacity, cache.length) == (2, 8, 0)


def test_a_sequence_beyond_the_context_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} tokens long.*context is {CONTEXT}"):
        model(tokens_of(1, CONTEXT + 1))
    cache = model.new_cache(1, CONTEXT)
    model(tokens_of(1, CONTEXT), cache)
    with pytest.raises(ValueError, match=f"{CONTEXT} of them cached"):
        model(tokens_of(1, 1), cache)
    with pytest.raises(ValueError, match=f"length is {CONTEXT + 1}"):
        model.new_cache(1, CONTEXT + 1)


# --- documents and positions ----------------------------------------------------------------------

LENGTHS = (7, 1, 11, 5)  # of the documents in one row of CONTEXT tokens


def packed(lengths: tuple[int, ...]) -> Tensor:
    """(1, T) document ids."""
    ids = [torch.full((length,), number) for number, length in enumerate(lengths)]
    return torch.cat(ids).int().unsqueeze(0)


def test_packed_documents_read_as_if_alone(model: Model) -> None:
    tokens = tokens_of(2, CONTEXT)
    together = model(tokens, documents=packed(LENGTHS).expand(2, -1))
    alone = [model(part) for part in tokens.split(LENGTHS, dim=1)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-5)


def test_documents_may_differ_between_rows_and_end_in_padding(model: Model) -> None:
    tokens = tokens_of(2, CONTEXT)
    documents = torch.stack([packed(LENGTHS)[0], packed((20, 4))[0]])
    documents[1, 20:] = -1
    together = model(tokens, documents=documents)
    assert together.isfinite().all()
    alone = torch.cat([model(part) for part in tokens[:1].split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[1:, :20], model(tokens[1:, :20]), rtol=1e-5, atol=1e-5)


def test_one_document_is_plain_text(model: Model) -> None:
    tokens = tokens_of(2, CONTEXT)
    ones = torch.zeros_like(tokens, dtype=torch.int32)
    torch.testing.assert_close(model(tokens, documents=ones), model(tokens), rtol=1e-5, atol=1e-5)


def test_gradients_do_not_cross_documents(config: Config) -> None:
    model, tokens = excited(build(config)), tokens_of(1, CONTEXT)
    seen: list[Tensor] = []
    embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    handle = embedding.register_forward_hook(lambda m, i, out: seen.append(out) or out)  # type: ignore[func-returns-value]
    states = model.hidden(tokens, documents=packed(LENGTHS))
    handle.remove()
    (gradient,) = torch.autograd.grad(states[:, 8].square().sum(dim=0)[0], seen[0])
    touched = gradient.abs().amax(dim=-1)[0] > 0
    assert touched[8] and not touched[:8].any() and not touched[9:].any()


def test_positions_left_out_count_from_zero(model: Model) -> None:
    tokens = tokens_of(2, 9)
    for positions in (torch.arange(9), torch.arange(9).expand(2, 9)):
        torch.testing.assert_close(
            model(tokens, positions=positions), model(tokens), rtol=1e-5, atol=1e-5
        )


def test_places_that_do_not_fit_are_refused(model: Model) -> None:
    tokens, documents = tokens_of(2, 4), torch.zeros(2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"shape of documents is \(2, 3\); it must be \(2, 4\)"):
        model(tokens, documents=documents[:, :3])
    with pytest.raises(ValueError, match="cache is 'given'; it must be left out"):
        model(tokens, model.new_cache(2, 8), documents=documents)
    with pytest.raises(ValueError, match="shape of positions"):
        model(tokens, positions=torch.arange(3))
    with pytest.raises(ValueError, match=f"positions is '0..{CONTEXT}'"):
        model(tokens, positions=torch.tensor([0, 1, 2, CONTEXT]))


# --- counts, weights, training --------------------------------------------------------------------


def test_gradients_reach_every_parameter(config: Config) -> None:
    model = excited(build(config))
    logits = model(tokens_of(4, CONTEXT))
    nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens_of(4, CONTEXT, seed=2).flatten()
    ).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_parameter_counts_equal_the_modules(config: Config) -> None:
    model, count = build(config), config.parameters()
    assert count.all == sum(p.numel() for p in model.parameters())
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    probe = torch.zeros(1, 1, config.width, requires_grad=True)  # type: ignore[attr-defined]
    with torch.enable_grad():
        model.head(probe).sum().backward()  # type: ignore[no-untyped-call]
    in_head = {id(p): p for p in model.parameters() if p.grad is not None}
    lookups = sum(p.numel() for key, p in tables.items() if key not in in_head)
    either = sum(p.numel() for p in {**tables, **in_head}.values())
    assert count.without_input_embedding == count.all - lookups
    assert count.without_embeddings == count.all - either


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Torch's counter, with plain kernels where it has no formula for the fused ones."""

    def grouped(a: torch.Size, b: torch.Size, *_: Any, **__: Any) -> int:
        """(P, D) by (E, D, F), or (D, P) by (P, F) for the weights' gradient."""
        return 2 * a[0] * a[1] * b[-1]

    formulas = {torch.ops.aten._grouped_mm: grouped}
    was = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # its recurrent layers are one opaque operation each
    try:
        with (
            FlopCounterMode(display=False, custom_mapping=formulas) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield counter
    finally:
        torch._C._set_mkldnn_enabled(was)


@pytest.mark.parametrize("context", [1, 7, CONTEXT])
def test_flop_counts_equal_torchs(config: Config, context: int) -> None:
    rows, model = 2, build(config)
    # Torch's counter has no formula for the fused CPU kernel; the plain one shows its products.
    with torch.no_grad(), counting() as counter:
        model(tokens_of(rows, context))
    flops = config.flops_per_token(context)
    assert counter.get_total_flops() == rows * context * flops.forward
    by_operation = counter.get_flop_counts()["Global"]
    assert by_operation.get(torch.ops.aten.bmm, 0) == rows * context * flops.attention
    assert flops.head == 2 * VOCAB * config.width  # type: ignore[attr-defined]


def test_training_flops_equal_torchs(config: Config) -> None:
    model = build(config)
    with counting() as counter:
        model(tokens_of(2, CONTEXT)).sum().backward()
    first = 0
    if isinstance(config, CharRNNConfig):  # nobody asks how the empty state should have been
        first = 2 * 2 * config.depth * config.layer_matrices // 2
    assert counter.get_total_flops() + first == 2 * CONTEXT * config.flops_per_token().training


def test_counts_do_not_need_a_vocabulary(config: Config) -> None:
    unknown, known = replace(config, vocab=0), config
    assert unknown.flops_per_token().head == 0
    assert unknown.flops_per_token().body == known.flops_per_token().body
    assert unknown.parameters().without_embeddings == known.parameters().without_embeddings


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_weights_have_the_stated_spread_by_role(variant: str) -> None:
    model = build(small(variant, width=128, depth=8, vocab=512, context=128))
    for name, parameter in model.named_parameters():
        kind, last = name.split(".")[-2:] if "." in name else ("", name)
        if isinstance(model, CharRNN) and last.startswith("bias"):
            assert ((parameter == 0) | (parameter == 1)).all(), name  # the forget gate's is 1
        elif isinstance(model, CharRNN):
            uniform = 3 if kind == "layers" else 1
            assert parameter.std().item() == pytest.approx((128 * uniform) ** -0.5, rel=0.05), name
        elif last == "bias":
            assert parameter.abs().max() == 0, name
        elif "norm" in kind or last == "attenuation":
            assert (parameter == 1).all(), name
        elif isinstance(model, Modern) and kind == "output":
            assert parameter.abs().max() == 0, name
        else:
            # 4 = sqrt(2 * 8 layers); experts hold their matrices themselves
            expected = 0.02 / 4 if "output" in (kind, last) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.2 * expected, name


def test_an_untrained_model_knows_nothing(config: Config) -> None:
    tokens, targets = tokens_of(8, CONTEXT), tokens_of(8, CONTEXT, seed=2)
    loss = nn.functional.cross_entropy(build(config)(tokens).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(torch.tensor(VOCAB).log().item(), rel=0.02)


def test_the_seed_decides_the_weights(config: Config) -> None:
    first, same, other = build(config, 0), build(config, 0), build(config, 1)
    pairs = zip(first.state_dict().items(), same.state_dict().values(), strict=True)
    assert all(torch.equal(weight, again) for (_, weight), again in pairs)
    assert not torch.equal(first(tokens_of(1, 4)), other(tokens_of(1, 4)))


def test_weights_survive_safetensors(config: Config, tmp_path: Path) -> None:
    model, other = build(config, 0).eval(), build(config, 1).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    tokens = tokens_of(2, CONTEXT)
    assert torch.equal(model(tokens), other(tokens))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", COMPILED)
def test_compiling_needs_no_graph_break(name: str) -> None:
    model, tokens = build(small(name)).eval(), tokens_of(2, CONTEXT)
    torch.compiler.reset()  # all models share one forward, and it is compiled a few times only
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    documents = packed(LENGTHS).expand(2, -1)
    for places in ({}, {"documents": documents}):
        expected = model(tokens, **places)
        torch.testing.assert_close(compiled(tokens, **places), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_model_is_the_same_model(name: str) -> None:
    model, tokens = excited(build(small(name))).eval(), tokens_of(2, CONTEXT)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-4, atol=1e-4)


def test_checkpointing_changes_no_gradient(config: Config) -> None:
    model, tokens = build(config), tokens_of(2, CONTEXT)
    if isinstance(model, CharRNN):
        pytest.skip("a recurrent network keeps its states")
    assert isinstance(model, Decoder)
    gradients = []
    for model.checkpointing in (False, True):
        torch.manual_seed(3)  # a router's noise
        model.zero_grad()
        model(tokens, documents=packed(LENGTHS).expand(2, -1)).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-7)


def test_a_model_learns_to_repeat(config: Config) -> None:
    """The loss of a fixed pattern falls to near nothing: gradients point the right way."""
    model = build(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = (torch.arange(CONTEXT + 1) % 5).repeat(4, 1)
    for _ in range(150 if isinstance(model, CharRNN) else 40):
        logits = model(tokens[:, :-1]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("width", 30), ("depth", 0), ("heads", 0), ("context", 0), ("vocab", -1)],
)
def test_impossible_shapes_are_refused_by_name(config: Config, field: str, value: int) -> None:
    if isinstance(config, CharRNNConfig) and (field, value) in (("width", 30), ("heads", 0)):
        pytest.skip("a recurrent network has no heads")
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        replace(config, **{field: value})


def test_building_needs_a_vocabulary(config: Config) -> None:
    with pytest.raises(ValueError, match=r"vocab is 0.*tokenizer"):
        replace(config, vocab=0).build()


def test_flops_need_a_context(config: Config) -> None:
    with pytest.raises(ValueError, match="context is 0"):
        config.flops_per_token(0)
