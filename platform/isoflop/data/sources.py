"""Which documents does a source hold? Always the same ones, in the same order.

    python-stdlib             the standard library's own source, on every machine
    PATH                      a file, or a folder of .txt, .md, .py, .jsonl, .csv or .parquet
    PATTERN                   such as "corpus/**/*.rst": files of any suffix
    PATH.bin or PATH.idx      ready tokens of Megatron-LM (see `isoflop.data.megatron`)
    known:SEED,...            text of exactly known entropy (see `isoflop.data.known`)
    tinystories, fineweb-edu, hf:NAME    from Hugging Face's hub (see `isoflop.data.hub`)

Any file of text may end in .gz or .zst besides. Documents come one by one, so a corpus may be
larger than memory; their order is that of their files' names, and never that of the disk.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isoflop.data import formats, hub, known, megatron
from isoflop.data.documents import (
    Damage,
    Document,
    Part,
    Source,
    Stamp,
    Undecodable,
    check_undecodable,
    stamp_of,
    well_formed,
)

__all__ = [
    "STDLIB",
    "Document",
    "Source",
    "SourceFile",
    "documents",
    "files",
    "open",
    "well_formed",
]

STDLIB = "python-stdlib"

# Not the library itself: its test suites, and whatever else was installed beside it.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class SourceFile:
    name: str  # posix path below the source
    path: Path


@dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """Files on disk, listed once; a huge one is several parts."""

    name: str
    files: tuple[SourceFile, ...]  # sorted by name
    column: str = "text"
    undecodable: Undecodable = "skip"
    licence: str | None = None

    def parts(self) -> list[Part]:
        return [
            part
            for file in self.files
            for part in formats.cut(file.path, file.name, self.column, self.undecodable)
        ]

    def stamp(self) -> list[Stamp]:
        return [stamp_of(file.path) for file in self.files]


def open(name: str, *, column: str = "text", undecodable: Undecodable = "skip") -> Source:
    """The source of a name, downloaded where it must be; nothing of its content is read yet.

    `column` is the one that holds the text of a table. `undecodable`: what becomes of text that is
    not UTF-8 (or, of .py, what the file declares): left out, kept with U+FFFD in it, or refused
    when it is met. Raises ValueError for what is not there.
    """
    check_undecodable(undecodable)
    if name.startswith(known.PREFIX):
        return known.named(name)
    if name.startswith(hub.PREFIX):
        return hub.opened(name, column)
    if name.lower().endswith(megatron.SUFFIXES):
        return megatron.opened(name)
    licence = "PSF-2.0" if name == STDLIB else None
    if name in hub.DOWNLOADS and not Path(name).exists():
        licence = hub.DOWNLOADS[name].licence
        found = [SourceFile(path.name, path) for path in hub.downloaded(name)]
    else:
        found = files(name)
    return FileSource(
        name=name, files=tuple(found), column=column, undecodable=undecodable, licence=licence
    )


def documents(source: str, skipped: list[str] | None = None) -> Iterator[Document]:
    """The documents of a source in their order; blank ones are left out.

    What cannot be decoded is passed over, and its names are appended to `skipped`. Raises
    ValueError as `open` does, and if no document is left.
    """
    found = False
    unread: list[str] = [] if skipped is None else skipped
    for part in open(source).parts():
        log = Damage()
        for document in part.documents(log):
            found = True
            yield document
        unread += log.names.get("undecodable", []) + log.names.get("binary", [])
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
        found = [
            file for file in _walk(root, set()) if formats.suffix(file.path) in formats.SUFFIXES
        ]
        return _some(found, source, formats.SUFFIXES)
    if root.exists():
        return [SourceFile(root.name, root)]  # named by the user, whatever its suffix
    matches = set(_matches(root))
    if not matches:
        raise ValueError(
            f"data.source is {source!r}, but there is no such file or folder; "
            "allowed are a path, a pattern such as 'corpus/**/*.txt', 'hf:NAME', 'known:SEED', or "
            f"{', '.join(map(repr, [*hub.DOWNLOADS, STDLIB]))}"
        )
    return sorted(matches, key=lambda file: file.name)


def _matches(pattern: Path) -> Iterator[SourceFile]:
    """The files that a pattern names, by their path below its last folder without a wildcard."""
    fixed = 0
    while not glob.has_magic(pattern.parts[fixed]):
        fixed += 1
        if fixed == len(pattern.parts):
            return
    root = Path(*pattern.parts[:fixed])
    for found in glob.iglob(str(Path(*pattern.parts[fixed:])), root_dir=root, recursive=True):
        if (root / found).is_file():
            yield SourceFile(Path(found).as_posix(), root / found)


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
