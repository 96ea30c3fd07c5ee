"""Does a denoiser read both ways, its own document only, and count itself?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import DiffusionConfig, DiTConfig, LlamaConfig
from models.interface import Denoiser

VOCAB, CONTEXT = 61, 24
SHAPE: dict[str, Any] = {"vocab": VOCAB, "context": CONTEXT, "width": 32, "depth": 3, "heads": 4}
CONFIGS = [
    DiffusionConfig(**SHAPE),
    DiffusionConfig(**SHAPE, kv_heads=2, tied=True),
    DiTConfig(**SHAPE),
    DiTConfig(**SHAPE, tied=True, ffn=40),
]


@pytest.fixture(params=CONFIGS, ids=lambda c: f"{c.name}{'-tied' * c.tied}")
def config(request: pytest.FixtureRequest) -> DiffusionConfig:
    found: DiffusionConfig = request.param
    return found


@pytest.fixture
def model(config: DiffusionConfig) -> Denoiser:
    """Weights several times their initial size: attention then prefers some tokens."""
    torch.manual_seed(0)
    built = config.build()
    with torch.no_grad():
        for weight in built.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1).add_(torch.randn_like(weight) * 0.1)
    return built


def tokens_of(rows: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_every_token_sees_every_other_one(model: Denoiser) -> None:
    before = tokens_of(2, CONTEXT)
    old = model(before)
    assert old.shape == (2, CONTEXT, VOCAB)
    for place in (0, 11, CONTEXT - 1):
        after = before.clone()
        after[0, place] = (after[0, place] + 1) % VOCAB
        new = model(after, times=(before == VOCAB - 1).float().mean(dim=1))
        assert ((new - old)[0].abs().amax(dim=-1) > 1e-5).all()
        torch.testing.assert_close(new[1], old[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_document_is_read_as_if_it_were_alone(model: Denoiser) -> None:
    tokens, times = tokens_of(1, 12), torch.tensor([0.3])
    documents = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3])
    packed = model(tokens, documents=documents, times=times)
    for part in (slice(0, 5), slice(5, 9)):
        alone = model(tokens[:, part], times=times)
        torch.testing.assert_close(packed[:, part], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_the_one_that_is_told_the_time_minds_it(model: Denoiser) -> None:
    tokens = tokens_of(2, 8)
    tokens[0, :4] = VOCAB - 1
    tokens[1][tokens[1] == VOCAB - 1] = 0
    early, late = (model(tokens, times=torch.tensor([t, t])) for t in (0.1, 0.9))
    told = isinstance(model.config, DiTConfig)
    assert torch.equal(early, late) != told
    counted = model(tokens, times=torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(model(tokens), counted)


def test_at_first_the_time_changes_nothing() -> None:
    """adaLN-zero: all gates are closed, so every block is the identity."""
    model = DiTConfig(**SHAPE).build()
    tokens = tokens_of(2, 8)
    early = model.hidden(tokens, times=torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(early, model.hidden(tokens))
    gates = [weight for name, weight in model.named_parameters() if "modulation.weight" in name]
    assert len(gates) == 4 and not any(weight.any() for weight in gates)


def test_counts_equal_torchs(config: DiffusionConfig) -> None:
    model = config.build()
    assert config.parameters().all == sum(p.numel() for p in model.parameters())
    for context in (1, 7, CONTEXT):
        with (
            torch.no_grad(),
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            model(tokens_of(2, context))
        counted = 2 * context * config.flops_per_token(context).forward
        assert 0 <= counted - counter.get_total_flops() < 2 * context
    if not isinstance(config, DiTConfig):
        plain = LlamaConfig(**SHAPE, kv_heads=config.kv_heads, tied=config.tied)
        assert config.parameters() == plain.parameters()


def test_gradients_reach_every_parameter(model: Denoiser) -> None:
    with torch.enable_grad():
        model(tokens_of(4, CONTEXT)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", [DiffusionConfig, DiTConfig])
def test_compiling_needs_no_graph_break(kind: type[DiffusionConfig]) -> None:
    model, tokens = kind(**SHAPE).build(), tokens_of(2, CONTEXT)
    torch.compiler.reset()  # all models share one forward, and it is compiled a few times only
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-5, atol=1e-6)


def test_caches_and_long_sequences_are_refused(model: Denoiser) -> None:
    with pytest.raises(ValueError, match="knows no cache"):
        model.new_cache(1, 8)
    cache = LlamaConfig(**SHAPE).build().new_cache(1, 8)
    with pytest.raises(ValueError, match="cache is 'given'"):
        model(tokens_of(1, 4), cache)
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} tokens long"):
        model(tokens_of(1, CONTEXT + 1))


@pytest.mark.parametrize("kind", [DiffusionConfig, DiTConfig])
def test_building_needs_a_vocabulary(kind: type[DiffusionConfig]) -> None:
    with pytest.raises(ValueError, match="vocab is 0"):
        kind(**{**SHAPE, "vocab": 0}).build()
