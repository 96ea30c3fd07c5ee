"""Which of our configurations is a `config.json`, and the other way round?

What our models cannot express is refused by name, rather than read as something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models import GPT2Config, LlamaConfig, MoEConfig, SerialT5Config
from models.interface import Config, Scales
from models.layers import RopeScaling
from models.moe import Routing

ROPE_DEFAULT = 10_000.0
T5_CONTEXT = 512


def config_of(theirs: Mapping[str, Any]) -> Config:
    """Raises ValueError that names the field, its value and what is allowed."""
    kind = theirs.get("model_type")
    if kind == "gpt2":
        return _gpt2(theirs)
    if kind == "llama":
        return LlamaConfig(**_rotary(theirs))
    if kind == "mixtral":
        return _mixtral(theirs)
    if kind == "t5":
        return _t5(theirs)
    raise ValueError(f"model_type is {kind!r}; it must be one of gpt2, llama, mixtral, t5")


def described(config: Config) -> dict[str, Any]:
    """The `config.json` of one of ours. Raises ValueError for a model that has none."""
    if config.scales != Scales():
        raise ValueError(
            f"scales is {config.scales}; a model with factors in its forward pass "
            f"(parametrisation mup or completep) cannot be written in this form"
        )
    if isinstance(config, GPT2Config):
        return _described_gpt2(config)
    if isinstance(config, LlamaConfig):
        return _described_llama(config)
    raise ValueError(f"the model is {config.name!r}; it must be one of gpt2, llama to be exported")


def _demand(theirs: Mapping[str, Any], **allowed: tuple[Any, ...]) -> None:
    """Every field that is there has one of the allowed values."""
    for name, values in allowed.items():
        if name in theirs and theirs[name] not in values:
            raise ValueError(
                f"{name} is {theirs[name]!r}; it must be one of {', '.join(map(repr, values))}"
            )


def _need(theirs: Mapping[str, Any], name: str) -> Any:
    if theirs.get(name) is None:
        raise ValueError(f"{name} is missing from config.json")
    return theirs[name]


def _gpt2(theirs: Mapping[str, Any]) -> GPT2Config:
    width = _need(theirs, "n_embd")
    _demand(
        theirs,
        activation_function=("gelu_new", "gelu_pytorch_tanh"),
        layer_norm_epsilon=(1e-5,),
        n_inner=(None, 4 * width),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        tie_word_embeddings=(True,),
        add_cross_attention=(False,),
    )
    return GPT2Config(
        vocab=_need(theirs, "vocab_size"),
        context=_need(theirs, "n_positions"),
        width=width,
        depth=_need(theirs, "n_layer"),
        heads=_need(theirs, "n_head"),
    )


def _rotary(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that LLaMA and Mixtral share."""
    width, heads = _need(theirs, "hidden_size"), _need(theirs, "num_attention_heads")
    _demand(
        theirs,
        hidden_act=("silu",),
        attention_bias=(False,),
        mlp_bias=(False,),
        head_dim=(None, width // heads),
    )
    theta, scaling = _rope(theirs)
    return {
        "vocab": _need(theirs, "vocab_size"),
        "context": _need(theirs, "max_position_embeddings"),
        "width": width,
        "depth": _need(theirs, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": theirs.get("num_key_value_heads") or heads,
        "ffn": _need(theirs, "intermediate_size"),
        "norm_epsilon": theirs.get("rms_norm_eps", 1e-6),  # theirs, where it is left out
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tied": bool(theirs.get("tie_word_embeddings", False)),
    }


def _rope(theirs: Mapping[str, Any]) -> tuple[float, RopeScaling]:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    values = dict(theirs.get("rope_parameters") or theirs.get("rope_scaling") or {})
    theta = float(values.pop("rope_theta", None) or theirs.get("rope_theta") or ROPE_DEFAULT)
    kind: Any = values.pop("rope_type", None) or values.pop("type", None) or "default"
    values.pop("type", None)
    if kind == "default":
        return theta, RopeScaling()
    if kind not in ("linear", "yarn"):
        raise ValueError(f"rope_type is {kind!r}; it must be one of default, linear, yarn")
    original = values.pop("original_max_position_embeddings", None)
    fast, slow = values.pop("beta_fast", None), values.pop("beta_slow", None)
    factor = values.pop("factor", 1.0)
    if unknown := sorted(name for name, value in values.items() if value is not None):
        raise ValueError(f"rope scaling with {unknown[0]!r} is not known here; {kind} is, without")
    scaling = RopeScaling(
        kind=kind,
        factor=float(factor),
        original=int(original or (theirs["max_position_embeddings"] if kind == "yarn" else 0)),
        fast=float(fast or 32.0),
        slow=float(slow or 1.0),
    )
    return theta, scaling


def _mixtral(theirs: Mapping[str, Any]) -> MoEConfig:
    _demand(theirs, sliding_window=(None,), router_jitter_noise=(0, 0.0))
    routing = Routing(
        experts=_need(theirs, "num_local_experts"),
        top=_need(theirs, "num_experts_per_tok"),
        every=1,
        noise=0.0,
        balance=float(theirs.get("router_aux_loss_coef", 0.001)),
        z=0.0,
    )
    if routing.top == 1:
        raise ValueError("num_experts_per_tok is 1; it must be at least 2: theirs counts it whole")
    return MoEConfig(**_rotary(theirs), routing=routing)


def _t5(theirs: Mapping[str, Any]) -> SerialT5Config:
    """Version 1.1 (also FLAN's): gated, and as deep on both sides. Its positions are relative, so
    that its context is what it was trained on."""
    width, depth = _need(theirs, "d_model"), _need(theirs, "num_layers")
    heads = _need(theirs, "num_heads")
    _demand(
        theirs,
        feed_forward_proj=("gated-gelu",),
        num_decoder_layers=(None, depth),
        d_kv=(width // heads,),
        layer_norm_epsilon=(1e-6,),
    )
    _need(theirs, "feed_forward_proj")  # left out, it is relu
    return SerialT5Config(
        vocab=_need(theirs, "vocab_size"),
        context=int(theirs.get("n_positions") or T5_CONTEXT),
        width=width,
        depth=depth,
        heads=heads,
        ffn=_need(theirs, "d_ff"),
        buckets=theirs.get("relative_attention_num_buckets", 32),
        distance=theirs.get("relative_attention_max_distance", 128),
    )


def head_factor(theirs: Mapping[str, Any]) -> float:
    """What a head's weights are multiplied by: a T5 whose head is its embedding too scales the
    states before it, and ours has a head of its own."""
    if theirs.get("model_type") != "t5":
        return 1.0
    tied = theirs.get("tie_word_embeddings") is not False
    scaled: bool = theirs.get("scale_decoder_outputs", tied)
    return float(_need(theirs, "d_model") ** -0.5) if scaled else 1.0


def _described_gpt2(config: GPT2Config) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": None,  # theirs default to ids that our vocabularies need not have
        "eos_token_id": None,
    }


def _described_llama(config: LlamaConfig) -> dict[str, Any]:
    scaling, theta = config.rope_scaling, config.rope_theta
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling.factor != 1 and scaling.kind == "ntk":  # which is nothing but another theta
        theta *= scaling.factor ** (config.size / max(1, config.size - 2))
    elif scaling.factor != 1:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "yarn":
            rope |= {
                "original_max_position_embeddings": scaling.original,
                "beta_fast": scaling.fast,
                "beta_slow": scaling.slow,
            }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm_epsilon,
        # Both spellings: transformers 5 reads the first, older releases the other two.
        "rope_parameters": {"rope_theta": theta, **rope},
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }
