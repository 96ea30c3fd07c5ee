"""How do ids lie on disk? Flat and memory-mapped, with document boundaries and checksums beside.

    NAME.tokens  the ids, little-endian uint16 or uint32, nothing else
    NAME.ends    for each document the position after its last id, little-endian int64
    NAME.json    the manifest: counts, type, SHA-256 of both, and which text and tokenizer they are
                 of; it is written last

Without its manifest a file is not there, so a process that dies half-way leaves nothing that could
be taken for whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

FORMAT = 1
_TYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_ENDS: np.dtype[Any] = np.dtype("<i8")
_BLOCK = 2**24  # bytes copied at a time


@dataclass(frozen=True)
class Origin:
    """Of which text and tokenizer ids are, so that files of two texts are never taken for one."""

    fingerprint: str = ""
    tokenizer: str = ""  # its hash


def dtype_for(vocab: int) -> np.dtype[Any]:
    """The narrowest type that holds every id of a vocabulary."""
    return _TYPES["uint16" if vocab <= 2**16 else "uint32"]


@dataclass(frozen=True)
class TokenFile:
    """The ids of many documents, one after the other. Nothing is read before it is asked for."""

    folder: Path
    name: str
    tokens: int  # how many ids
    documents: int
    dtype: np.dtype[Any]
    checksums: tuple[str, str]  # SHA-256 of the ids and of the boundaries
    origin: Origin = Origin()

    @staticmethod
    def open(folder: Path, name: str) -> TokenFile:
        """The file `name` of a folder. Raises ValueError naming what is missing or cut short."""
        manifest = folder / f"{name}.json"
        try:
            values = json.loads(manifest.read_bytes())
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, where {FORMAT} is known")
            file = TokenFile(
                folder=folder,
                name=name,
                tokens=int(values["tokens"]),
                documents=int(values["documents"]),
                dtype=_TYPES[values["dtype"]],
                checksums=(values["sha256"]["tokens"], values["sha256"]["ends"]),
                origin=Origin(**values.get("origin", {})),
            )
        except FileNotFoundError:
            raise ValueError(
                f"{manifest} is missing: these tokens were not written whole"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{manifest} is not a manifest of tokens ({error!r})") from error
        file._check_sizes()
        return file

    @cached_property
    def ids(self) -> npt.NDArray[Any]:
        """The ids (tokens,), mapped from disk, read-only."""
        path = _path(self.folder, self.name, "tokens")
        return np.asarray(np.memmap(path, dtype=self.dtype, mode="r"))

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The ids [start, stop), copied: reading all of a file this way maps none of it."""
        path = _path(self.folder, self.name, "tokens")
        size = self.dtype.itemsize
        return np.fromfile(path, self.dtype, count=stop - start, offset=start * size)

    @cached_property
    def document_ends(self) -> npt.NDArray[np.int64]:
        """The position after each document's last id (documents,); the last one is `tokens`."""
        return np.fromfile(_path(self.folder, self.name, "ends"), dtype=_ENDS).astype(np.int64)

    def __len__(self) -> int:
        return self.tokens

    def __reduce__(self) -> tuple[Callable[[Path, str], TokenFile], tuple[Path, str]]:
        return TokenFile.open, (self.folder, self.name)  # sent as a reference, never with its ids

    def verify(self) -> None:
        """Read everything and compare checksums. Raises ValueError naming the file that differs."""
        self._check_sizes()
        for complaint in self.altered():
            raise ValueError(complaint)

    def altered(self) -> Iterator[str]:
        """A sentence about each of the two files whose content is not what was written."""
        for part, expected in zip(("tokens", "ends"), self.checksums, strict=True):
            path = _path(self.folder, self.name, part)
            with path.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != expected:
                yield f"{path} was altered: SHA-256 {found}, written as {expected}"

    def _check_sizes(self) -> None:
        expected = {
            "tokens": self.tokens * self.dtype.itemsize,
            "ends": self.documents * _ENDS.itemsize,
        }
        for part, size in expected.items():
            path = _path(self.folder, self.name, part)
            found = path.stat().st_size if path.exists() else None
            if found is None:
                raise ValueError(f"{path} is missing")
            if found != size:
                raise ValueError(f"{path} has {found} bytes where {size} were written")


