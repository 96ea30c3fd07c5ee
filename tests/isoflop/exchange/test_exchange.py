"""Do models of the Hugging Face hub come in, and ours go out, with the same logits?"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from isoflop.exchange import load_model, save_model
from isoflop.rollouts.generate import generate
from isoflop.rollouts.sampling import Sampling
from isoflop.targets import Framing
from models import Config, GPT2Config, LformerConfig, LlamaConfig, MoEConfig, SerialT5Config
from models.interface import Model, Scales
from models.layers import RopeScaling

transformers = pytest.importorskip("transformers", reason="parity needs the dev extra")

ROTARY: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}
YARN = {
    "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 8,
}  # fmt: skip

Make = Callable[[], torch.nn.Module]


def gpt2() -> torch.nn.Module:
    shape = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
    config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def llama(**changes: Any) -> torch.nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**ROTARY | changes))  # type: ignore[no-any-return]


def mixtral() -> torch.nn.Module:
    config = transformers.MixtralConfig(**ROTARY, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)  # type: ignore[no-any-return]


def t5(**changes: Any) -> torch.nn.Module:
    """Version 1.1, or with its head tied and its states scaled before it."""
    shape = {
        "vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
        "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "tie_word_embeddings": False,
        "decoder_start_token_id": 0, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    config = transformers.T5Config(**shape | changes)
    return transformers.T5ForConditionalGeneration(config)  # type: ignore[no-any-return]


THEIRS: dict[str, Make] = {
    "gpt2": gpt2,
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama-linear": lambda: llama(rope_parameters=LINEAR),
    "llama-yarn": lambda: llama(rope_parameters=YARN),
    "mixtral": mixtral,
}


def published(make: Make, folder: Path, **how: Any) -> torch.nn.Module:
    """A model of theirs with random weights, norms and biases included, and its folder."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder, **how)  # type: ignore[operator]
    return model


def tokens() -> Tensor:
    return torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))


