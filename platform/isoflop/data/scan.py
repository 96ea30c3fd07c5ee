"""What does a source hold? The digest and size of each document, noted unit by unit.

A unit is some consecutive parts of a source, the same ones however many processes there are. What
is noted of it goes to disk, so that a scan that was killed continues after its last finished unit:

    NUMBER.npy             a `split.RECORD` for each document, in their order
    NUMBER.signatures.npy  their MinHash signatures, where near-duplicates are looked for
    NUMBER.json            counts; it is written last: without it the unit was not finished
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data import minhash
from isoflop.data.documents import Damage, Part
from isoflop.data.shards import write_array, write_json
from isoflop.data.split import RECORD

UNIT_BYTES = 2**24  # of files: some seconds of work, so little is lost with a process
UNIT_PARTS = 4096

Content = str | npt.NDArray[np.uint32]  # the text of a document, or its ready ids (T,)


@dataclass(frozen=True)
class Unit:
    """Consecutive parts of a source."""

    number: int
    parts: tuple[Part, ...]
    ready: bool  # they hold ids, not text

    @property
    def bytes(self) -> int:
        """On disk; 0 for a stream."""
        return sum(part.bytes for part in self.parts)

    def contents(self, log: Damage) -> Iterator[tuple[str, Content]]:
        """Each document's name and content, in order."""
        for part in self.parts:
            if self.ready:
                for number, ids in enumerate(part.tokens()):
                    yield f"{part.name}:{number}", ids
            else:
                for document in part.documents(log):
                    yield document.name, document.text


@dataclass(frozen=True)
class Scan:
    """One unit to scan. Small: it is sent to the process that does it."""

    unit: Unit
    folder: Path
    signatures: bool


@dataclass(frozen=True)
class Scanned:
    """What a unit holds; the arrays are on disk."""

    number: int
    documents: int
    bytes: int  # on disk, for progress
    damage: Damage


def units(parts: Iterable[Part], ready: bool) -> list[Unit]:
    """Parts in their order, gathered until a unit is worth a job."""
    found: list[Unit] = []
    gathered: list[Part] = []
    size = 0
    for part in parts:
        gathered.append(part)
        size += part.bytes
        if size >= UNIT_BYTES or len(gathered) == UNIT_PARTS:
            found.append(Unit(len(found), tuple(gathered), ready))
            gathered, size = [], 0
    if gathered:
        found.append(Unit(len(found), tuple(gathered), ready))
    return found


def scan(job: Scan) -> Scanned:
    """Read one unit and note its documents, unless that was done before.

    Raises ValueError for what cannot be read, and where the folder is on no storage of this node.
    """
    check_shared(job.folder)
    finished = _finished(job)
    if finished is not None:
        return finished
    log, digests, sizes, signatures = Damage(), bytearray(), array("q"), bytearray()
    for _, content in job.unit.contents(log):
        encoded = raw(content)
        digests += hashlib.sha256(encoded).digest()
        sizes.append(len(encoded))
        if job.signatures:
            assert isinstance(content, str), "ids have no words"
            signatures += minhash.signature(content).tobytes()
    records = np.empty(len(sizes), dtype=RECORD)
    records["digest"] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    records["size"] = sizes
    if job.signatures:
        minima = np.frombuffer(signatures, dtype=np.uint32).reshape(-1, minhash.FUNCTIONS)
        write_array(_path(job.folder, job.unit.number, "signatures.npy"), minima)
    write_array(_path(job.folder, job.unit.number, "npy"), records)
    scanned = Scanned(job.unit.number, len(sizes), job.unit.bytes, log)
    write_json(_path(job.folder, job.unit.number, "json"), asdict(scanned))
    return scanned


def records(folder: Path, number: int) -> npt.NDArray[Any]:
    """What was noted of a unit (d,), mapped from disk where it is not empty."""
    return _mapped(_path(folder, number, "npy"))


def signatures(folder: Path, number: int) -> npt.NDArray[Any]:
    """The MinHash signatures of a unit (d, K), mapped from disk."""
    return _mapped(_path(folder, number, "signatures.npy"))


def raw(content: Content) -> bytes:
    """What the digest of a document is one of."""
    if isinstance(content, str):
        return content.encode()
    return content.astype("<u4", copy=False).tobytes()


def check_shared(folder: Path) -> None:
    """Raise ValueError where this process does not see the folder."""
    if not folder.is_dir():
        import socket

        raise ValueError(
            f"{folder} is not there on {socket.gethostname()}: on a cluster the output must be on "
            "storage that every node sees under the same path"
        )


def _finished(job: Scan) -> Scanned | None:
    try:
        values = json.loads(_path(job.folder, job.unit.number, "json").read_bytes())
    except FileNotFoundError:
        return None
    if job.signatures and not _path(job.folder, job.unit.number, "signatures.npy").exists():
        return None
    return Scanned(**{**values, "damage": Damage(**values["damage"])})


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError:  # nothing to map
        return np.asarray(np.load(path, allow_pickle=False))


def _path(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"{number:06d}.{suffix}"
