"""What does every model of the zoo promise, and what may the platform ask of it?

A model is a frozen `Config` that counts itself and builds itself, and a `Model` that turns token
ids into logits. The platform knows these two classes and no model by name.

Letters: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from models.attention import Backend
    from models.cache import Cache, CacheKind


# What a parameter is to the network, as far as its scale goes; the rules for each are in
# `isoflop/training/parametrisation.py`.
#   embedding  a table of tokens or positions
#   hidden     a matrix from a number that grows with the width to another
#   residual   one of those that writes into the residual stream
#   head       a matrix from the width to a number that does not grow: the output head, a router
#   vector     norms, biases, scalars
#   shift      those of them whose effects on the residual stream add up over the layers
Role = Literal["embedding", "hidden", "residual", "head", "vector", "shift"]


Value = TypeVar("Value")


def younger(default: Value) -> Value:
    """A field that came after the first runs had finished. At its default, which is what they did,
    it does not count in a run's identity: they stay finished."""
    made: Value = field(default=default, metadata={"younger": True})
    return made


@dataclass(frozen=True, eq=False)
class Head:
    """The map from hidden states (..., D) to logits (..., V), as a loss is given it."""

    model: Model
    matrix: Tensor | None  # (V, D), where the map is the product with it and nothing else

    def __call__(self, states: Tensor) -> Tensor:
        return self.model.head(states)


# Final hidden states (B, T, D) and the head, to any tensor.
Score = Callable[[Tensor, Head], Tensor]


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """The size of a model in the three conventions of the literature; exponents depend on the
    choice.

    A matrix that is both input embedding and output head (tied) stays in `without_input_embedding`:
    it takes part in a matrix product. A table of learned positions is an input embedding.
    """

    all: int
    without_input_embedding: int  # Porian et al. 2024: all that multiplies, the head included
    without_embeddings: int  # Kaplan et al. 2020: neither the embeddings nor the head
    active: int = 0  # of all, what one token passes through; fewer where experts are routed

    def __post_init__(self) -> None:
        if not self.active:
            object.__setattr__(self, "active", self.all)


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """Floating-point operations of one token's forward pass at a stated context, matrix products
    only.

    A product of (m, k) by (k, n) counts 2mkn; attention counts every pair of the T x T square, as
    torch's own counter and the published laws do, although a causal kernel may skip half of them.
    """

    body: int  # the layers' linear maps
    attention: int  # queries by keys, and weights by values
    head: int  # the output logits

    @property
    def forward(self) -> int:
        return self.body + self.attention + self.head

    @property
    def training(self) -> int:
        """Forward and backward: each product is redone for its inputs and for its weights."""
        return 3 * self.forward

    @property
    def recomputed(self) -> int:
        """What activation checkpointing computes again, beside `training`: it is work of the
        machine, and no part of what a law calls compute."""
        return self.body + self.attention


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Factors in the forward pass by which a parametrisation keeps it alike at every width.

    1 is the standard parametrisation. See `isoflop/training/parametrisation.py`.
    """

    logits: float = 1.0
    attention: float = 1.0  # beside the usual 1 / sqrt(head size)

    def __post_init__(self) -> None:
        for name in ("logits", "attention"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"scales.{name} is {value!r}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """One model's shape. Subclasses add their fields (about 12 in all) and say how they count."""

    name: ClassVar[str]  # how configurations on disk and in studies call this architecture
    # What it does with a sequence, and so which objectives it can learn: go on from it (decoder),
    # read one and write another (encoder-decoder), or fill its gaps (denoiser).
    family: ClassVar[str] = "decoder"

    vocab: int = 0  # token ids the model knows; 0 until a run takes it from its tokenizer
    context: int = 128  # longest sequence, in tokens
    markers: int = 0  # of these ids, the last ones that are no text: a mask, sentinels
    scales: Scales = younger(Scales())

    @property
    def text_vocab(self) -> int:
        """The ids of a tokenizer: those below the markers."""
        return self.vocab - self.markers

    @abstractmethod
    def build(self) -> Model:
        """The module with freshly initialised weights, drawn from torch's default generator."""

    @abstractmethod
    def parameters(self) -> ParameterCount:
        """Equal to what the built module holds, without building it."""

    @abstractmethod
    def flops_per_token(self, context: int | None = None) -> FlopCount:
        """For sequences of `context` tokens (default: the model's own)."""


