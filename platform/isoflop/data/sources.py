"""Which documents does a source hold? Always the same ones, in the same order.

A source is "python-stdlib" or the path of a file or folder. Documents come one by one, so a corpus
may be larger than memory; their order is that of their names, and never that of the disk.
"""

from __future__ import annotations

import io
import json
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STDLIB = "python-stdlib"
SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")

# Not the library itself: its test suites, and whatever else was installed beside it.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """A text and where it came from: a path below the source, with ":line" or ":row" of a table."""

    name: str
    text: str  # never blank, and always encodable as UTF-8


@dataclass(frozen=True)
class SourceFile:
    name: str  # posix path below the source
    path: Path


def documents(source: str, skipped: list[str] | None = None) -> Iterator[Document]:
    """The documents of a source, sorted by file name; blank ones are left out.

    Text files that cannot be decoded (UTF-8, or what a .py file declares) are passed over, and
    their names are appended to `skipped`. Raises ValueError for a path that does not exist or has
    no file of a known suffix, for tables without a "text" column, and if no document is left.
    """
    found = False
    unread: list[str] = [] if skipped is None else skipped
    for file in files(source):
        for document in _read(file, unread):
            if document.text.strip():
                found = True
                yield document
    if not found:
        reason = f": could not decode {', '.join(unread[:3])}" if unread else ""
        raise ValueError(f"data.source {source!r} holds no text{reason}")


def files(source: str) -> list[SourceFile]:
    """The files of a source, sorted by name. Hidden files and folders are left out."""
    if source == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        found = [file for file in _walk(root, _NOT_LIBRARY) if file.path.suffix == ".py"]
        return _some(found, source, (".py",))
    root = Path(source).expanduser()
    if root.is_dir():
        found = [file for file in _walk(root, set()) if file.path.suffix.lower() in SUFFIXES]
        return _some(found, source, SUFFIXES)
    if not root.exists():
        raise ValueError(
            f"data.source is {source!r}, but there is no such file or folder; "
            f"allowed are a path, or {STDLIB!r}"
        )
    known = root.suffix.lower() in SUFFIXES
    return _some([SourceFile(root.name, root)] if known else [], source, SUFFIXES)


def well_formed(text: str) -> str:
    """The text with lone surrogates replaced by U+FFFD, so that it can be written as UTF-8.

    Pairs of surrogates become the character that they stand for. Any other text is returned as is.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _walk(root: Path, without: set[str]) -> Iterator[SourceFile]:
    def refuse(error: OSError) -> None:
        raise error  # a folder that cannot be read must not make the corpus silently smaller

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in without and name[0] != "."]
        for name in names:
            path = Path(folder, name)
            if name[0] != "." and path.is_file():
                yield SourceFile(path.relative_to(root).as_posix(), path)


def _some(found: list[SourceFile], source: str, suffixes: tuple[str, ...]) -> list[SourceFile]:
    if not found:
        raise ValueError(f"data.source {source!r} has no file that ends in {', '.join(suffixes)}")
    return sorted(found, key=lambda file: file.name)


def _read(file: SourceFile, skipped: list[str]) -> Iterator[Document]:
    suffix = file.path.suffix.lower()
    if suffix == ".jsonl":
        yield from _read_jsonl(file)
    elif suffix == ".parquet":
        yield from _read_parquet(file)
    else:
        text = _decode(file.path.read_bytes(), python=suffix == ".py")
        if text is None:
            skipped.append(file.name)
        else:
            yield Document(file.name, text)


def _decode(content: bytes, *, python: bool) -> str | None:
    """Line ends stay as they are; a byte order mark goes. None: not text in its encoding."""
    encoding = "utf-8-sig"
    try:
        if python:
            encoding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
        return content.decode(encoding)
    except (UnicodeDecodeError, SyntaxError, LookupError):  # the last two: a wrong coding cookie
        return None


def _read_jsonl(file: SourceFile) -> Iterator[Document]:
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file.path}:{number}"
            try:
                value: Any = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                raise ValueError(f"{where}: not a line of JSON ({error})") from None
            if not isinstance(value, dict) or not isinstance(value.get("text"), str):
                raise ValueError(f'{where}: each line must be an object with a string "text"')
            yield Document(f"{file.name}:{number}", well_formed(value["text"]))


def _read_parquet(file: SourceFile) -> Iterator[Document]:
    import pyarrow as pa  # heavy, and only needed for parquet
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file.path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file.path}: not a parquet file ({error})") from None
    with table:
        kinds = {field.name: field.type for field in table.schema_arrow}
        if "text" not in kinds:
            raise ValueError(f'{file.path}: no column "text"; it has {", ".join(kinds) or "none"}')
        if kinds["text"] not in (pa.string(), pa.large_string(), pa.string_view()):
            raise ValueError(f'{file.path}: column "text" is {kinds["text"]}, not a string')
        row = 0
        for batch in table.iter_batches(batch_size=1024, columns=["text"]):
            for text in batch.column(0).to_pylist():
                if text is not None:
                    yield Document(f"{file.name}:{row}", text)
                row += 1
