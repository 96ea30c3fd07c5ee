"""Does T5 say what the published one says, and do the parallel and the serial one keep promises?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import SerialT5Config, T5Config
from models.t5 import T5, Memory, bucket

VOCAB, CONTEXT = 61, 24
SHAPE: dict[str, Any] = {"vocab": VOCAB, "context": CONTEXT, "width": 32, "depth": 2, "heads": 4}
CONFIGS: list[T5Config] = [
    T5Config(**SHAPE),
    SerialT5Config(**SHAPE),
    T5Config(**SHAPE, codebooks=3, ffn=40),
    SerialT5Config(**SHAPE, codebooks=2),
]


def build(config: T5Config, strength: float = 5.0) -> T5:
    """Weights several times their initial size: attention then prefers some tokens."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(strength if weight.ndim > 1 else 1).add_(torch.randn_like(weight) * 0.05)
    return model


def ids_of(config: T5Config, rows: int, length: int, seed: int = 1) -> Tensor:
    shape = (rows, length) if config.codebooks == 1 else (rows, length, config.codebooks)
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS, ids=lambda c: f"{c.name}-{c.codebooks}")
def config(request: pytest.FixtureRequest) -> T5Config:
    found: T5Config = request.param
    return found


def published(config: SerialT5Config) -> nn.Module:
    """The library's model of the same shape, with an untied head."""
    transformers = pytest.importorskip("transformers")
    shape = transformers.T5Config(
        vocab_size=config.vocab,
        d_model=config.width,
        d_kv=config.width // config.heads,
        d_ff=config.inner,
        num_layers=config.depth,
        num_heads=config.heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.distance,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    shape.scale_decoder_outputs = False
    model: nn.Module = transformers.T5ForConditionalGeneration(shape).eval()
    return model


def carry(theirs: dict[str, Tensor], model: T5) -> None:
    """Our names for their weights; products that we fuse are put on top of each other."""

    def attention(path: str, names: str) -> Tensor:
        return torch.cat([theirs[f"{path}.{name}.weight"] for name in names.split()])

    weights = {
        "embedding.weight": theirs["shared.weight"],
        "unembedding.weight": theirs["lm_head.weight"],
        "encoder_norm.weight": theirs["encoder.final_layer_norm.weight"],
        "norm.weight": theirs["decoder.final_layer_norm.weight"],
    }
    for side, own in (("encoder", "encoder_distances"), ("decoder", "distances")):
        first = f"{side}.block.0.layer.0.SelfAttention"
        weights[f"{own}.table"] = theirs[f"{first}.relative_attention_bias.weight"]
        for layer in range(model.config.depth):
            here, last = f"{side}.block.{layer}.layer", 1 if side == "encoder" else 2
            weights |= {
                f"{side}.{layer}.{name}": value
                for name, value in {
                    "attention_norm.weight": theirs[f"{here}.0.layer_norm.weight"],
                    "attention.query_key_value.weight": attention(
                        f"{here}.0.SelfAttention", "q k v"
                    ),
                    "attention.output.weight": attention(f"{here}.0.SelfAttention", "o"),
                    "feed_forward_norm.weight": theirs[f"{here}.{last}.layer_norm.weight"],
                    "feed_forward.gate_up.weight": attention(
                        f"{here}.{last}.DenseReluDense", "wi_0 wi_1"
                    ),
                    "feed_forward.output.weight": attention(f"{here}.{last}.DenseReluDense", "wo"),
                }.items()
            }
            if side == "decoder":
                cross = f"{here}.1.EncDecAttention"
                weights |= {
                    f"decoder.{layer}.cross_norm.weight": theirs[f"{here}.1.layer_norm.weight"],
                    f"decoder.{layer}.query.weight": attention(cross, "q"),
                    f"decoder.{layer}.key_value.weight": attention(cross, "k v"),
                    f"decoder.{layer}.output.weight": attention(cross, "o"),
                }
    model.load_state_dict(weights)


def test_the_serial_one_has_the_published_logits() -> None:
    config = SerialT5Config(**{**SHAPE, "context": 200}, distance=20, buckets=8)
    torch.manual_seed(0)
    theirs, ours = published(config), config.build()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    carry(theirs.state_dict(), ours)
    source, tokens = ids_of(config, 2, 60), ids_of(config, 2, 45, seed=2)
    present = torch.ones(2, 60, dtype=torch.bool)
    present[1, 40:] = False
    with torch.no_grad():
        expected = theirs(
            input_ids=source, attention_mask=present.long(), decoder_input_ids=tokens
        ).logits
        found = ours(tokens, source=source, present=present)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_are_exact_near_by_and_grow_farther_away(both_ways: bool) -> None:
    back = bucket(-torch.arange(300), 32, 128, both_ways)
    exact = 8 if both_ways else 16
    assert back[:exact].tolist() == list(range(exact))
    assert (back.diff() >= 0).all() and back.diff().max() == 1
    assert (back[128:] == 2 * exact - 1).all()
    ahead = bucket(torch.arange(1, 300), 32, 128, both_ways)
    assert torch.equal(ahead, back[1:] + 16) if both_ways else (ahead == 0).all()


def test_the_decoder_sees_no_later_token_and_all_of_the_source(config: T5Config) -> None:
    model = build(config)
    source, tokens = ids_of(config, 2, 9), ids_of(config, 2, 8, seed=2)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    with torch.no_grad():
        old, new = model(tokens, source=source), model(changed, source=source)
        torch.testing.assert_close(new[:, :5], old[:, :5], rtol=0, atol=1e-5)
        assert ((new - old)[:, 5:].abs().flatten(2).amax(2) > 1e-4).all()
        for place in (0, 8):
            other = source.clone()
            other[:, place] = (other[:, place] + 1) % VOCAB
            moved = (model(tokens, source=other) - old).abs().flatten(2).amax(2)
            assert (moved > 1e-5).all(), "every position reads every one of the source"


def test_absent_positions_are_not_read(config: T5Config) -> None:
    model = build(config)
    source, tokens = ids_of(config, 2, 9), ids_of(config, 2, 5, seed=2)
    present = torch.ones(2, 9, dtype=torch.bool)
    present[0, 6:] = False
    with torch.no_grad():
        padded = model(tokens, source=source, present=present)
        alone = model(tokens[:1], source=source[:1, :6])
        torch.testing.assert_close(padded[:1], alone, rtol=1e-4, atol=1e-5)
        whole = model(tokens, source=source)
        torch.testing.assert_close(padded[1], whole[1], rtol=1e-4, atol=1e-5)
        assert (padded[0] - whole[0]).abs().max() > 1e-3


@pytest.mark.parametrize("chunks", [[8], [1] * 8, [4, 4], [5, 1, 1, 1]])
def test_reading_through_a_cache_gives_the_same_logits(config: T5Config, chunks: list[int]) -> None:
    model = build(config)
    source, tokens = ids_of(config, 3, 9), ids_of(config, 3, 8, seed=2)
    present = torch.ones(3, 9, dtype=torch.bool)
    present[1, 5:] = False
    with torch.no_grad():
        expected = model(tokens, source=source, present=present)
        cache, parts, once = model.new_cache(3, 8), [], {"source": source, "present": present}
        for chunk in torch.split(tokens, chunks, dim=1):
            parts.append(model(chunk, cache, **once))
            once = {}
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_one_reading_of_the_source_serves_many_samples(config: T5Config) -> None:
    model = build(config)
    source, tokens = ids_of(config, 2, 9), ids_of(config, 6, 4, seed=2)
    with torch.no_grad():
        expected = model(tokens, source=source.repeat_interleave(3, dim=0))
        first = model.new_cache(2, 4)
        model(tokens[::3, :1], first, source=source)
        cache = first.expand(3)
        assert isinstance(cache, Memory)
        kept = torch.tensor([1, 5])
        cache.length = 0  # only the source is shared: each sample begins anew
        model(tokens[:, :1], cache)
        cache = cache.keep(kept)
        rest = torch.cat([model(tokens[kept, t : t + 1], cache) for t in range(1, 4)], dim=1)
    torch.testing.assert_close(rest, expected[kept, 1:], rtol=1e-4, atol=1e-5)


def test_counts_equal_torchs(config: T5Config) -> None:
    model = config.build()
    assert config.parameters().all == sum(p.numel() for p in model.parameters())
    for source, target in ((7, 7), (CONTEXT, 5)):
        shaped = replace(config, source=source, target=target, context=CONTEXT)
        with (
            torch.no_grad(),
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            model(ids_of(config, 2, target), source=ids_of(config, 2, source))
        counted = shaped.flops_per_token().forward * CONTEXT
        assert counter.get_total_flops() / 2 == pytest.approx(counted, abs=2 * CONTEXT)
    same = config.flops_per_token(7).forward
    assert same == replace(config, context=7).flops_per_token().forward


def test_gradients_reach_every_parameter(config: T5Config) -> None:
    model = build(config, 1.0)
    logits = model(ids_of(config, 4, 9), source=ids_of(config, 4, 9, seed=3))
    assert logits.shape == (*ids_of(config, 4, 9).shape, VOCAB)
    (logits.square().mean() + logits.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", [T5Config, SerialT5Config])
def test_compiling_needs_no_graph_break(kind: type[T5Config]) -> None:
    config = kind(**SHAPE)
    model, tokens = config.build(), ids_of(config, 2, 6)
    torch.compiler.reset()  # all models share one forward, and it is compiled a few times only
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = model(tokens, source=tokens)
    torch.testing.assert_close(compiled(tokens, source=tokens), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"documents": torch.zeros(1, 3)}, "documents is 'given'"),
        ({"positions": torch.arange(3)}, "positions is 'given'"),
        ({"source": None}, "source is None"),
    ],
)
def test_what_it_cannot_read_is_refused(given: dict[str, Tensor], said: str) -> None:
    model, tokens = T5Config(**SHAPE).build(), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=said):
        model(tokens, **{"source": tokens, **given})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"buckets": 6}, "buckets is 6"),
        ({"distance": 16}, "distance is 16"),
        ({"codebooks": 0}, "codebooks is 0"),
        ({"width": 30}, "width is 30"),
        ({"ffn": 0}, "ffn is 0"),
    ],
)
def test_impossible_shapes_are_refused_by_name(change: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        T5Config(**{**SHAPE, **change})
    with pytest.raises(ValueError, match="vocab is 0"):
        T5Config(**{**SHAPE, "vocab": 0}).build()
