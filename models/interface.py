"""What does every model of the zoo promise, and what may the platform ask of it?

A model is a frozen `Config` that counts itself and builds itself, and a `Model` that turns token
ids into logits. The platform knows these two classes and no model by name.

Letters: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from models.cache import KeyValueCache


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


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """One model's shape. Subclasses add their fields (about 12 in all) and say how they count."""

    name: ClassVar[str]  # how configurations on disk and in studies call this architecture

    vocab: int = 0  # token ids the model knows; 0 until a run takes it from its tokenizer
    context: int = 128  # longest sequence, in tokens

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
    """A language model: token ids to logits. It never owns a cache; the caller does."""

    config: Config

    @abstractmethod
    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D).

        With a cache, the T tokens follow what it holds and are added to it.
        """

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V)."""

    @abstractmethod
    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """An empty cache for `batch` rows of at most `length` tokens, on the model's device and
        dtype.
        """

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Token ids (B, T) to logits (B, T, V)."""
        logits: Tensor = self.head(self.hidden(tokens, cache))
        return logits