class Writer:
    """Writes one token file document by document, in constant memory; a context manager.

    The files appear under their names when the block ends well; after an error nothing is left.
    """

    def __init__(
        self, folder: Path, name: str, dtype: npt.DTypeLike, origin: Origin = Origin()
    ) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        if self.dtype.name not in _TYPES:
            raise ValueError(f"tokens are stored as {' or '.join(_TYPES)}, not {self.dtype.name}")
        self.folder = folder
        self.name = name
        self.origin = origin
        self.tokens = 0
        self.documents = 0
        self._parts = {part: _Part(_path(folder, name, part)) for part in ("tokens", "ends")}

    def append(self, ids: npt.NDArray[Any]) -> None:
        """Add one document's ids (T,). Raises ValueError for an id that the type cannot hold."""
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > np.iinfo(self.dtype).max):
            raise ValueError(
                f"token id {int(ids.max())} does not fit {self.dtype.name} in {self.name}; "
                "a vocabulary above 65,536 needs uint32"
            )
        self.tokens += len(ids)
        self.documents += 1
        self._parts["tokens"].write(ids.astype(self.dtype).tobytes())
        self._parts["ends"].write(np.array([self.tokens], dtype=_ENDS).tobytes())

    def extend(self, file: TokenFile) -> None:
        """Add all documents of another file of the same type, a block at a time."""
        assert file.dtype == self.dtype, f"{file.folder / file.name} is {file.dtype.name}"
        with _path(file.folder, file.name, "tokens").open("rb") as content:
            while block := content.read(_BLOCK):
                self._parts["tokens"].write(block)
        with _path(file.folder, file.name, "ends").open("rb") as content:
            while block := content.read(_BLOCK):
                ends = np.frombuffer(block, dtype=_ENDS) + self.tokens
                self._parts["ends"].write(ends.astype(_ENDS).tobytes())
        self.tokens += file.tokens
        self.documents += file.documents

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self.tokens:
            for part in self._parts.values():
                part.discard()
            if kind is None:
                raise ValueError(f"{self.folder / self.name}: there are no tokens to write")
            return
        for part in self._parts.values():
            part.finish()
        manifest = {
            "format": FORMAT,
            "tokens": self.tokens,
            "documents": self.documents,
            "dtype": self.dtype.name,
            "sha256": {name: part.checksum for name, part in self._parts.items()},
            "origin": asdict(self.origin),
        }
        write_json(self.folder / f"{self.name}.json", manifest)


def write(
    folder: Path, name: str, documents: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike
) -> TokenFile:
    """Write documents of ids as the token file `name` of a folder, and open it."""
    with Writer(folder, name, dtype) as writer:
        for ids in documents:
            writer.append(ids)
    return TokenFile.open(folder, name)


def write_json(path: Path, values: object) -> None:
    """Write plain values so that the file is there whole or not at all."""
    part = _Part(path)
    part.write(json.dumps(values).encode())
    part.finish()


def write_array(path: Path, values: npt.NDArray[Any]) -> None:
    """Write an array as .npy so that the file is there whole or not at all."""
    part = _Part(path)
    np.lib.format.write_array(part, values, allow_pickle=False)
    part.finish()


class _Part:
    """A file that takes its name only once all of it is on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self._file: IO[bytes] = self._temporary.open("wb")
        self._digest = hashlib.sha256()

    @property
    def checksum(self) -> str:
        return self._digest.hexdigest()

    def write(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except BaseException:  # a full disk, say
            self.discard()
            raise
        self._digest.update(content)

    def finish(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._path)
        except BaseException:  # a full disk, say
            self.discard()
            raise

    def discard(self) -> None:
        self._temporary.unlink(missing_ok=True)
        with suppress(OSError):  # what is still buffered has no place on a full disk either
            self._file.close()


def _path(folder: Path, name: str, part: str) -> Path:
    return folder / f"{name}.{part}"
