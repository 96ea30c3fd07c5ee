"""Which ids do the documents of a unit become? Two token files and a note, in a folder of units.

    NUMBER-train.*, NUMBER-validation.*   as in `isoflop.data.shards`; a side may have none
    NUMBER.json                           counts, and what they are of; it is written last

A unit that was finished by an earlier process, killed since, is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from isoflop.data import shards, tokenizers
from isoflop.data.documents import Damage
from isoflop.data.scan import Content, Unit, check_shared, raw, records
from isoflop.data.shards import Origin, TokenFile
from isoflop.data.split import CUT, DROPPED, TRAIN, cut
from isoflop.data.tokenizers import Tokenizer

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """A unit, and what becomes of each of its documents."""

    source: str  # for messages
    unit: Unit
    scans: Path
    sides: bytes  # one of `split`'s per document
    tail: float  # share of a cut document that is held out


@dataclass(frozen=True, kw_only=True)
class Encode:
    """One unit to encode. Small: it is sent to the process that does it."""

    assigned: Assigned
    folder: Path  # of finished units; it holds the tokenizer too
    origin: Origin


@dataclass(frozen=True)
class Encoded:
    """What a unit became."""

    number: int
    of: str  # hash of its documents and their sides
    read: int = 0  # bytes of its documents, for progress
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))  # UTF-8
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))


def encode(job: Encode) -> Encoded:
    """Encode one unit, unless that was done before.

    Raises ValueError for a document that is not the one that was scanned.
    """
    check_shared(job.folder)
    unit, of = job.assigned.unit, _hash(job.assigned)
    finished = _finished(job.folder, unit.number, of)
    if finished is not None:
        return finished
    tokenizer = _tokenizer(job.folder, job.origin.tokenizer)
    encoded = Encoded(unit.number, of, _read(job.assigned))
    dtype = shards.dtype_for(tokenizer.vocab_size)
    sizes = _sizes(tokenizer) if unit.ready else None
    with ExitStack() as stack:
        writers: dict[str, shards.Writer] = {}
        for side, content in pieces(job.assigned):
            if side not in writers:
                writer = shards.Writer(job.folder, name(unit.number, side), dtype, job.origin)
                writers[side] = stack.enter_context(writer)
            ids = ids_of(content, tokenizer)
            writers[side].append(ids)
            encoded.documents[side] += 1
            if isinstance(content, str):
                encoded.bytes[side] += len(content.encode())
            else:
                assert sizes is not None
                encoded.bytes[side] += int(sizes[ids].sum())
    shards.write_json(job.folder / f"{unit.number:06d}.json", asdict(encoded))
    return encoded


def pieces(job: Assigned) -> Iterator[tuple[Side, Content]]:
    """Every document of a unit that counts, with its side; one that is cut gives two.

    Raises ValueError where the source is no longer as it was scanned.
    """
    noted = np.ascontiguousarray(records(job.scans, job.unit.number)["digest"])
    count = 0
    for document, content in job.unit.contents(Damage()):
        if count == len(noted) or hashlib.sha256(raw(content)).digest() != noted[count].tobytes():
            raise ValueError(f"{document} in {job.source!r} changed while it was prepared")
        side = job.sides[count]
        count += 1
        if side == CUT:
            head, tail = _cut(content, job.tail)
            yield "train", head
            yield "validation", tail
        elif side != DROPPED:
            yield "train" if side == TRAIN else "validation", content
    if count < len(noted):
        raise ValueError(
            f"{len(noted) - count} documents of {job.source!r} went while it was prepared"
        )


def assemble(
    folder: Path, target: Path, side: Side, done: list[Encoded], origin: Origin, vocab: int
) -> TokenFile:
    """Join the units' files of one side, in the order of the units, to the file of that name."""
    with shards.Writer(target, side, shards.dtype_for(vocab), origin) as writer:
        for encoded in done:
            if encoded.documents[side]:
                writer.extend(TokenFile.open(folder, name(encoded.number, side)))
    return TokenFile.open(target, side)


def name(number: int, side: Side) -> str:
    """Of the token file of one side of a unit."""
    return f"{number:06d}-{side}"


def ids_of(content: Content, tokenizer: Tokenizer) -> npt.NDArray[np.uint32]:
    """A document's ids with the end of text; ready ones are checked, and may have it already."""
    end = np.array([tokenizer.end_of_text], dtype=np.uint32)
    if isinstance(content, str):
        return np.concatenate([tokenizer.encode(content), end])
    if len(content) and int(content.max()) >= tokenizer.vocab_size:
        raise ValueError(
            f"the source holds token id {int(content.max())}, outside the vocabulary of "
            f"{tokenizer.vocab_size} of {tokenizer.name!r}; name the tokenizer it was made with"
        )
    ended = len(content) and content[-1] == tokenizer.end_of_text
    return content if ended else np.concatenate([content, end])


def _cut(content: Content, tail: float) -> tuple[Content, Content]:
    if isinstance(content, str):
        return cut(content, tail)
    place = int(len(content) * (1 - tail))
    if not 0 < place < len(content):
        raise ValueError(f"the text ({len(content)} tokens) is too small to hold out a part of it")
    return content[:place], content[place:]


def _hash(job: Assigned) -> str:
    """Of all that the ids of a unit depend on, but for the tokenizer, which names the folder."""
    found = hashlib.sha256(f"{job.tail!r} ".encode() + job.sides)
    found.update(records(job.scans, job.unit.number)["digest"].tobytes())
    return found.hexdigest()


def _read(job: Assigned) -> int:
    return int(records(job.scans, job.unit.number)["size"].sum())


def _finished(folder: Path, number: int, of: str) -> Encoded | None:
    try:
        encoded = Encoded(**json.loads((folder / f"{number:06d}.json").read_bytes()))
        if encoded.of != of:
            return None  # the same text, whose files were gathered to other units
        for side in SIDES:
            if encoded.documents[side]:
                TokenFile.open(folder, name(number, side))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # not finished, or damaged since: encoded again, and written over
    return encoded


@lru_cache(maxsize=2)
def _tokenizer(folder: Path, hash: str) -> Tokenizer:
    tokenizer = tokenizers.load(folder)
    if tokenizer.hash != hash:
        raise ValueError(f"{folder} holds another tokenizer than the one that was sent")
    return tokenizer


def _sizes(tokenizer: Tokenizer) -> npt.NDArray[Any]:
    return tokenizer.token_bytes()
