"""Under which names and in which layout does the Hugging Face hub keep the same weights?

Two layouts differ. GPT-2's matrices are stored as (input, output) there. And rotary pairs are
neighbours here, 2i and 2i + 1, as in the paper and in Meta's weights, but i and i + K/2 there: the
rows of each head of a query or key matrix are in another order. We keep products of the same input
in one matrix.

Letters: D width, K head size, E experts, F inner width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models import GPT2Config, LlamaConfig, MoEConfig, SerialT5Config
from models.decoder import DecoderConfig, RotaryConfig

if TYPE_CHECKING:
    from torch import Tensor

    from models.interface import Config

# What older files hold besides weights: masks and tables that follow from the configuration.
DERIVED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# And of T5: copies of its one table, and biases that nothing reads.
COPIES = (".embed_tokens.weight", ".EncDecAttention.relative_attention_bias.weight")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One tensor of ours, and what it is made of there: rows of `rows` each, one below another."""

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()  # of each part, if there are several
    turned: int = 0  # the head size K, where the first two parts are queries and keys
    transposed: bool = False

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Their tensors as ours."""
        import torch

        parts = [_need(tensors, name) for name in self.theirs]
        if self.transposed:
            parts = [part.T for part in parts]
        if self.turned:
            parts[:2] = [neighbours(part, self.turned) for part in parts[:2]]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def split(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Ours as their tensors, by name."""
        import torch

        parts = list(torch.split(tensor, list(self.rows))) if self.rows else [tensor]
        if self.turned:
            parts[:2] = [halves(part, self.turned) for part in parts[:2]]
        for name, part in zip(self.theirs, parts, strict=True):
            yield name, part.T if self.transposed else part


