"""What does this machine know of the nodes, beyond their names? One JSON file behind a lock.

An entry is written before its node is bought, so that a process that dies in between leaves a
trace. Entries go by the node's name: it is known before the node has an id.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock


@dataclass(kw_only=True)
class Entry:
    """One node, bought or to be."""

    asked: float  # seconds since 1970
    tags: dict[str, str] = field(default_factory=dict)
    id: str | None = None
    doubt: bool = False  # ordered, and nobody knows whether it was bought
    ended: float | None = None  # when we ended it
    price: float = 0  # dollars per hour
    slot: int | None = None  # in the overlay


@dataclass(kw_only=True)
class Book:
    """The content of the file."""

    nodes: dict[str, Entry] = field(default_factory=dict)
    closed: str = ""  # why this cluster buys nothing any more


class Ledger:
    """The file, which several threads and processes change in turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_suffix(".lock"), timeout=60, mode=0o600)
        self.purchase = FileLock(path.with_suffix(".purchase"), timeout=300, mode=0o600)

    def read(self) -> Book:
        with self._lock:
            return self._load()

    @contextmanager
    def change(self) -> Iterator[Book]:
        """The book, written back when the block ends well."""
        with self._lock:
            book = self._load()
            before = asdict(book)
            yield book
            if (after := asdict(book)) != before:
                _write(self.path, after)

    def _load(self) -> Book:
        try:
            values = json.loads(self.path.read_text())
        except FileNotFoundError:
            return Book()
        nodes = {name: Entry(**entry) for name, entry in values["nodes"].items()}
        return Book(nodes=nodes, closed=values["closed"])


def _write(path: Path, values: dict[str, Any]) -> None:
    """Whole or not at all, and for nobody else to read."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(values, file, indent=1)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
