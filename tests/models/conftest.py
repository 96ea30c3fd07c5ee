"""What do the tests of the models share? The whole zoo in small, and a compiler that knows nothing.

`zoo` holds what the contract suite does with a model of any family: a decoder behind an encoder is
given the same source throughout, a denoiser the same share of hidden tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from models import ZOO, Config
from models.cache import Cache
from models.char_rnn import CharRNN
from models.interface import Denoiser, EncoderDecoder, Model
from models.moe import Routing

# One small shape per architecture; a new line in ZOO needs one here, or the contract suite fails.
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"width": 32, "depth": 3, "heads": 4},
    "llama": {"width": 32, "depth": 3, "heads": 4, "kv_heads": 2},
    "lformer": {"width": 32, "depth": 3, "heads": 4},
    "modern": {"width": 32, "depth": 3, "heads": 4, "window": 6, "global_every": 2},
    "moe": {"width": 32, "depth": 2, "heads": 4, "routing": Routing(experts=4)},
    "char_rnn": {"width": 32, "depth": 2},
    "diffusion": {"width": 32, "depth": 3, "heads": 4, "kv_heads": 2},
    "dit": {"width": 32, "depth": 2, "heads": 4},
    "t5": {"width": 32, "depth": 2, "heads": 4},
    "t5_serial": {"width": 32, "depth": 2, "heads": 4},
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"kind": name, **shape} for name, shape in SMALL.items()},
    "llama-tied": {"kind": "llama", **SMALL["llama"], "tied": True},
    "llama-plain": {"kind": "llama", **SMALL["llama"], "kv_heads": None, "ffn": 40},
    "modern-gated": {"kind": "modern", **SMALL["modern"], "gated": True, "tied": True, "cap": 0.0},
    "moe-switch": {"kind": "moe", **SMALL["moe"], "routing": Routing(experts=3, top=1, every=1)},
    "gru": {"kind": "char_rnn", **SMALL["char_rnn"], "cell": "gru"},
    "dit-tied": {"kind": "dit", **SMALL["dit"], "tied": True, "ffn": 40},
    "t5-codes": {"kind": "t5", **SMALL["t5"], "codebooks": 3, "ffn": 40},
}


class Zoo:
    """Every architecture, in shapes that build in milliseconds."""

    vocab, context = 61, 24
    lengths = (7, 1, 11, 5)  # of the documents in one row of `context` tokens
    names = tuple(SMALL)

    def small(self, variant: str, **changes: Any) -> Config:
        shape = {"vocab": self.vocab, "context": self.context, **VARIANTS[variant], **changes}
        return ZOO[shape.pop("kind")](**shape)

    def build(self, config: Config, seed: int = 0) -> Model:
        torch.manual_seed(seed)
        return config.build()

    def excited(self, model: Model) -> Model:
        """Matrices ten times their initial size, and noise on everything: attention then prefers
        some tokens over others, and nothing is zero that training would move.
        """
        gain = 1 if isinstance(model, CharRNN) else 10
        if isinstance(model, EncoderDecoder | Denoiser):  # attention without 1 / sqrt K; a code
            gain = 5
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(gain if weight.ndim > 1 else 1).add_(torch.randn_like(weight) * 0.1)
        return model

    def tokens(self, config: Config, rows: int, length: int, seed: int = 1) -> Tensor:
        """Ids (rows, length), or codes (rows, length, codebooks)."""
        several = getattr(config, "codebooks", 1)
        shape = (rows, length) if several == 1 else (rows, length, several)
        return torch.randint(self.vocab, shape, generator=torch.Generator().manual_seed(seed))

    def beside(self, model: Model, rows: int, length: int = 9) -> dict[str, Tensor]:
        """What the model reads beside the tokens."""
        if isinstance(model, EncoderDecoder):
            source = self.tokens(model.config, 1, length, seed=5)
            return {"source": source.expand(rows, *source.shape[1:])}
        return {"times": torch.full((rows,), 0.5)} if isinstance(model, Denoiser) else {}

    def read(
        self, model: Model, tokens: Tensor, cache: Cache | None = None, **places: Tensor
    ) -> Tensor:
        """The logits. With the first tokens, a cache has read what is beside them."""
        first = cache is None or cache.length == 0
        more = self.beside(model, len(tokens)) if first else {}
        logits: Tensor = model(tokens, cache, **more, **places)
        return logits

    def documents(self, *lengths: int) -> Tensor:
        """(1, T) document ids."""
        ids = [torch.full((length,), number) for number, length in enumerate(lengths)]
        return torch.cat(ids).int().unsqueeze(0)


@pytest.fixture
def zoo() -> Zoo:
    return Zoo()


@pytest.fixture(params=VARIANTS)
def config(request: pytest.FixtureRequest) -> Config:
    return Zoo().small(request.param)


@pytest.fixture
def model(config: Config) -> Iterator[Model]:
    """As a generator uses it, with `excited` weights."""
    with torch.no_grad():
        yield Zoo().excited(Zoo().build(config)).eval()


@pytest.fixture
def compiler() -> Iterator[None]:
    """A compiler that has seen nothing: all models share one `forward`, and its limit of
    recompilations is that of a process."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
