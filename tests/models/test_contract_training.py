"""Does every model of the zoo count itself right, start as it says, compile and learn?"""

from __future__ import annotations

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

from models import CharRNNConfig, Config, DiTConfig
from models.char_rnn import CharRNN
from models.dit import DiT
from models.interface import Denoiser, EncoderDecoder, Model
from models.modern import Modern

# Without a graph break. A mixture of experts is in bfloat16 alone (see below), a recurrent network
# is one call of torch's.
COMPILED = ("gpt2", "llama", "lformer", "modern", "diffusion", "dit", "t5", "t5_serial")


def scored(zoo: Any, model: Model, rows: int = 4) -> Tensor:
    """A loss that every part of the model has a share in."""
    tokens, other = (zoo.tokens(model.config, rows, zoo.context, seed) for seed in (1, 2))
    logits = zoo.read(model, tokens)
    return nn.functional.cross_entropy(logits.flatten(0, -2), other.flatten())


def test_gradients_reach_every_parameter(zoo: Any, config: Config) -> None:
    model = zoo.excited(zoo.build(config))
    scored(zoo, model).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_parameter_counts_equal_the_modules(zoo: Any, config: Config) -> None:
    model, count = zoo.build(config), config.parameters()
    assert count.all == sum(p.numel() for p in model.parameters())
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    probe = torch.zeros(1, 1, config.width, requires_grad=True)  # type: ignore[attr-defined]
    with torch.enable_grad():
        model.head(probe).sum().backward()
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


def read_alike(zoo: Any, model: Model, rows: int, length: int) -> Tensor:
    """With a source as long as what is written, as `flops_per_token(length)` counts."""
    tokens = zoo.tokens(model.config, rows, length)
    logits: Tensor = model(tokens, **zoo.beside(model, rows, length))
    return logits


@pytest.mark.parametrize("context", [1, 7, 24])
def test_flop_counts_equal_torchs(zoo: Any, config: Config, context: int) -> None:
    """To the FLOP; the network that a time goes through runs once a row, which is rounded up."""
    rows, model = 2, zoo.build(config)
    with torch.no_grad(), counting() as counter:
        read_alike(zoo, model, rows, context)
    flops = config.flops_per_token(context)
    beyond = rows * context * flops.forward - counter.get_total_flops()
    assert 0 <= beyond < rows * context if isinstance(config, DiTConfig) else beyond == 0
    by_operation = counter.get_flop_counts()["Global"]
    assert by_operation.get(torch.ops.aten.bmm, 0) == rows * context * flops.attention
    assert flops.head == 2 * zoo.vocab * config.width * getattr(config, "codebooks", 1)  # type: ignore[attr-defined]


def test_training_flops_equal_torchs(zoo: Any, config: Config) -> None:
    model = zoo.excited(zoo.build(config))
    with counting() as counter:
        read_alike(zoo, model, 2, zoo.context).sum().backward()
    first = 0
    if isinstance(config, CharRNNConfig):  # nobody asks how the empty state should have been
        first = 2 * 2 * config.depth * config.layer_matrices // 2
    beyond = 2 * zoo.context * config.flops_per_token().training - counter.get_total_flops() - first
    # What a time's code is made of is given: nobody asks for a gradient there.
    given = 2 * 2 * 256 * config.width + 6 * zoo.context if isinstance(config, DiTConfig) else 0
    assert 0 <= beyond <= given


def test_counts_do_not_need_a_vocabulary(config: Config) -> None:
    unknown, known = replace(config, vocab=0), config
    assert unknown.flops_per_token().head == 0
    assert unknown.flops_per_token().body == known.flops_per_token().body
    assert unknown.parameters().without_embeddings == known.parameters().without_embeddings


def test_initial_weights_have_the_stated_spread_by_role(zoo: Any, config: Config) -> None:
    model = zoo.build(replace(config, width=128, depth=8, vocab=512, context=128))  # type: ignore[call-arg]
    for name, parameter in model.named_parameters():
        kind, last = name.split(".")[-2:] if "." in name else ("", name)
        if isinstance(model, CharRNN) and last.startswith("bias"):
            assert ((parameter == 0) | (parameter == 1)).all(), name  # the forget gate's is 1
        elif isinstance(model, CharRNN):
            uniform = 3 if kind == "layers" else 1
            assert parameter.std().item() == pytest.approx((128 * uniform) ** -0.5, rel=0.05), name
        elif last == "bias" or (isinstance(model, DiT) and kind == "modulation"):
            assert parameter.abs().max() == 0, name
        elif "norm" in kind or last == "attenuation":
            assert (parameter == 1).all(), name
        elif isinstance(model, Modern) and kind == "output":
            assert parameter.abs().max() == 0, name
        else:
            # 4 = sqrt(2 * 8 layers); experts hold their matrices themselves
            expected = 0.02 / 4 if "output" in (kind, last) else 0.02
            rough = 0.25 if last == "table" else 0.1  # of a distance, one number per head
            assert parameter.std().item() == pytest.approx(expected, rel=rough), name
            assert abs(parameter.mean().item()) < 2 * rough * expected, name


