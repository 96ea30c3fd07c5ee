"""Are ids read back as written, and is any other file noticed?"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from isoflop.data import shards
from isoflop.data.shards import TokenFile

DOCUMENTS = [np.array(ids, dtype=np.uint32) for ids in ([1, 2, 3], [65535], [], [7, 0])]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = shards.write(tmp_path, "train", iter(DOCUMENTS), "uint16")
    assert file.ids.tolist() == [1, 2, 3, 65535, 7, 0]
    assert file.ids.dtype == file.dtype == np.uint16
    assert (len(file), file.tokens, file.documents) == (6, 6, 4)
    assert file.document_ends.tolist() == [3, 4, 4, 6]
    assert file.document_ends.dtype == np.int64
    assert file.read(2, 5).tolist() == [3, 65535, 7]
    assert (tmp_path / "train.tokens").stat().st_size == 12
    file.verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "train.ends",
        "train.json",
        "train.tokens",
    ]


def test_large_ids_take_four_bytes(tmp_path: Path) -> None:
    assert shards.dtype_for(65_536) == np.uint16
    assert shards.dtype_for(65_537) == np.uint32
    file = shards.write(tmp_path, "train", [np.array([65_536, 2**32 - 1])], "uint32")
    assert file.ids.tolist() == [65_536, 2**32 - 1]


def test_an_id_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    for ids in ([1, 65_536], [-1]):
        with pytest.raises(ValueError, match="does not fit uint16 in train"):
            shards.write(tmp_path, "train", [DOCUMENTS[0], np.array(ids)], "uint16")
    assert list(tmp_path.iterdir()) == []


def test_other_types_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint16 or uint32, not int64"):
        shards.write(tmp_path, "train", DOCUMENTS, "int64")
    with pytest.raises(ValueError, match="train: there are no tokens"):
        shards.write(tmp_path, "train", [], "uint16")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_dies_leaves_the_earlier_file(tmp_path: Path) -> None:
    shards.write(tmp_path, "train", DOCUMENTS, "uint16")
    with pytest.raises(KeyboardInterrupt), shards.Writer(tmp_path, "train", "uint16") as writer:
        writer.append(DOCUMENTS[0])
        raise KeyboardInterrupt
    TokenFile.open(tmp_path, "train").verify()


def test_without_its_manifest_a_file_is_not_there(tmp_path: Path) -> None:
    shards.write(tmp_path, "train", DOCUMENTS, "uint16")
    (tmp_path / "train.json").unlink()
    with pytest.raises(ValueError, match=r"train\.json is missing"):
        TokenFile.open(tmp_path, "train")


@pytest.mark.parametrize("name", ["train.tokens", "train.ends"])
def test_truncated_missing_and_altered_files_are_named(tmp_path: Path, name: str) -> None:
    file = shards.write(tmp_path, "train", DOCUMENTS, "uint16")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"{name} has {len(content) - 1} bytes where"):
        TokenFile.open(tmp_path, "train")
    with pytest.raises(ValueError, match=name):
        file.verify()
    (tmp_path / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ValueError, match=f"{name} was altered"):
        TokenFile.open(tmp_path, "train").verify()
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        TokenFile.open(tmp_path, "train")


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"dtype": "float64"}, {"tokens": None}, {"sha256": []}]
)
def test_a_manifest_that_makes_no_sense_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    shards.write(tmp_path, "train", DOCUMENTS, "uint16")
    path = tmp_path / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"train\.json is not a manifest"):
        TokenFile.open(tmp_path, "train")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"train\.json is not a manifest"):
        TokenFile.open(tmp_path, "train")


def test_it_travels_as_a_reference(tmp_path: Path) -> None:
    file = shards.write(tmp_path, "train", [np.arange(50_000, dtype=np.uint32)], "uint16")
    assert file.ids[-1] == 49_999  # mapped before it is sent
    sent = pickle.dumps(file)
    assert len(sent) < 1_000
    assert np.array_equal(pickle.loads(sent).ids, file.ids)


def test_mapped_ids_cannot_be_written(tmp_path: Path) -> None:
    file = shards.write(tmp_path, "train", DOCUMENTS, "uint16")
    with pytest.raises(ValueError, match="read-only"):
        file.ids[0] = 1


def test_files_are_joined(tmp_path: Path) -> None:
    parts = [shards.write(tmp_path, f"part-{k}", DOCUMENTS[k:], "uint16") for k in range(3)]
    with shards.Writer(tmp_path, "whole", "uint16", shards.Origin("text", "tokenizer")) as writer:
        for part in parts:
            writer.extend(part)
    whole = TokenFile.open(tmp_path, "whole")
    whole.verify()
    assert whole.ids.tolist() == [i for k in range(3) for d in DOCUMENTS[k:] for i in d]
    assert np.diff(whole.document_ends, prepend=0).tolist() == [3, 1, 0, 2, 1, 0, 2, 0, 2]
    assert whole.origin == shards.Origin("text", "tokenizer")
    assert parts[0].origin == shards.Origin()
