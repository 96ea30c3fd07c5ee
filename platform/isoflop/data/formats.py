"""How is a file of text read, and a huge one cut into slices that can be read apart?

    .jsonl, .csv     a document per line or row, from one column (.parquet: see `parquet`)
    anything else    a document per file; of a huge one, a document per slice of it

Each may be compressed (.gz, .zst), but then it is one part. Memory is bounded by a slice, and by
the longest line or row.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import tokenize
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from isoflop.data import parquet
from isoflop.data.documents import (
    Damage,
    Document,
    Part,
    Undecodable,
    kept,
    text_of,
    well_formed,
)

SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".csv", ".parquet")
COMPRESSED = (".gz", ".zst")

SLICE = 2**25  # bytes of a plain file that one part holds, at most about
_LINE = 2**20  # how far the end of a line is looked for before a text is cut anywhere
_SNIFF = 8000  # bytes in which a zero byte betrays a binary file, as git judges it


@dataclass(frozen=True, kw_only=True)
class FilePart(Part):
    """A file below a source, or the bytes [start, end) of it."""

    name: str
    bytes: int
    path: Path
    file: str  # posix path below the source; documents are named after it
    column: str
    undecodable: Undecodable
    start: int = 0
    end: int | None = None  # None: to the end of the file

    def documents(self, log: Damage) -> Iterator[Document]:
        read = {".jsonl": _jsonl, ".csv": _csv}.get(suffix(self.path), _text)
        try:
            yield from read(self, log)
        except (EOFError, zlib.error, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of the disk, not of the decompressor
                raise
            raise ValueError(f"{self.path}: cannot be decompressed ({error})") from error


def suffix(path: Path) -> str:
    """Of the file once it is decompressed, in lower case."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last in COMPRESSED else last


def cut(path: Path, file: str, column: str, undecodable: Undecodable) -> list[Part]:
    """A file as one part, or as several in their order where it is huge and can be cut."""
    size = path.stat().st_size
    compressed = path.suffix.lower() in COMPRESSED
    if suffix(path) == ".parquet":
        if compressed:
            raise ValueError(f"{path}: parquet is compressed inside; unpack it")
        return list(parquet.cut(path, file, column, undecodable))
    whole = FilePart(
        name=file, bytes=size, path=path, file=file, column=column, undecodable=undecodable
    )
    if size <= SLICE or compressed or suffix(path) == ".csv":  # a quoted cell may hold line ends
        return [whole]
    starts = enumerate(range(0, size, SLICE))
    return [_slice(whole, k, start, min(start + SLICE, size)) for k, start in starts]


def _slice(whole: FilePart, k: int, start: int, end: int) -> FilePart:
    return replace(whole, name=f"{whole.file}#{k}", bytes=end - start, start=start, end=end)