def test_an_untrained_model_knows_nothing(zoo: Any, config: Config) -> None:
    loss = scored(zoo, zoo.build(config), rows=8)
    assert loss.item() == pytest.approx(torch.tensor(zoo.vocab).log().item(), rel=0.02)


def test_the_seed_decides_the_weights(zoo: Any, config: Config) -> None:
    first, same, other = (zoo.build(config, seed) for seed in (0, 0, 1))
    pairs = zip(first.state_dict().items(), same.state_dict().values(), strict=True)
    assert all(torch.equal(weight, again) for (_, weight), again in pairs)
    tokens = zoo.tokens(config, 1, 4)
    assert not torch.equal(zoo.read(first, tokens), zoo.read(other, tokens))


def test_weights_survive_safetensors(zoo: Any, config: Config, tmp_path: Path) -> None:
    model, other = zoo.build(config, 0).eval(), zoo.build(config, 1).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    tokens = zoo.tokens(config, 2, zoo.context)
    assert torch.equal(zoo.read(model, tokens), zoo.read(other, tokens))


# --- compiling and checkpointing ------------------------------------------------------------------


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", COMPILED)
def test_compiling_needs_no_graph_break(zoo: Any, name: str) -> None:
    config = zoo.small(name)
    model, tokens = zoo.build(config).eval(), zoo.tokens(config, 2, zoo.context)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    documents = zoo.documents(*zoo.lengths).expand(2, -1)
    packed = {} if isinstance(model, EncoderDecoder) else {"documents": documents}
    for places in ({}, packed):
        inputs = {**zoo.beside(model, 2), **places}
        expected = model(tokens, **inputs)
        torch.testing.assert_close(compiled(tokens, **inputs), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.usefixtures("compiler")
def test_a_mixture_compiles_without_a_graph_break_in_bfloat16(zoo: Any) -> None:
    """And with one in float32, whose grouped product torch cannot trace: not at all before."""
    config = zoo.small("moe")
    model, tokens = zoo.build(config).eval(), zoo.tokens(config, 2, zoo.context)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(whole(tokens), model(tokens), rtol=2e-2, atol=2e-2)
    torch._dynamo.reset()
    parts = torch.compile(model, backend="eager")
    torch.testing.assert_close(parts(tokens), model(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_model_is_the_same_model(zoo: Any, name: str) -> None:
    config = zoo.small(name)
    model = zoo.excited(zoo.build(config)).eval()
    tokens, inputs = zoo.tokens(config, 2, zoo.context), zoo.beside(model, 2)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(tokens, **inputs), model(tokens, **inputs), rtol=1e-4, atol=1e-4
        )


def test_checkpointing_changes_no_gradient_and_keeps_less(zoo: Any, config: Config) -> None:
    model = zoo.build(config)
    if isinstance(model, CharRNN):
        assert model.checkpointing is None, "stated: it has no layers to compute again"
        pytest.skip("a recurrent network is one call")
    gradients, kept = [], []
    for model.checkpointing in (False, True):
        torch.manual_seed(3)  # a router's noise
        model.zero_grad()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            loss = scored(zoo, model)
        kept.append(sum(sizes))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-7)
    assert kept[1] < 0.5 * kept[0]


# --- learning, and what is refused ----------------------------------------------------------------


def test_a_model_learns_to_repeat(zoo: Any, config: Config) -> None:
    """The loss of a fixed pattern falls to near nothing: gradients point the right way. A denoiser
    says what it reads; a decoder what comes next."""
    model = zoo.build(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = (torch.arange(zoo.context + 1) % 5).repeat(4, 1)
    if getattr(config, "codebooks", 1) > 1:
        tokens = tokens.unsqueeze(-1).expand(-1, -1, config.codebooks)  # type: ignore[attr-defined]
    read, wanted = tokens[:, :-1], tokens[:, :-1] if isinstance(model, Denoiser) else tokens[:, 1:]
    for _ in range(150 if isinstance(model, CharRNN) else 40):
        logits = zoo.read(model, read).flatten(0, -2)
        loss = nn.functional.cross_entropy(logits, wanted.flatten())
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
