"""Is our LLaMA the LLaMA of the transformers library?"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import LlamaConfig
from models.layers import rotary_table, rotate
from models.llama import Llama

transformers = pytest.importorskip("transformers", reason="parity needs the dev extra")


def from_hugging_face(weights: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Their state dict under our names; we keep products of the same input in one matrix."""
    ours = {
        "embedding.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
    }
    if not config.tied:
        ours["unembedding.weight"] = weights["lm_head.weight"]
    names = {
        "attention_norm": ["input_layernorm"],
        "attention.query_key_value": [f"self_attn.{part}_proj" for part in "qkv"],
        "attention.output": ["self_attn.o_proj"],
        "feed_forward_norm": ["post_attention_layernorm"],
        "feed_forward.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "feed_forward.output": ["mlp.down_proj"],
    }
    for layer in range(config.depth):
        for our, theirs in names.items():
            parts = [weights[f"model.layers.{layer}.{their}.weight"] for their in theirs]
            if our == "attention.query_key_value":
                parts[:2] = [neighbours(part, config.size) for part in parts[:2]]
            ours[f"blocks.{layer}.{our}.weight"] = torch.cat(parts)
    return ours


def neighbours(weight: Tensor, size: int) -> Tensor:
    """The rows of each head reordered: they turn row i with row i + K/2, we turn 2i with 2i + 1."""
    width = weight.shape[1]
    return weight.view(-1, 2, size // 2, width).transpose(1, 2).reshape(-1, width)


def their_model(config: LlamaConfig) -> torch.nn.Module:
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
        rope_theta=config.rope_theta,
        tie_word_embeddings=config.tied,
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
    ours.load_state_dict(from_hugging_face(theirs.state_dict(), config))
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
    for name, gradient in from_hugging_face(named, ours.config).items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5)


def test_another_theta_turns_the_heads_otherwise() -> None:
    torch.manual_seed(0)
    config = replace(BASE, rope_theta=500_000.0)
    ours, theirs = Llama(config), their_model(config)
    ours.load_state_dict(from_hugging_face(theirs.state_dict(), config))
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
