"""Does every model of the zoo keep the promises of models/interface.py?"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import ZOO, Config
from models.interface import Model

VOCAB, CONTEXT = 61, 24

# One small shape per architecture; a new line in ZOO needs one here, or this suite fails.
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"width": 32, "depth": 3, "heads": 4},
    "llama": {"width": 32, "depth": 3, "heads": 4, "kv_heads": 2},
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"kind": name, **shape} for name, shape in SMALL.items()},
    "llama-tied": {"kind": "llama", **SMALL["llama"], "tied": True},
    "llama-plain": {"kind": "llama", **SMALL["llama"], "kv_heads": None, "ffn": 40},
}


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
    """Weights ten times their initial size: attention then prefers some tokens over others."""
    built = build(config)
    with torch.no_grad():
        for weight in built.parameters():
            weight.mul_(10 if weight.ndim > 1 else 1).add_(torch.randn_like(weight) * 0.1)
        yield built


def test_every_architecture_has_a_small_configuration() -> None:
    assert set(SMALL) == set(ZOO)
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
    assert (difference > 1e-4).all(), "a token sees itself and all before it"


def test_rows_of_a_batch_are_independent(model: Model) -> None:
    tokens = tokens_of(4, 9)
    alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [[10], [1] * 10, [6, 1, 1, 1, 1], [4, 6], [1, 5, 4]])
def test_reading_through_a_cache_gives_the_same_logits(model: Model, chunks: list[int]) -> None:
    tokens = tokens_of(3, sum(chunks))
    cache = model.new_cache(3, CONTEXT)
    parts = []
    for chunk in torch.split(tokens, chunks, dim=1):
        parts.append(model(chunk, cache))
    assert cache.length == sum(chunks)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-5, atol=1e-5)


def test_one_prefill_serves_many_samples_and_finished_rows_are_dropped(model: Model) -> None:
    prompts, more = tokens_of(2, 6), tokens_of(6, 5, seed=2)
    whole = torch.cat((prompts.repeat_interleave(3, dim=0), more), dim=1)
    expected = model(whole)
    cache = model.new_cache(2, 11)
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
    assert cache.keys.dtype == cache.values.dtype == torch.float64
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


def test_gradients_reach_every_parameter(config: Config) -> None:
    model = build(config)
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


@pytest.mark.parametrize("context", [1, 7, CONTEXT])
def test_flop_counts_equal_torchs(config: Config, context: int) -> None:
    rows, model = 2, build(config)
    # Torch's counter has no formula for the fused CPU kernel; the plain one shows its products.
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        model(tokens_of(rows, context))
    flops = config.flops_per_token(context)
    assert counter.get_total_flops() == rows * context * flops.forward
    by_operation = counter.get_flop_counts()["Global"]
    assert by_operation[torch.ops.aten.bmm] == rows * context * flops.attention
    assert flops.head == 2 * VOCAB * config.width  # type: ignore[attr-defined]


def test_training_flops_equal_torchs(config: Config) -> None:
    model = build(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens_of(2, CONTEXT)).sum().backward()
    assert counter.get_total_flops() == 2 * CONTEXT * config.flops_per_token().training


def test_counts_do_not_need_a_vocabulary(config: Config) -> None:
    unknown, known = replace(config, vocab=0), config
    assert unknown.flops_per_token().head == 0
    assert unknown.flops_per_token().body == known.flops_per_token().body
    assert unknown.parameters().without_embeddings == known.parameters().without_embeddings


def test_initial_weights_have_the_stated_spread_by_role() -> None:
    for variant in VARIANTS:
        model = build(small(variant, width=128, depth=8, vocab=512, context=128))
        for name, parameter in model.named_parameters():
            role = name.split(".")[-2:]
            if role[-1] == "bias":
                assert parameter.abs().max() == 0, name
            elif "norm" in role[-2]:
                assert (parameter == 1).all(), name
            else:
                expected = 0.02 / 4 if role[0] == "output" else 0.02  # 4 = sqrt(2 * 8 layers)
                assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
                assert abs(parameter.mean().item()) < 0.1 * expected, name


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
    model, other = build(config, 0), build(config, 1)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    tokens = tokens_of(2, CONTEXT)
    assert torch.equal(model(tokens), other(tokens))


@pytest.mark.parametrize("name", SMALL)
def test_compiling_needs_no_graph_break(name: str) -> None:
    model, tokens = build(small(name)), tokens_of(2, CONTEXT)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-5, atol=1e-6)


def test_a_model_learns_to_repeat(config: Config) -> None:
    """The loss of a fixed pattern falls to near nothing: gradients point the right way."""
    model = build(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = (torch.arange(CONTEXT + 1) % 5).repeat(4, 1)
    for _ in range(40):
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
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        replace(config, **{field: value})


def test_building_needs_a_vocabulary(config: Config) -> None:
    with pytest.raises(ValueError, match=r"vocab is 0.*tokenizer"):
        replace(config, vocab=0).build()


def test_flops_need_a_context(config: Config) -> None:
    with pytest.raises(ValueError, match="context is 0"):
        config.flops_per_token(0)
