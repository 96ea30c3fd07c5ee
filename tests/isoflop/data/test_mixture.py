"""Are the sources of a mixture prepared as one, with one tokenizer, and read as the run says?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.data import bpe, feed, mixture
from isoflop.data.mixture import Mixed, parts, prepare_all
from isoflop.data.prepare import Prepared, prepare
from isoflop.data.tokenizers import TiktokenTokenizer
from isoflop.run import AdamW, Evaluation, Part, Run, Text
from models import GPT2Config


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Part, Part]:
    """Two folders of documents, with words of their own."""
    folder = tmp_path_factory.mktemp("sources")
    for name, word, count in (("songs", "la dida ", 60), ("sums", "one and two ", 20)):
        (folder / name).mkdir()
        for k in range(count):
            (folder / name / f"{k:03}.txt").write_text(f"{k} " + word * (3 + k % 17) + "\n")
    return Part(source=str(folder / "songs")), Part(source=str(folder / "sums"), weight=3.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def text(sources: tuple[Part, ...], tokenizer: str = "bytes", **changes: Any) -> Text:
    return Text(mixture=sources, tokenizer=tokenizer, validation=0.2, **changes)


def resolved(data: Text, prepared: Prepared | Mixed, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "model": GPT2Config(context=16, width=8, depth=1, heads=1),
        "optimizer": AdamW(lr=1e-2),
        "batch_tokens": 8 * 16,
        "tokens": 40 * 8 * 16,
        "evaluation": Evaluation(tokens=160),
    }
    run = Run(data=data, **{**values, **changes})
    return run.resolve(vocab=prepared.vocab, fingerprint=prepared.fingerprint)


def documents(prepared: Prepared) -> list[str]:
    file, decode = prepared.train(), prepared.tokenizer().decode
    pieces = np.split(file.ids, file.document_ends[:-1])
    return [decode(piece[:-1]) for piece in pieces]


def test_one_source_is_as_it_was(sources: tuple[Part, Part], cache: Path) -> None:
    alone = Text(source=sources[0].source, tokenizer="bytes", validation=0.2)
    assert prepare_all(alone, cache) == prepare(alone, cache)
    assert set(parts(prepare_all(alone, cache))) == {""}


def test_each_source_is_prepared_by_itself(sources: tuple[Part, Part], cache: Path) -> None:
    mixed = prepare_all(text(sources), cache)
    assert isinstance(mixed, Mixed) and list(parts(mixed)) == ["songs", "sums"]
    for part, prepared in zip(sources, parts(mixed).values(), strict=True):
        alone = Text(source=part.source, tokenizer="bytes", validation=0.2)
        assert prepared == prepare(alone, cache)
    assert mixed.train_tokens == sum(part.train_tokens for part in parts(mixed).values())
    assert mixed.vocab == 257
    turned = prepare_all(text(sources[::-1]), cache)
    assert turned.fingerprint != mixed.fingerprint, "what comes first has other turns"


def test_one_vocabulary_is_trained_on_all(sources: tuple[Part, Part], cache: Path) -> None:
    mixed = prepare_all(text(sources, "bpe-300"), cache)
    each = parts(mixed)
    assert len({part.tokenizer().hash for part in each.values()}) == 1
    training = [document for part in each.values() for document in documents(part)]
    assert mixed.tokenizer().hash == bpe.train(training, 300).hash
    alone = Text(source=sources[0].source, tokenizer="bpe-300", validation=0.2)
    assert prepare(alone, cache).tokenizer().hash != mixed.tokenizer().hash
    assert each["sums"].tokenizer_name == mixed.tokenizer().name == "bpe-300"


def test_a_vocabulary_is_trained_on_a_part_of_large_sources(
    sources: tuple[Part, Part], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training: list[str] = []

    def train(texts: Iterable[str], size: int) -> TiktokenTokenizer:
        training.extend(texts)
        return bpe_train(training, size)

    bpe_train = bpe.train
    monkeypatch.setattr(bpe, "train", train)
    each = parts(prepare_all(text(sources), cache))
    whole = sum(part.train_bytes for part in each.values())
    monkeypatch.setattr(mixture, "TRAINED_ON", whole // 2)
    prepare_all(text(sources, "bpe-302"), cache)
    assert 0.3 < sum(map(len, training)) / whole < 0.7
    for part in each.values():
        taken = len(set(training) & set(documents(part)))
        assert 0.2 < taken / part.train_documents < 0.8, "each gives its share"


def test_it_is_prepared_once(
    sources: tuple[Part, Part], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_all(text(sources, "bpe-301"), cache)
    monkeypatch.setattr(bpe, "train", None)
    assert prepare_all(text(sources, "bpe-301"), cache) == first
    assert prepare_all(text(sources, "bpe-301", mixing="equal"), cache) == first


def test_a_run_reads_its_shares(sources: tuple[Part, Part], cache: Path) -> None:
    data = text(sources, "bytes")
    mixed = prepare_all(data, cache)
    run = resolved(data, mixed)
    reads = feed.batches(run, mixed)
    assert reads.turns.shares == [0.25, 0.75]
    rows = np.concatenate([reads.batch(step).ids for step in range(run.steps)])
    sums = sum("one" in mixed.tokenizer().decode(row) for row in rows)
    assert sums == pytest.approx(0.75 * len(rows), rel=0.05)  # a window may show digits only
    proportional = resolved(replace(data, mixing="proportional"), mixed)
    shares = feed.batches(proportional, mixed).turns.shares
    tokens = [part.train_tokens for part in parts(mixed).values()]
    assert shares == pytest.approx([count / sum(tokens) for count in tokens], abs=1e-4)


def test_each_source_is_held_out(sources: tuple[Part, Part], cache: Path) -> None:
    data = text(sources, "bytes", rows="stream", held_out="right-padded")
    mixed = prepare_all(data, cache)
    rows = feed.held_out(resolved(data, mixed), mixed)
    assert {name: len(part) for name, part in rows.items()} == {"songs": 5, "sums": 5}
    assert all(part.documents is not None for part in rows.values())
    plain = feed.held_out(resolved(replace(data, held_out="same"), mixed), mixed)
    assert all(part.documents is None for part in plain.values())


def test_more_epochs_than_allowed_are_refused(sources: tuple[Part, Part], cache: Path) -> None:
    data = text(sources, "bytes", most_epochs=1.5)
    mixed = prepare_all(data, cache)
    reads = feed.batches(resolved(data, mixed), mixed)
    with pytest.raises(ValueError, match=r"5120 tokens would read the source 'sums' \d+\."):
        feed.check(resolved(data, mixed), mixed)
    most = reads.seen(40)["data/epochs/sums"]
    feed.check(resolved(replace(data, most_epochs=most), mixed), mixed)
    feed.check(resolved(replace(data, most_epochs=0.0), mixed), mixed)
    single = Text(source=sources[0].source, tokenizer="bytes", validation=0.2, most_epochs=0.5)
    alone = prepare_all(single, cache)
    with pytest.raises(ValueError, match=r"read the text .* data.most_epochs is 0.5; shorten"):
        feed.check(resolved(single, alone), alone)


def test_what_was_read_is_described(sources: tuple[Part, Part], cache: Path) -> None:
    data = text(sources, "bytes")
    mixed = prepare_all(data, cache)
    run = resolved(data, mixed)
    told = feed.described(run, feed.batches(run, mixed))
    names = ("epochs", "share", "tokens", "unique_tokens")
    assert set(told) == {"unique_tokens", "tokens", "epochs"} | {
        f"{name}/{source}" for name in names for source in ("songs", "sums")
    }
    assert told["unique_tokens"] == told["unique_tokens/songs"] + told["unique_tokens/sums"]
    seen = sum(told[f"epochs/{name}"] * told[f"unique_tokens/{name}"] for name in parts(mixed))
    assert seen == pytest.approx(40 * 8 * 16)
    assert told["epochs"] * told["unique_tokens"] == pytest.approx(40 * 8 * 16)
    assert told["tokens/songs"] + told["tokens/sums"] == told["tokens"] == 40 * 8 * 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stride": 17}, r"stride is 17; it must be from 1 to the context \(16\)"),
        ({"rows": "best-fit", "stride": 4}, "'best-fit' rows do not move"),
    ],
)
def test_rows_that_cannot_be_cut_are_refused(
    sources: tuple[Part, Part], cache: Path, changes: dict[str, Any], said: str
) -> None:
    data = text(sources, "bytes", **changes)
    mixed = prepare_all(data, cache)
    with pytest.raises(ValueError, match=said):
        feed.check(resolved(data, mixed), mixed)
