"""Does a model see what it should predict? On a text of known entropy, none can be below it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.data import feed
from isoflop.data.known import WORD_BYTES, named
from isoflop.data.prepare import Prepared, prepare
from isoflop.run import AdamW, Evaluation, Run, Schedule, Text
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import HeldOut
from isoflop.training.loop import Inputs, train
from models import Config, GPT2Config, LlamaConfig
from models.cache import KeyValueCache
from models.interface import FlopCount, Model, ParameterCount

# Few words are said in several states, so this is learned in seconds. A document is a row: 31 words
# and the end of text.
SOURCE = "known:4,words=64,states=4,choices=6,length=31,documents=3000"
CONTEXT, DOCUMENTS = 31, 500
TEXT = Text(source=SOURCE, tokenizer="words-330", validation=0.2, rows="best-fit")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(TEXT, tmp_path_factory.mktemp("known"))


@dataclass(frozen=True, kw_only=True)
class PeekingConfig(Config):
    """A model with the mistake that is looked for: its mask lets each token see the next."""

    name = "peeking"
    width: int = 16

    def build(self) -> Model:
        return Peeking(self)

    def parameters(self) -> ParameterCount:
        table = self.vocab * self.width
        return ParameterCount(all=table, without_input_embedding=table, without_embeddings=0)

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        return FlopCount(body=0, attention=0, head=2 * self.width * self.vocab)


class Peeking(Model):
    def __init__(self, config: PeekingConfig) -> None:
        super().__init__()
        self.config: PeekingConfig = config
        self.embedding = nn.Embedding(config.vocab, config.width)

    def hidden(
        self, tokens: Tensor, cache: KeyValueCache | None = None, **places: Tensor | None
    ) -> Tensor:
        return self.embedding(tokens.roll(-1, dims=1))

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        raise NotImplementedError("nothing is generated here")


def nats_per_word(model: Config, prepared: Prepared, folder: Path) -> tuple[float, int]:
    """On held-out text, after training; and how many words it is a mean over.

    By the bytes, in which the end of text counts nothing: what it costs lies on top.
    """
    run = Run(
        model=model,
        data=TEXT,
        optimizer=AdamW(lr=1e-2, weight_decay=0.0),
        schedule=Schedule(warmup=0.05, final=0.02),
        batch_tokens=16 * CONTEXT,
        tokens=250 * 16 * CONTEXT,
        evaluation=Evaluation(tokens=DOCUMENTS * CONTEXT, times=1),
    ).resolve(vocab=prepared.vocab, fingerprint=prepared.fingerprint)
    rows = feed.held_out(run, prepared)
    sizes = torch.from_numpy(prepared.tokenizer().token_bytes())
    words = int((sizes[torch.from_numpy(rows[""].ids[:, 1:])] > 0).sum())
    inputs = Inputs(
        batches=feed.batches(run, prepared), held_out=HeldOut.of(rows, sizes, {"": 1.0})
    )
    outcome = train(run, inputs, Ranks(), folder)
    bits = outcome.progress.history[-1]["val/bits_per_byte"]
    return bits * math.log(2) * WORD_BYTES, words


@pytest.mark.parametrize("kind", [GPT2Config, LlamaConfig], ids=["gpt2", "llama"])
def test_an_honest_model_comes_near_the_floor_and_not_below(
    kind: type[GPT2Config | LlamaConfig], prepared: Prepared, tmp_path: Path
) -> None:
    machine = named(SOURCE)
    model = kind(context=CONTEXT, width=32, depth=2, heads=2)
    loss, words = nats_per_word(model, prepared, tmp_path)
    assert words == DOCUMENTS * (machine.length - 1), "the first word of a row is read only"
    assert machine.standard_errors_below(loss, words) < 4
    assert loss < 1.1 * machine.entropy, "a detector that nothing comes near to detects nothing"


def test_a_model_that_peeks_is_found_out(prepared: Prepared, tmp_path: Path) -> None:
    loss, words = nats_per_word(PeekingConfig(context=CONTEXT), prepared, tmp_path)
    assert named(SOURCE).standard_errors_below(loss, words) > 10