def neighbours(weight: Tensor, size: int) -> Tensor:
    """The rows of each head from their order (i beside i + K/2) to ours (2i beside 2i + 1)."""
    return weight.view(-1, 2, size // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def halves(weight: Tensor, size: int) -> Tensor:
    """The other way round."""
    return weight.view(-1, size // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def from_theirs(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict. Raises ValueError for a tensor that is missing, or that has no place."""
    known = {n: t for n, t in tensors.items() if not n.endswith(DERIVED)}
    if isinstance(config, SerialT5Config):
        known = {n: t for n, t in known.items() if not n.endswith(COPIES)}
        known.setdefault("lm_head.weight", _need(known, "shared.weight"))
    if isinstance(config, GPT2Config):  # the published file leaves the prefix out
        bare = not any(name.startswith("transformer.") for name in known)
        known = {f"transformer.{n}" if bare and n != "lm_head.weight" else n: t
                 for n, t in known.items()}  # fmt: skip
    if isinstance(config, DecoderConfig) and config.embedding_is_head:
        known.pop("lm_head.weight", None)
    pieces = list(_pieces(config))
    ours = {piece.ours: piece.join(known) for piece in pieces}
    used = {name for piece in pieces for name in piece.theirs}
    if isinstance(config, MoEConfig):
        for layer in range(config.depth):
            ours |= _experts(known, layer, config.routing.experts, used)
    if unknown := sorted(known.keys() - used):
        raise ValueError(f"the weights hold {unknown[0]!r}, which has no place in {config.name}")
    return ours


def to_theirs(config: Config, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, by name, for a model that `shapes.described` accepts."""
    assert isinstance(config, GPT2Config | LlamaConfig)
    return {name: part for piece in _pieces(config) for name, part in piece.split(ours[piece.ours])}


def _need(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"the weights lack {name!r}")
    return tensors[name]


def _pieces(config: Config) -> Iterator[Piece]:
    if isinstance(config, GPT2Config):
        return _gpt2(config)
    if isinstance(config, SerialT5Config):
        return _t5(config)
    assert isinstance(config, LlamaConfig | MoEConfig)
    return _rotary(config)


def _gpt2(config: GPT2Config) -> Iterator[Piece]:
    yield Piece(ours="embedding.weight", theirs=("transformer.wte.weight",))
    yield Piece(ours="positions.weight", theirs=("transformer.wpe.weight",))
    names = {
        "attention_norm": "ln_1",
        "attention.query_key_value": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.input": "mlp.c_fc",
        "feed_forward.output": "mlp.c_proj",
    }
    for layer in range(config.depth):
        for our, their in names.items():
            for kind in ("weight", "bias"):
                yield Piece(
                    ours=f"blocks.{layer}.{our}.{kind}",
                    theirs=(f"transformer.h.{layer}.{their}.{kind}",),
                    transposed=kind == "weight" and "norm" not in our,
                )
    for kind in ("weight", "bias"):
        yield Piece(ours=f"norm.{kind}", theirs=(f"transformer.ln_f.{kind}",))


def _rotary(config: RotaryConfig) -> Iterator[Piece]:
    """LLaMA, and of Mixtral all but the experts."""
    yield Piece(ours="embedding.weight", theirs=("model.embed_tokens.weight",))
    shared = config.key_value_heads * config.size
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        norms = {"attention": "input_layernorm", "feed_forward": "post_attention_layernorm"}
        for our, their in norms.items():
            yield Piece(ours=f"{ours}.{our}_norm.weight", theirs=(f"{theirs}.{their}.weight",))
        yield Piece(
            ours=f"{ours}.attention.query_key_value.weight",
            theirs=tuple(f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"),
            rows=(config.width, shared, shared),
            turned=config.size,
        )
        yield Piece(
            ours=f"{ours}.attention.output.weight", theirs=(f"{theirs}.self_attn.o_proj.weight",)
        )
        if isinstance(config, MoEConfig):
            continue
        yield Piece(
            ours=f"{ours}.feed_forward.gate_up.weight",
            theirs=(f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight"),
            rows=(config.inner, config.inner),
        )
        yield Piece(
            ours=f"{ours}.feed_forward.output.weight", theirs=(f"{theirs}.mlp.down_proj.weight",)
        )
    yield Piece(ours="norm.weight", theirs=("model.norm.weight",))
    if not config.tied:
        yield Piece(ours="unembedding.weight", theirs=("lm_head.weight",))


def _t5(config: SerialT5Config) -> Iterator[Piece]:
    """An encoder layer is self-attention and feed-forward, a decoder layer reads the source between
    the two. The first layer of each side holds the biases of all."""
    yield Piece(ours="embedding.weight", theirs=("shared.weight",))
    yield Piece(ours="unembedding.weight", theirs=("lm_head.weight",))
    for side, table, norm in (
        ("encoder", "encoder_distances.table", "encoder_norm.weight"),
        ("decoder", "distances.table", "norm.weight"),
    ):
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Piece(ours=table, theirs=(first,))
        yield Piece(ours=norm, theirs=(f"{side}.final_layer_norm.weight",))
        for layer in range(config.depth):
            yield from _t5_layer(side, layer)


def _t5_layer(side: str, layer: int) -> Iterator[Piece]:
    ours, theirs = f"{side}.{layer}", f"{side}.block.{layer}.layer"
    own, cross = f"{theirs}.0.SelfAttention", f"{theirs}.1.EncDecAttention"
    last = 1 if side == "encoder" else 2
    inside = f"{theirs}.{last}.DenseReluDense"
    parts = {
        "attention_norm": (f"{theirs}.0.layer_norm",),
        "attention.query_key_value": tuple(f"{own}.{part}" for part in "qkv"),
        "attention.output": (f"{own}.o",),
        "feed_forward_norm": (f"{theirs}.{last}.layer_norm",),
        "feed_forward.gate_up": (f"{inside}.wi_0", f"{inside}.wi_1"),
        "feed_forward.output": (f"{inside}.wo",),
    }
    if side == "decoder":
        parts |= {
            "cross_norm": (f"{theirs}.1.layer_norm",),
            "query": (f"{cross}.q",),
            "key_value": (f"{cross}.k", f"{cross}.v"),
            "output": (f"{cross}.o",),
        }
    for our, names in parts.items():
        tensors = tuple(f"{name}.weight" for name in names)
        yield Piece(ours=f"{ours}.{our}.weight", theirs=tensors)


def _experts(
    tensors: Mapping[str, Tensor], layer: int, experts: int, used: set[str]
) -> dict[str, Tensor]:
    """Mixtral's router and experts: gate w1 (F, D), up w3 (F, D), output w2 (D, F) of each."""
    import torch

    ours = f"blocks.{layer}.feed_forward"
    theirs = f"model.layers.{layer}.block_sparse_moe"
    names = [
        [f"{theirs}.experts.{expert}.{part}.weight" for part in ("w1", "w3", "w2")]
        for expert in range(experts)
    ]
    router = f"{theirs}.gate.weight"
    used |= {router, *(name for of_one in names for name in of_one)}
    gate_up = [torch.cat([_need(tensors, name) for name in of_one[:2]]).T for of_one in names]
    return {
        f"{ours}.router.choose.weight": _need(tensors, router),
        f"{ours}.gate_up": torch.stack(gate_up),
        f"{ours}.output": torch.stack([_need(tensors, of_one[2]).T for of_one in names]),
    }
