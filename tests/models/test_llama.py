"""Is our LLaMA the LLaMA of the transformers library?"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from isoflop.exchange.weights import from_theirs
from models import LlamaConfig
from models.layers import RopeScaling, rotary_table, rotate
from models.llama import Llama

transformers = pytest.importorskip("transformers", reason="parity needs the dev extra")


def their_model(config: LlamaConfig, **changes: Any) -> torch.nn.Module:
    """With random weights, norms included. Their epsilon defaults to 1e-6; ours is 1e-5."""
    shape = transformers.LlamaConfig(
        vocab_size=config.vocab,
        max_position_embeddings=config.context,
        hidden_size=config.width,
        intermediate_size=config.inner,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        rms_norm_eps=1e-5,
        tie_word_embeddings=config.tied,
        **{"rope_theta": config.rope_theta, **changes},
    )
    model: torch.nn.Module = transformers.LlamaForCausalLM(shape).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


BASE = LlamaConfig(vocab=101, context=32, width=48, depth=3, heads=4)
SHAPES = {
    "untied": BASE,
    "tied": replace(BASE, tied=True),
    "grouped": replace(BASE, kv_heads=2),
    "one-key-head": replace(BASE, kv_heads=1, ffn=100, tied=True),
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest) -> tuple[Llama, torch.nn.Module]:
    torch.manual_seed(0)
    config = SHAPES[request.param]
    ours, theirs = Llama(config), their_model(config)
    ours.load_state_dict(from_theirs(config, theirs.state_dict()))
    return ours, theirs


def test_logits_equal_transformers(pair: tuple[Llama, torch.nn.Module]) -> None:
    ours, theirs = pair
    tokens = torch.randint(101, (3, 32))
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1, "logits that are all alike would prove nothing"


def test_gradients_equal_transformers(pair: tuple[Llama, torch.nn.Module]) -> None:
    ours, theirs = pair
    tokens, weights = torch.randint(101, (2, 16)), torch.randn(2, 16, 101) / 100
    names, parameters = zip(*theirs.named_parameters(), strict=True)
    expected = torch.autograd.grad((theirs(tokens).logits * weights).sum(), parameters)
    named = dict(zip(names, expected, strict=True))
    ours.zero_grad()
    (ours(tokens) * weights).sum().backward()
    for name, gradient in from_theirs(ours.config, named).items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5)


def test_another_theta_turns_the_heads_otherwise() -> None:
    torch.manual_seed(0)
    config = replace(BASE, rope_theta=500_000.0)
    ours, theirs = Llama(config), their_model(config)
    ours.load_state_dict(from_theirs(config, theirs.state_dict()))
    tokens = torch.randint(101, (2, 32))
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5)
        usual = Llama(BASE)
        usual.load_state_dict(ours.state_dict())
        assert (usual(tokens) - expected).abs().max() > 1e-3


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 2, 8).unbind(0)
    table = rotary_table(20, 8, 10_000.0)
    q, k = (rotate(x.expand(1, 20, 2, 8), table) for x in (q, k))
    torch.testing.assert_close(q.norm(dim=-1), q[:, :1].norm(dim=-1).expand(1, 20, 2))
    scores = torch.einsum("bthk,bshk->bhts", q, k)
    torch.testing.assert_close(scores[..., 3:, 3:], scores[..., :-3, :-3], rtol=1e-4, atol=1e-5)
    assert (scores[..., 0, :] - scores[..., 0, :1]).abs().max() > 0.1


STRETCHED = {
    "linear": RopeScaling(kind="linear", factor=2.0),
    "yarn": RopeScaling(kind="yarn", factor=4.0, original=16),
    "yarn-1.5": RopeScaling(kind="yarn", factor=1.5, original=200),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_stretched_positions_equal_those_of_transformers(name: str) -> None:
    scaling = STRETCHED[name]
    torch.manual_seed(0)
    config = replace(BASE, rope_scaling=scaling, width=128)
    values = {"rope_type": scaling.kind, "factor": scaling.factor, "rope_theta": 10_000.0}
    if scaling.kind == "yarn":
        values["original_max_position_embeddings"] = scaling.original
    theirs = their_model(config, rope_scaling=values)
    ours = Llama(config)
    ours.load_state_dict(from_theirs(config, theirs.state_dict()))
    tokens = torch.randint(101, (2, 32))
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-4)
        usual = Llama(replace(config, rope_scaling=RopeScaling()))
        usual.load_state_dict(ours.state_dict())
        assert (usual(tokens) - expected).abs().max() > 1e-3


def test_ntk_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all() -> None:
    usual = RopeScaling().frequencies(64, 10_000.0)
    slowed = RopeScaling(kind="ntk", factor=8.0).frequencies(64, 10_000.0)
    ratio = usual / slowed
    assert ratio[0].item() == pytest.approx(1)
    assert ratio[-1].item() == pytest.approx(8)
    assert (ratio.diff() > 0).all()


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_a_factor_of_one_changes_nothing(kind: Any) -> None:
    scaling = RopeScaling(kind=kind, original=16)
    torch.testing.assert_close(rotary_table(32, 8, 1e4, scaling), rotary_table(32, 8, 1e4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "dynamic"}, "rope_scaling.kind is 'dynamic'"),
        ({"factor": 0.5}, "rope_scaling.factor is 0.5"),
        ({"kind": "yarn", "factor": 2.0}, "rope_scaling.original is 0"),
        ({"fast": 1.0}, "rope_scaling.fast is 1.0"),
    ],
)
def test_impossible_stretches_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeScaling(**changes)


@pytest.mark.parametrize(("width", "inner"), [(48, 128), (64, 176), (128, 344), (256, 688)])
def test_the_feed_forward_follows_the_width(width: int, inner: int) -> None:
    config = replace(BASE, width=width)
    assert config.inner == inner
    assert inner % 8 == 0
    assert 0 <= inner - 8 * width / 3 < 8


def test_the_published_sizes_count_as_published() -> None:
    """6,738,415,616 parameters: the sum over Meta's checkpoint of LLaMA 7B; inner width 11,008."""
    shape = LlamaConfig(vocab=32000, context=2048, width=4096, depth=32, heads=32, ffn=11_008)
    assert shape.parameters().all == 6_738_415_616


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "kv_heads is 3; it must be a divisor of the 4 heads"),
        ({"kv_heads": 0}, "kv_heads is 0"),
        ({"ffn": 0}, "ffn is 0"),
        ({"width": 12}, "width / heads is 3; it must be even"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
    ],
)
def test_impossible_shapes_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)
