"""What does a recurrent network make of the same text? An LSTM or GRU, stacked, as a baseline.

Hochreiter & Schmidhuber 1997; Cho et al. 2014; as a language model of characters: Graves 2013,
Karpathy 2015. All it knows of the past is its hidden state, which is its cache too. It has no
positions and no attention, so that a document only needs a state of its own.

Letters: B batch, T tokens, D width, L layers, N documents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import starts
from models.cache import Cache, CacheKind, StateCache, check_sizes
from models.interface import Config, FlopCount, Model, ParameterCount, Role, Scales
from models.layers import check_places, check_shape, require, restarting

GATES = {"lstm": 4, "gru": 3}


@dataclass(frozen=True, kw_only=True)
class CharRNNConfig(Config):
    """The input embedding is the output head too (tied), as in the decoders."""

    name: ClassVar[str] = "char_rnn"

    width: int  # D, of the embedding and of every layer's state
    depth: int  # L
    cell: Literal["lstm", "gru"] = "lstm"

    def __post_init__(self) -> None:
        check_shape(self, self.width, self.depth)
        standard = self.scales == Scales()
        require(standard, "scales", self.scales, "left out: no scaling rule is known for char_rnn")
        require(self.cell in GATES, "cell", self.cell, f"one of {', '.join(GATES)}")

    def build(self) -> CharRNN:
        """Raises ValueError while the vocabulary is unknown."""
        return CharRNN(self)

    @property
    def layer_matrices(self) -> int:
        """Numbers in one layer's matrices: per gate, one for the input and one for the state."""
        return GATES[self.cell] * 2 * self.width * self.width

    def parameters(self) -> ParameterCount:
        biases = GATES[self.cell] * 2 * self.width
        body = self.depth * (self.layer_matrices + biases)
        table = self.vocab * self.width
        return ParameterCount(
            all=body + table, without_input_embedding=body + table, without_embeddings=body
        )

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        require(context is None or context > 0, "context", context, "at least 1 token")
        return FlopCount(
            body=2 * self.depth * self.layer_matrices,
            attention=0,
            head=2 * self.width * self.vocab,
        )


class CharRNN(Model):
    """The model of a `CharRNNConfig` whose vocabulary is known."""

    config: CharRNNConfig

    def __init__(self, config: CharRNNConfig) -> None:
        super().__init__()
        require(config.vocab > 0, "vocab", config.vocab, "known (the tokenizer's size) to build")
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        kind = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.layers = kind(config.width, config.width, config.depth, batch_first=True)
        self.initialise()

    def initialise(self) -> None:
        """Draws every weight anew, by role.

        embedding                normal, std 1 / sqrt(D): nothing norms what a layer is given
        matrices                 uniform within 1 / sqrt(D), torch's own for recurrent layers
        biases                   0; those of an LSTM's forget gates sum to 1, so that it begins by
                                 remembering (Jozefowicz et al. 2015, section 2.2)
        """
        bound, D = 1 / math.sqrt(self.config.width), self.config.width
        nn.init.normal_(self.embedding.weight, std=bound)
        for name, weight in self.layers.named_parameters():
            if name.startswith("weight"):
                nn.init.uniform_(weight, -bound, bound)
                continue
            nn.init.zeros_(weight)
            if self.config.cell == "lstm" and name.startswith("bias_ih"):
                nn.init.ones_(weight[D : 2 * D])  # torch's order of gates: input, forget, ...

    def init_hidden(self, batch: int) -> tuple[Tensor, ...]:
        """A state that has read nothing: (L, B, D), once for a GRU and twice for an LSTM."""
        shape = (self.config.depth, batch, self.config.width)
        parts = 2 if self.config.cell == "lstm" else 1
        return tuple(self.embedding.weight.new_zeros(shape) for _ in range(parts))

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T) to final hidden states (B, T, D); see `Model.hidden`.

        Positions are checked and make no difference. Raises ValueError where the sequence would be
        longer than the context or the cache.
        """
        assert cache is None or isinstance(cache, StateCache), "a recurrent network needs a state"
        check_places(self.config, tokens, cache, documents, positions)
        x = self.embedding(tokens)
        if documents is not None:
            return self.apart(x, documents)
        state = self.init_hidden(len(tokens)) if cache is None else cache.state
        x, state = self.read(x, state)
        if cache is not None:
            cache.write(state, *tokens.shape)
        return x

    def read(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, T, D) from a state on: the last layer's states (B, T, D), and the state after."""
        if self.config.cell == "lstm":
            y, after = self.layers(x, state)
            return y, after
        y, single = self.layers(x, state[0])
        return y, (single,)

    def apart(self, x: Tensor, documents: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D), each run of equal ids as a row of its own (N, longest, D)."""
        number = starts(documents).flatten().cumsum(dim=0).view_as(documents) - 1
        place = restarting(documents)
        count, longest = int(number[-1, -1]) + 1, int(place.max()) + 1
        rows = x.new_zeros(count, longest, x.shape[-1]).index_put((number, place), x)
        y, _ = self.read(rows, self.init_hidden(count))
        return y[number, place]

    def roles(self) -> dict[str, Role]:
        """Raises ValueError: no scaling rule is known for it, and none is guessed."""
        raise ValueError("char_rnn has no scaling rule; parametrisation.kind must be 'standard'")

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V), by the transposed embedding."""
        return F.linear(hidden, self.embedding.weight)

    def new_cache(self, batch: int, length: int, kind: CacheKind = "static") -> StateCache:
        """Raises ValueError for no rows, no tokens, more tokens than the context, another kind."""
        context = self.config.context
        require(length <= context, "length", length, f"at most the context {context}")
        require(kind == "static", "kind", kind, "'static': a state has one size")
        check_sizes(batch, length)
        return StateCache(self.init_hidden(batch), length)
