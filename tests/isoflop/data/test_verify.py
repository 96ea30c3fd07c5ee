"""Is every kind of damage to a prepared text found, and the file named?"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.data import shards, tokenizers
from isoflop.data.options import Text
from isoflop.data.prepare import Prepared, prepare
from isoflop.data.verify import complaints, folders


@pytest.fixture
def prepared(corpus: Path, tmp_path: Path) -> Prepared:
    return prepare(Text(source=str(corpus), tokenizer="bytes", validation=0.2), tmp_path / "cache")


@pytest.fixture
def other(corpus: Path, tmp_path: Path) -> Prepared:
    """The same text with another share held out."""
    return prepare(Text(source=str(corpus), tokenizer="bytes", validation=0.4), tmp_path / "other")


def test_a_whole_text_has_no_complaints(prepared: Prepared) -> None:
    assert list(complaints(prepared.folder)) == []


@pytest.mark.parametrize("name", ["train.tokens", "train.ends", "validation.tokens"])
def test_truncated_altered_and_missing_files_are_named(prepared: Prepared, name: str) -> None:
    path = prepared.folder / name
    whole = path.read_bytes()
    for content, message in (
        (whole[:-1], f"{name} has {len(whole) - 1} bytes where {len(whole)} were written"),
        (bytes([whole[0] ^ 1]) + whole[1:], f"{name} was altered"),
        (None, f"{name} is missing"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        [found] = complaints(prepared.folder)
        assert message in found


def test_all_damage_is_told_at_once(prepared: Prepared) -> None:
    os.truncate(prepared.folder / "train.tokens", 5)
    (prepared.folder / "validation.json").unlink()
    (prepared.folder / "encoding.json").write_text("{")
    found = list(complaints(prepared.folder))
    assert len(found) == 3
    for name in ("train.tokens", "validation.json", "encoding.json"):
        assert any(name in line for line in found)


def test_a_side_of_another_text_is_found(prepared: Prepared, other: Prepared) -> None:
    for path in other.folder.glob("validation.*"):
        shutil.copy(path, prepared.folder)
    found = "\n".join(complaints(prepared.folder))
    assert "validation.* are of another text" in found
    assert prepared.fingerprint in found and other.fingerprint in found
    with pytest.raises(ValueError, match=r"validation\.\* are of another text or tokenizer"):
        Prepared.load(prepared.folder)


def test_another_tokenizer_is_found(prepared: Prepared, trained: tokenizers.Tokenizer) -> None:
    tokenizers.save(trained, prepared.folder)
    [found] = complaints(prepared.folder)
    assert "the tokenizer is another one" in found and trained.hash in found


def test_counts_that_do_not_agree_are_found(prepared: Prepared) -> None:
    changed(prepared.folder / "prepared.json", lambda values: values.update(train_tokens=7))
    [found] = complaints(prepared.folder)
    assert f"train.json says {prepared.train_tokens} tokens, prepared.json says 7" in found


def test_a_vocabulary_larger_than_the_type_is_found(prepared: Prepared) -> None:
    changed(prepared.folder / "prepared.json", lambda values: values.update(vocab=70_000))
    found = list(complaints(prepared.folder))
    assert len(found) == 2
    assert all("uint16; 70,000 ids do not fit" in line for line in found)


def test_ids_and_ends_that_cannot_be_are_found(prepared: Prepared) -> None:
    """With checksums that are right: the writer was wrong, or somebody forged them."""
    ids = [np.array([1, 300], dtype=np.uint32)] * prepared.train_documents
    with shards.Writer(prepared.folder, "train", "uint16", prepared.origin) as writer:
        for document in ids:
            writer.append(document)
    found = "\n".join(complaints(prepared.folder))
    assert "train.tokens holds id 300, outside the vocabulary of 257" in found
    with shards.Writer(prepared.folder, "train", "uint16", prepared.origin) as writer:
        writer.append(np.array([1], dtype=np.uint32))
        writer.append(np.array([], dtype=np.uint32))
    assert "do not follow one another" in "\n".join(complaints(prepared.folder))


def test_a_folder_of_texts_is_looked_through(prepared: Prepared, tmp_path: Path) -> None:
    assert folders(prepared.folder) == folders(prepared.folder.parent) == [prepared.folder]
    with pytest.raises(ValueError, match=r"prepared\.json is missing, and so"):
        folders(tmp_path / "nowhere")


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))