def assert_same_logits(ours: Model, theirs: torch.nn.Module) -> None:
    with torch.no_grad():
        expected = theirs(tokens()).logits
        torch.testing.assert_close(ours(tokens()), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1, "logits that are all alike would prove nothing"


# --- in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THEIRS)
def test_what_transformers_saved_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs = published(THEIRS[name], tmp_path / "model")
    ours = load_model(tmp_path / "model")
    assert not ours.training
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_t5_comes_in_with_the_same_logits(tied: bool, separate: bool, tmp_path: Path) -> None:
    """`separate`: with a head of its own in the file, as in the published files of version 1.1."""
    theirs = published(lambda: t5(tie_word_embeddings=tied), tmp_path)
    if separate:
        weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
        theirs.lm_head.weight = torch.nn.Parameter(
            theirs.lm_head.weight + 0.1 * torch.randn(61, 32)
        )  # type: ignore[union-attr]
        weights |= {"lm_head.weight": theirs.lm_head.weight.detach()}  # type: ignore[union-attr,dict-item]
        weights["encoder.embed_tokens.weight"] = weights["shared.weight"].clone()
        safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    ours = load_model(tmp_path)
    assert isinstance(ours.config, SerialT5Config) and ours.config.context == 512
    with torch.no_grad():
        expected = theirs(input_ids=tokens(), decoder_input_ids=tokens()[:, :9]).logits
        found = ours(tokens()[:, :9], source=tokens())
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied", "mixtral", "t5"])
def test_greedy_text_is_what_transformers_writes(name: str, tmp_path: Path) -> None:
    theirs = published(t5 if name == "t5" else THEIRS[name], tmp_path)
    ours, prompts = load_model(tmp_path), tokens()[:, :10]
    # The library's decoder behind an encoder begins with id 0, ours with what a framing says.
    framing = Framing(start=(0,)) if name == "t5" else None
    rows = generate(
        ours, [row.numpy() for row in prompts], [[0]] * 3, Sampling(0.0, 12, ()), framing
    )
    written = theirs.generate(  # type: ignore[operator]
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=12, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    expected = written[:, 1:] if name == "t5" else written[:, 10:]
    assert [row.completion_ids.tolist() for row in rows] == expected.tolist()


def test_a_model_in_several_files(tmp_path: Path) -> None:
    theirs = published(llama, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_logits(load_model(tmp_path), theirs)


def test_the_published_gpt2_has_no_prefix_and_holds_its_masks(tmp_path: Path) -> None:
    theirs = published(gpt2, tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
    safetensors.torch.save_file(bare, tmp_path / "model.safetensors")
    assert_same_logits(load_model(tmp_path), theirs)


def test_older_spellings_of_rotary_positions(tmp_path: Path) -> None:
    theirs = published(THEIRS["llama-linear"], tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"]
    values |= {"rope_theta": 5e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert_same_logits(load_model(tmp_path), theirs)


def test_half_precision_comes_in_as_float32(tmp_path: Path) -> None:
    published(lambda: llama().bfloat16(), tmp_path)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}


def test_mixtrals_experts_are_ours(tmp_path: Path) -> None:
    published(mixtral, tmp_path)
    config = load_model(tmp_path).config
    assert isinstance(config, MoEConfig)
    assert (config.routing.experts, config.routing.top, config.routing.every) == (4, 2, 1)


# --- out -----------------------------------------------------------------------------------------

SHAPE: dict[str, Any] = {"vocab": 61, "context": 24, "width": 32, "depth": 2, "heads": 4}
OURS: dict[str, Config] = {
    "gpt2": GPT2Config(**SHAPE),
    "llama": LlamaConfig(**SHAPE, kv_heads=2),
    "llama-tied": LlamaConfig(**SHAPE, tied=True, norm_epsilon=1e-6, rope_theta=5e5),
    "llama-ntk": LlamaConfig(**SHAPE, rope_scaling=RopeScaling(kind="ntk", factor=4.0)),
    "llama-yarn": LlamaConfig(
        **SHAPE, rope_scaling=RopeScaling(kind="yarn", factor=4.0, original=8, fast=16.0)
    ),
}


def trained(config: Config) -> Model:
    """Ours with random weights, norms and biases included."""
    torch.manual_seed(0)
    model = config.build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


@pytest.mark.parametrize("name", OURS)
def test_transformers_reads_what_we_wrote(name: str, tmp_path: Path) -> None:
    ours = trained(OURS[name])
    save_model(ours, tmp_path / "out")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, local_files_only=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_logits(ours, theirs.eval())


@pytest.mark.parametrize("name", OURS)
def test_out_and_in_again_is_the_same_model(name: str, tmp_path: Path) -> None:
    ours = trained(OURS[name])
    save_model(ours, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert ours.state_dict().keys() == again.state_dict().keys()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    torch.testing.assert_close(again(tokens()), ours(tokens()))


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        save_model(trained(OURS["gpt2"]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_model(trained(OURS["gpt2"]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LformerConfig(**SHAPE), "the model is 'lformer'; it must be one of gpt2, llama"),
        (replace(OURS["gpt2"], scales=Scales(logits=0.5)), "scales is .* cannot be written"),
    ],
)
def test_what_has_no_form_there_is_refused(config: Config, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_model(config.build(), tmp_path / "out")


# --- what is not read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "field", "value", "message"),
    [
        (gpt2, "model_type", "bloom", "model_type is 'bloom'; it must be one of gpt2, llama"),
        (gpt2, "activation_function", "relu", "activation_function is 'relu'"),
        (gpt2, "n_inner", 100, "n_inner is 100; it must be one of None, 128"),
        (gpt2, "n_embd", None, "n_embd is missing"),
        (gpt2, "n_positions", 25, "positions.weight is \\(24, 32\\)"),
        (llama, "hidden_act", "gelu", "hidden_act is 'gelu'"),
        (llama, "attention_bias", True, "attention_bias is True"),
        (llama, "head_dim", 16, "head_dim is 16"),
        (llama, "rope_parameters", {"rope_type": "llama3", "factor": 8.0}, "rope_type is 'llama3'"),
        (llama, "rope_parameters", {**YARN, "mscale": 2.0}, "rope scaling with 'mscale'"),
        (llama, "num_hidden_layers", 3, "the weights lack 'model.layers.2"),
        (llama, "num_hidden_layers", 1, "the weights hold 'model.layers.1"),
        (mixtral, "sliding_window", 8, "sliding_window is 8"),
        (mixtral, "num_experts_per_tok", 1, "num_experts_per_tok is 1"),
        (t5, "feed_forward_proj", "relu", "feed_forward_proj is 'relu'"),
        (t5, "feed_forward_proj", None, "feed_forward_proj is None"),
        (t5, "d_kv", 6, "d_kv is 6; it must be one of 8"),
        (t5, "num_decoder_layers", 3, "num_decoder_layers is 3"),
        (t5, "num_layers", 3, "num_decoder_layers is 2"),
    ],
)
def test_what_ours_cannot_express_is_refused_by_name(
    make: Make, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    published(make, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, field: value}))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    published(gpt2, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights"):
        load_model(tmp_path)


def test_an_index_may_name_files_of_its_own_folder_only(tmp_path: Path) -> None:
    published(gpt2, tmp_path / "inner")
    (tmp_path / "inner" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../outside.safetensors"}}
    (tmp_path / "inner" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no file of that folder"):
        load_model(tmp_path / "inner")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_readable_config_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(tmp_path)