class Model(nn.Module, ABC):
    """A language model: token ids to logits. It never owns a cache; the caller does.

    `backend` and `checkpointing` say how a machine computes the model, and not which model it is.
    """

    config: Config
    backend: Backend = "sdpa"  # how attention is computed here; changes no more than the rounding
    # In training, keep only what goes into each layer and compute its inside again for the gradient
    # (Chen et al. 2016): memory for about a third more computation, no number changed. None: the
    # model cannot; those that can go `through` their layers.
    checkpointing: bool | None = None

    @abstractmethod
    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D).

        With a cache, the T tokens follow what it holds and are added to it. With `documents`
        (B, T), a token reads its own document only: the run of equal ids around it (-1 is padding,
        whose states mean nothing). `positions` (T,) or (B, T) count from 0 and go on from what the
        cache holds if left out; with documents, they begin anew at each. Documents and a cache do
        not go together: ValueError.
        """

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V)."""

    @abstractmethod
    def new_cache(self, batch: int, length: int, kind: CacheKind = "static") -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens, on the model's device and
        dtype. Raises ValueError for a kind that the model cannot use.
        """

    def through(self, block: nn.Module, *inputs: Any) -> Tensor:
        """What a layer gives, by way of `checkpointing` where that is asked for."""
        again = bool(self.checkpointing) and self.training and torch.is_grad_enabled()
        y: Tensor = checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)
        return y

    def matrix(self) -> Tensor | None:
        """The weights (V, D) of a head that is the product with them and nothing else."""
        return None

    def auxiliary(self) -> dict[str, Tensor]:
        """What the last forward pass in training mode adds to the loss, by name: scalars in nats
        per token, already weighted (a router's balance, say). None for most models.
        """
        return {}

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, by its name in `named_parameters`.

        By the names that models of this zoo use: what writes into the residual stream is called
        `output`, a head of its own `unembedding`. A model that names otherwise says so itself.
        """
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        found: dict[str, Role] = {}
        for name, parameter in self.named_parameters():
            parts = name.split(".")
            if id(parameter) in tables:
                found[name] = "embedding"
            elif parameter.ndim < 2:
                found[name] = "shift" if "output" in parts else "vector"
            elif "unembedding" in parts:
                found[name] = "head"
            else:
                found[name] = "residual" if "output" in parts else "hidden"
        return found

    def measures(self) -> dict[str, Tensor]:
        """What the last forward pass tells about itself, by the names it is logged under."""
        return {}

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        score: Score | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Token ids (B, T) to logits (B, T, V); the further `inputs` are those of `hidden`.

        With `score`, gives that of the final states and the head instead: a loss that need not hold
        all logits at once, or that looks at the states themselves, still is one call of the module.
        """
        states = self.hidden(tokens, cache, **inputs)
        return self.head(states) if score is None else score(states, Head(self, self.matrix()))


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(Config, ABC):
    """Reads one sequence and writes another. `context` tokens of text become both."""

    family: ClassVar[str] = "encoder-decoder"

    source: int = 0  # positions that the encoder reads; 0: the context, until a run's objective
    target: int = 0  # positions that the decoder writes, likewise


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(Config, ABC):
    """Fills the gaps of a sequence, all of which it sees."""

    family: ClassVar[str] = "denoiser"


class EncoderDecoder(Model):
    """Writes one sequence (`tokens`) after it has read another one whole (`source`)."""

    config: EncoderDecoderConfig

    @abstractmethod
    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        source: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """What the decoder has been given, (B, T), to its final states (B, T, D).

        `source` (B, S) is read by the encoder, where `present` (B, S) is true; all of it, if left
        out. A cache keeps what the encoder said: only its first call takes a source. Documents and
        positions are refused: a row is one document, and positions are relative.
        """


class Denoiser(Model):
    """Says at every position which token stands there, from all tokens on both sides.

    Hidden tokens are given as the blank, the last id of the vocabulary.
    """

    config: DenoiserConfig

    @abstractmethod
    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D).

        `times` (B,) is the share of each row's tokens that is hidden, for models that are told;
        counted if left out. There is no cache: every token reads every other one.
        """

    def new_cache(self, batch: int, length: int, kind: CacheKind = "static") -> Cache:
        """Raises ValueError: what a token reads may still change."""
        raise ValueError(f"{self.config.name} reads in both directions and knows no cache")
