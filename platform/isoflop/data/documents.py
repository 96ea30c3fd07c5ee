"""What is a document, where do documents come from, and what was wrong with those left out?

    open(name) -> Source -> parts in a fixed order -> documents in a fixed order

A part is a file, or a slice of a huge one, so that several processes may read one source. Parts in
their order give all documents in theirs, however many processes there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Undecodable = Literal["skip", "replace", "refuse"]
Kind = Literal["undecodable", "replaced", "binary", "empty"]

KINDS: dict[Kind, str] = {
    "undecodable": "left out, for they could not be decoded",
    "replaced": "kept, with U+FFFD for what could not be decoded",
    "binary": "left out, for they are binary",
    "empty": "left out, for they are empty",
}
NAMES_KEPT = 5  # of each kind, to show to a user


@dataclass(frozen=True)
class Document:
    """A text and where it came from: a path below the source, with ":line" or ":row" of a table."""

    name: str
    text: str  # never blank, and always encodable as UTF-8


@dataclass
class Damage:
    """How many documents were left out or mended, and the first names of each kind.

    Picklable; `add` joins what several processes found, in the order of the parts.
    """

    counts: dict[Kind, int] = field(default_factory=dict)
    names: dict[Kind, list[str]] = field(default_factory=dict)

    def note(self, kind: Kind, name: str) -> None:
        self.add(Damage({kind: 1}, {kind: [name]}))

    def add(self, other: Damage) -> None:
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            kept = self.names.setdefault(kind, [])
            kept += other.names.get(kind, [])[: NAMES_KEPT - len(kept)]

    def lines(self) -> list[str]:
        """One sentence per kind that was met."""
        return [
            f"{self.counts[kind]:,} documents {what}, such as {self.names[kind][0]}"
            for kind, what in KINDS.items()
            if self.counts.get(kind)
        ]


class Part(ABC):
    """A file, or a slice of one. Picklable: cheap to send to the process that reads it."""

    name: str  # of no other part of its source
    bytes: int  # on disk, for progress; 0 where nobody knows (streams)

    @abstractmethod
    def documents(self, log: Damage) -> Iterator[Document]:
        """The documents in their order; what is left out or mended is noted in `log`.

        Raises ValueError, naming the place, for what is damaged or of another form.
        """

    def tokens(self) -> Iterator[npt.NDArray[np.uint32]]:
        """For a source of ready tokens (`Source.ready`): each document's ids (T,)."""
        raise ValueError(f"{self.name} holds text, not tokens")


class Source(ABC):
    """A name that a user gave, opened: it is there, and its form is known."""

    name: str
    licence: str | None = None  # an SPDX identifier where one is known
    ready: bool = False  # parts hold token ids (`Part.tokens`), not text

    @abstractmethod
    def parts(self) -> list[Part]:
        """All parts in their order: one list as long as nothing changes on disk."""

    @abstractmethod
    def stamp(self) -> list[Stamp] | None:
        """One entry per file; equal stamps mean that no file was written in between.

        None where that cannot be known (streams).
        """


Stamp = tuple[str, int, int, int, int]  # place, inode, bytes, modified (ns), changed (ns)


def stamp_of(path: Path) -> Stamp:
    """All that tells that a file was not written in between."""
    status = path.stat()
    place = str(path.absolute())
    return place, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def check_undecodable(value: str) -> None:
    """Raises ValueError naming what is allowed."""
    if value not in get_args(Undecodable):
        allowed = ", ".join(map(repr, get_args(Undecodable)))
        raise ValueError(f"undecodable is {value!r}; it must be one of {allowed}")


def text_of(content: bytes, name: str, undecodable: Undecodable, log: Damage) -> str | None:
    """The UTF-8 text of some bytes, or None if they are to be left out; either way `log` knows.

    Line ends stay as they are. Raises ValueError where such bytes are to be refused.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        if undecodable == "refuse":
            raise ValueError(f"{name}: not UTF-8 ({error})") from None
    if undecodable == "replace":
        log.note("replaced", name)
        return content.decode(errors="replace")
    log.note("undecodable", name)
    return None


def kept(name: str, text: str | None, log: Damage) -> Iterator[Document]:
    """The document, unless it was left out before or is blank."""
    if text is None:
        return
    if text.strip():
        yield Document(name, text)
    else:
        log.note("empty", name)


def well_formed(text: str) -> str:
    """The text with lone surrogates replaced by U+FFFD, so that it can be written as UTF-8.

    Pairs of surrogates become the character that they stand for. Any other text is returned as is.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
