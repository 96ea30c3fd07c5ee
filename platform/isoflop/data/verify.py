"""Is a prepared text still what was written? Every file that is not, and how it differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop.data.encode import SIDES, Side
from isoflop.data.prepared import MANIFEST, Prepared
from isoflop.data.shards import TokenFile

_BLOCK = 2**22  # ids looked at a time


def folders(folder: Path) -> list[Path]:
    """The prepared texts of a folder: itself, or those right below it, as in a study's cache.

    Raises ValueError where there is none.
    """
    if (folder / MANIFEST).exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not found:
        raise ValueError(f"{folder / MANIFEST} is missing, and so it is one level below")
    return found


def complaints(folder: Path) -> Iterator[str]:
    """A sentence about each thing that is wrong with a prepared text; all of it is read."""
    try:
        prepared = Prepared.read(folder)
    except ValueError as error:
        yield str(error)
        return
    try:
        found = prepared.tokenizer().hash
        if found != prepared.tokenizer_hash:
            yield (
                f"{folder}: the tokenizer is another one ({found}) than the text was encoded with "
                f"({prepared.tokenizer_hash})"
            )
    except ValueError as error:
        yield str(error)
    for side in SIDES:
        yield from _side(prepared, side)


def _side(prepared: Prepared, side: Side) -> Iterator[str]:
    try:
        file = TokenFile.open(prepared.folder, side)
    except ValueError as error:
        yield str(error)
        return
    where = prepared.folder / side
    if file.origin != prepared.origin:
        yield (
            f"{where}.* are of another text or tokenizer: fingerprint {file.origin.fingerprint}, "
            f"tokenizer {file.origin.tokenizer}, where {MANIFEST} says {prepared.fingerprint}, "
            f"{prepared.tokenizer_hash}"
        )
    altered = list(file.altered())
    yield from altered
    counts = {"tokens": file.tokens, "documents": file.documents}
    for what, found in counts.items():
        noted = getattr(prepared, f"{side}_{what}")
        if found != noted:
            yield f"{where}.json says {found} {what}, {MANIFEST} says {noted}"
    if np.iinfo(file.dtype).max < prepared.vocab - 1:
        yield f"{where}.tokens are {file.dtype.name}; {prepared.vocab:,} ids do not fit"
    if not altered:
        yield from _content(file, prepared, f"{where}.tokens")


def _content(file: TokenFile, prepared: Prepared, where: str) -> Iterator[str]:
    """What a checksum cannot tell: that the ids never were what the manifest says."""
    largest = max(_largest(file, start) for start in range(0, len(file), _BLOCK))
    if largest >= prepared.vocab:
        yield f"{where} holds id {largest}, outside the vocabulary of {prepared.vocab}"
    ends = file.document_ends
    if np.any(np.diff(ends, prepend=0) <= 0) or ends[-1] != file.tokens:
        yield f"{where}: its documents do not follow one another to the end"


def _largest(file: TokenFile, start: int) -> int:
    return int(file.read(start, min(len(file), start + _BLOCK)).max())
