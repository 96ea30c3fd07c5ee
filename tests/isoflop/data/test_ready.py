"""Do ready tokens join as they are, under the tokenizer that made them?"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from isoflop.data.options import Options, Text
from isoflop.data.prepare import prepare
from isoflop.data.tokenizers import ByteTokenizer


@pytest.fixture
def pair(tmp_path: Path, stdlib_texts: dict[str, str]) -> Path:
    """30 modules as ids of bytes: half of them end with an end of text, half do not."""
    tokenizer = ByteTokenizer()
    ids = [tokenizer.encode(text).astype("<u2") for _, text in sorted(stdlib_texts.items())[:30]]
    ids[::2] = [np.append(document, np.uint16(256)).astype("<u2") for document in ids[::2]]
    sizes = np.array([len(document) for document in ids])
    path = tmp_path / "pair.bin"
    path.write_bytes(np.concatenate(ids).tobytes())
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, len(ids), len(ids) + 1)
    path.with_suffix(".idx").write_bytes(
        header
        + sizes.astype("<i4").tobytes()
        + (2 * np.cumsum([0, *sizes[:-1]])).astype("<i8").tobytes()
        + np.arange(len(ids) + 1).astype("<i8").tobytes()
    )
    return path


def text(pair: Path, tokenizer: str = "bytes") -> Text:
    return Text(source=str(pair), tokenizer=tokenizer, validation=0.1)


def test_every_token_is_on_one_side(
    pair: Path, tmp_path: Path, stdlib_texts: dict[str, str]
) -> None:
    found = prepare(text(pair), tmp_path / "cache")
    assert found.train_documents + found.validation_documents == 30
    written = sorted(content for _, content in sorted(stdlib_texts.items())[:30])
    read = []
    for file in (found.train(), found.validation()):
        documents = np.split(file.ids, file.document_ends[:-1])
        assert all(document[-1] == 256 and (document[:-1] < 256).all() for document in documents)
        read += [found.tokenizer().decode(document[:-1].tolist()) for document in documents]
    assert sorted(read) == written
    assert found.train_bytes + found.validation_bytes == sum(len(t.encode()) for t in written)


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        ("bpe-400", Options(), "holds token ids, not text: name the tokenizer"),
        ("bytes", Options(near_duplicates=0.8), "look for no near-duplicates"),
    ],
)
def test_what_needs_text_is_refused(
    pair: Path, tmp_path: Path, tokenizer: str, options: Options, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(text(pair, tokenizer), tmp_path / "cache", options=options)


def test_ids_of_another_tokenizer_are_refused(pair: Path, tmp_path: Path) -> None:
    ids = np.fromfile(pair, dtype="<u2")
    ids[5] = 999
    ids.tofile(pair)
    with pytest.raises(ValueError, match=r"token id 999, outside the vocabulary of 257 of 'bytes'"):
        prepare(text(pair), tmp_path / "cache")