def open_bytes(path: Path) -> IO[bytes]:
    """A file as it is once decompressed."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        import pyarrow as pa  # heavy, and only needed here

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _text(part: FilePart, log: Damage) -> Iterator[Document]:
    for name, content in _pieces(part):
        if b"\0" in content[:_SNIFF]:
            if part.undecodable == "refuse":
                raise ValueError(f"{part.path}: a binary file, for it holds zero bytes")
            log.note("binary", name)
        elif suffix(part.path) == ".py" and name == part.file:
            yield from kept(name, _python(content, name, part.undecodable, log), log)
        else:
            yield from kept(name, text_of(content, name, part.undecodable, log), log)


def _python(content: bytes, name: str, undecodable: Undecodable, log: Damage) -> str | None:
    """Python states its encoding itself (PEP 263)."""
    try:
        return content.decode(tokenize.detect_encoding(io.BytesIO(content).readline)[0])
    except (UnicodeDecodeError, SyntaxError, LookupError) as error:  # the last two: a wrong cookie
        if undecodable == "refuse":
            raise ValueError(f"{name}: not in the encoding that it declares ({error})") from None
    if undecodable == "replace":
        log.note("replaced", name)
        return content.decode("utf-8-sig", errors="replace")
    log.note("undecodable", name)
    return None


def _pieces(part: FilePart) -> Iterator[tuple[str, bytes]]:
    """The names and bytes of a text's slices: of the one that the part is, or of a whole stream.

    Both cut at the same places, so a text is the same documents compressed or not.
    """
    if part.end is None and part.path.suffix.lower() not in COMPRESSED:
        # No longer than a slice, and read at once: room for a whole slice is slow to get.
        yield part.file, part.path.read_bytes().removeprefix(codecs.BOM_UTF8)
        return
    with open_bytes(part.path) as stream:
        if part.end is not None:
            start = _aligned(stream, part.start, _LINE)
            content = _between(stream, start, _aligned(stream, part.end, _LINE))
            yield part.name, content if start else content.removeprefix(codecs.BOM_UTF8)
            return
        begin, rest, k = 0, b"", 0
        while (block := rest + stream.read((k + 1) * SLICE - begin - len(rest))) or k == 0:
            line = stream.readline(_LINE)
            end = _line_end(line, _LINE)
            single = k == 0 and not line
            content = block + line[:end]
            name = part.file if single else f"{part.file}#{k}"
            yield name, content if k else content.removeprefix(codecs.BOM_UTF8)
            begin, rest, k = begin + len(content), line[end:], k + 1


def _aligned(stream: IO[bytes], offset: int, limit: int) -> int:
    """Where the slice that nominally begins at `offset` really begins: after the line there."""
    if offset == 0:
        return 0
    stream.seek(offset)
    return offset + _line_end(stream.readline(limit), limit)


def _line_end(line: bytes, limit: int) -> int:
    """How much of a line, read up to `limit`, belongs to the slice before: never half a character.

    A line without an end in sight is cut before its last character.
    """
    if limit < 0 or len(line) < limit or line.endswith(b"\n"):
        return len(line)
    return max(i for i in range(len(line) - 4, len(line)) if line[i] & 0xC0 != 0x80 or i == 0)


def _between(stream: IO[bytes], start: int, end: int) -> bytes:
    stream.seek(start)
    return stream.read(end - start)


def _lines(part: FilePart) -> Iterator[tuple[str, bytes]]:
    """Every line that begins in a part, with its place: its number, or its byte in a slice."""
    with open_bytes(part.path) as stream:
        if part.end is None:
            for number, line in enumerate(stream, start=1):
                yield str(number), line if number > 1 else line.removeprefix(codecs.BOM_UTF8)
            return
        at, end = (_aligned(stream, place, -1) for place in (part.start, part.end))
        stream.seek(at)
        while at < end:
            line = stream.readline()
            yield f"@{at}", line if at else line.removeprefix(codecs.BOM_UTF8)
            at += len(line)


def _jsonl(part: FilePart, log: Damage) -> Iterator[Document]:
    for place, line in _lines(part):
        if not line.strip():
            continue
        name, where = f"{part.file}:{place}", f"{part.path}:{place}"
        decoded = text_of(line, name, part.undecodable, log)
        if decoded is None:
            continue
        try:
            value: Any = json.loads(decoded)
        except ValueError as error:
            raise ValueError(f"{where}: not a line of JSON ({error})") from None
        if not isinstance(value, dict) or not isinstance(value.get(part.column), str):
            raise ValueError(f'{where}: each line must be an object with a string "{part.column}"')
        yield from kept(name, well_formed(value[part.column]), log)


def _csv(part: FilePart, log: Damage) -> Iterator[Document]:
    """RFC 4180 with a header. Bytes that are not UTF-8 pass through the reader unharmed."""
    csv.field_size_limit(2**31 - 1)  # the module's own, for all of the process: 128 KiB
    with open_bytes(part.path) as stream:
        lines = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(lines, strict=True)
        try:
            header = next(rows, [])
            if part.column not in header:
                has = ", ".join(header) or "none"
                raise ValueError(f'{part.path}: no column "{part.column}"; it has {has}')
            index = header.index(part.column)
            for number, row in enumerate(filter(None, rows)):
                name = f"{part.file}:{number}"
                if len(row) <= index:
                    raise ValueError(f'{part.path}: row {number} has no "{part.column}"')
                content = row[index].encode("utf-8", "surrogateescape")
                yield from kept(name, text_of(content, name, part.undecodable, log), log)
        except csv.Error as error:
            raise ValueError(f"{part.path}:{rows.line_num}: not CSV ({error})") from None
