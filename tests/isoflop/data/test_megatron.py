"""Are Megatron-LM's token files read as they lie, and refused where they do not fit?"""

from __future__ import annotations

import pickle
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from isoflop.data import megatron, sources
from isoflop.data.documents import Damage

CODES = {1: "u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def write(
    folder: Path, documents: list[list[list[int]]], code: int = 8, name: str = "corpus"
) -> Path:
    """Documents of sequences of ids, in the layout of Megatron-LM's IndexedDatasetBuilder."""
    sequences = [np.array(sequence, CODES[code]) for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    addresses = np.r_[0, np.cumsum([sequence.nbytes for sequence in sequences])[:-1]]
    bounds = np.r_[0, np.cumsum([len(document) for document in documents])]
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sequences), len(bounds))
    body = lengths.tobytes() + addresses.astype("<i8").tobytes() + bounds.astype("<i8").tobytes()
    (folder / f"{name}.idx").write_bytes(header + body)
    (folder / f"{name}.bin").write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    return folder / f"{name}.bin"


DOCUMENTS = [[[5, 6, 7], [8]], [[250]], [[1, 2], [3], [4, 0]]]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_documents_are_joined_sequences(tmp_path: Path, code: int, suffix: str) -> None:
    path = write(tmp_path, DOCUMENTS[:2] if code == 1 else DOCUMENTS, code).with_suffix(suffix)
    source = sources.open(str(path))
    assert source.ready
    found = [ids for part in source.parts() for ids in part.tokens()]
    expected = [list(chain(*document)) for document in DOCUMENTS]
    assert [ids.tolist() for ids in found] == expected[: len(found)] and len(found) > 1
    assert {ids.dtype for ids in found} == {np.dtype(np.uint32)}
    stamp = source.stamp()
    assert stamp is not None and [Path(entry[0]).suffix for entry in stamp] == [".bin", ".idx"]


def test_a_huge_one_is_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron, "SLICE", 10)
    documents = [[[k] * (k % 7)] for k in range(50)]
    path = write(tmp_path, documents)
    parts = pickle.loads(pickle.dumps(sources.open(str(path)).parts()))
    assert len(parts) > 10
    assert sum(part.bytes for part in parts) == path.stat().st_size
    assert len({part.name for part in parts}) == len(parts)
    found = [ids.tolist() for part in parts for ids in part.tokens()]
    assert found == [document[0] for document in documents]


def test_it_has_no_text(tmp_path: Path) -> None:
    source = sources.open(str(write(tmp_path, DOCUMENTS)))
    with pytest.raises(ValueError, match=r"corpus\.bin holds tokens, not text"):
        list(source.parts()[0].documents(Damage()))


def test_text_has_no_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a\.txt holds text, not tokens"):
        list(sources.open(str(tmp_path)).parts()[0].tokens())


def test_a_missing_half(tmp_path: Path) -> None:
    path = write(tmp_path, DOCUMENTS)
    path.with_suffix(".idx").unlink()
    with pytest.raises(ValueError, match=r"corpus\.idx is missing"):
        sources.open(str(path))


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".idx", lambda b: b[:20], "not an index of Megatron"),
        (".idx", lambda b: b"XX" + b[2:], "not an index of Megatron"),
        (".idx", lambda b: b[:-1], "cut off"),
        (".idx", lambda b: b[:9] + b"\x02" + b[10:], "version 2 of type 8 is not known"),
        (".idx", lambda b: b[:17] + b"\x07" + b[18:], "version 1 of type 7 is not known"),
        (".idx", lambda b: b[:34] + b"\x04" + b[35:], "do not follow each other"),
        (".idx", lambda b: b[:-8] + b"\x04" + b[-7:], "do not cover the sequences"),
        (".bin", lambda b: b[:-2], "18 bytes, where its index says 20"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, suffix: str, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path, DOCUMENTS)
    file = path.with_suffix(suffix)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        sources.open(str(path))


def test_a_negative_id_is_no_token(tmp_path: Path) -> None:
    source = sources.open(str(write(tmp_path, [[[1]], [[3, -1]]], code=4)))
    with pytest.raises(ValueError, match="document 1 has an id that is no token"):
        list(source.parts()[0].tokens())
