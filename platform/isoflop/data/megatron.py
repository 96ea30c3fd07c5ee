"""How are the token files of Megatron-LM read, just as they lie?

NAME.bin holds ids, nothing else; NAME.idx says of which type they are, where each sequence begins,
and which sequences make a document (its header begins with MMIDIDX; version 1). Such a source has
no text: its ids go into a run as they are, and the run must name the tokenizer that made them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isoflop.data.documents import Damage, Document, Part, Source, Stamp, stamp_of

SUFFIXES = (".bin", ".idx")
SLICE = 2**24  # tokens in a part, at most about

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, type, sequences, ends of documents and 0
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7: no ids


@dataclass(frozen=True, kw_only=True)
class Index:
    """Where the documents of a .bin lie: document d is the ids [starts[d], starts[d + 1])."""

    path: Path  # of the .bin
    dtype: np.dtype[np.generic]
    starts: npt.NDArray[np.int64]  # (documents + 1,)


@dataclass(frozen=True, kw_only=True)
class Megatron(Source):
    """A pair of files, .bin and .idx, checked against each other."""

    name: str
    path: Path  # of the .bin
    ready: bool = True

    @cached_property
    def index(self) -> Index:
        return read_index(self.path)

    def parts(self) -> list[Part]:
        starts = self.index.starts
        # Documents begin a part where their first token crosses a multiple of the slice.
        firsts = np.unique(np.r_[0, np.flatnonzero(np.diff(starts[:-1] // SLICE)) + 1])
        edges = [*firsts.tolist(), len(starts) - 1]
        return [
            MegatronPart(
                name=f"{self.path.stem}#{k}",
                bytes=int(starts[b] - starts[a]) * self.index.dtype.itemsize,
                path=self.path,
                start=a,
                end=b,
            )
            for k, (a, b) in enumerate(pairwise(edges))
        ]

    def stamp(self) -> list[Stamp]:
        return [stamp_of(self.path.with_suffix(suffix)) for suffix in SUFFIXES]


@dataclass(frozen=True, kw_only=True)
class MegatronPart(Part):
    """The documents [start, end) of a pair of files."""

    name: str
    bytes: int
    path: Path
    start: int
    end: int

    def documents(self, log: Damage) -> Iterator[Document]:
        raise ValueError(f"{self.path} holds tokens, not text; name the tokenizer that made them")

    def tokens(self) -> Iterator[npt.NDArray[np.uint32]]:
        """Each document's ids (T,) as they lie: some writers end each with an end of text."""
        index = read_index(self.path)
        ids = np.memmap(index.path, dtype=index.dtype, mode="r")
        for document in range(self.start, self.end):
            yield _ids(ids[index.starts[document] : index.starts[document + 1]], index, document)


def opened(name: str) -> Megatron:
    """The pair of files of which either is named. Raises ValueError naming what is wrong."""
    source = Megatron(name=name, path=Path(name).expanduser().with_suffix(".bin"))
    assert len(source.index.starts) > 1  # read now, so that errors come early
    return source


def read_index(path: Path) -> Index:
    """The documents of a .bin. Raises ValueError naming the file that does not fit."""
    file = path.with_suffix(".idx")
    for needed in (path, file):
        if not needed.is_file():
            raise ValueError(f"{needed} is missing: a .bin and an .idx of one name belong together")
    with file.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise ValueError(f"{file}: not an index of Megatron-LM")
    _, version, code, sequences, bounds = _HEADER.unpack(header)
    if version != 1 or code not in _TYPES:
        raise ValueError(f"{file}: version {version} of type {code} is not known")
    if sequences == 0 or bounds < 2:
        raise ValueError(f"{file}: it holds no documents")
    dtype = np.dtype(_TYPES[code])
    return Index(path=path, dtype=dtype, starts=_starts(file, path, dtype, sequences, bounds))


def _starts(
    file: Path, path: Path, dtype: np.dtype[np.generic], sequences: int, bounds: int
) -> npt.NDArray[np.int64]:
    """Of the documents, in tokens, from the index's lengths, addresses and bounds."""
    needed = _HEADER.size + sequences * (4 + 8) + bounds * 8
    if file.stat().st_size < needed:
        raise ValueError(f"{file}: cut off; {needed:,} bytes are due")
    with file.open("rb") as stream:
        stream.seek(_HEADER.size)
        lengths = np.fromfile(stream, dtype="<i4", count=sequences).astype(np.int64)
        addresses = np.fromfile(stream, dtype="<i8", count=sequences)
        documents = np.fromfile(stream, dtype="<i8", count=bounds)
    ends = np.r_[0, np.cumsum(lengths)]
    if not np.array_equal(addresses, ends[:-1] * dtype.itemsize):
        raise ValueError(f"{file}: the sequences do not follow each other without a gap")
    whole = documents[0] == 0 and documents[-1] == sequences and (np.diff(documents) >= 0).all()
    if not whole or lengths.min() < 0:
        raise ValueError(f"{file}: the documents do not cover the sequences in their order")
    size = path.stat().st_size
    if size != ends[-1] * dtype.itemsize:
        due = ends[-1] * dtype.itemsize
        raise ValueError(f"{path}: {size:,} bytes, where its index says {due:,}")
    starts: npt.NDArray[np.int64] = ends[documents]
    return starts


def _ids(raw: npt.NDArray[np.generic], index: Index, document: int) -> npt.NDArray[np.uint32]:
    wide = raw.astype(np.int64)
    if len(wide) and not 0 <= wide.min() <= wide.max() < 2**32:
        raise ValueError(f"{index.path}: document {document} has an id that is no token")
    return wide.astype(np.uint32)
