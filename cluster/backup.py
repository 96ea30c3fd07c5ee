"""How does the record of runs outlive the head? A consistent copy of its database, elsewhere.

python -m cluster.backup mlflow.db s3://bucket/lab
python -m cluster.backup --restore mlflow.db s3://bucket/lab     # if it is not there
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def backup(database: Path, storage: str) -> str:
    """Copy a SQLite database while others write to it, and put the copy into `storage`: a folder,
    or a URL that pyarrow knows (s3://, gs://). Gives the copy's place; raises ValueError if there
    is no database."""
    if not database.is_file():
        raise ValueError(f"{database} is no file")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / database.name
        with (
            contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        return _put(copy, storage)


def restore(database: Path, storage: str) -> str:
    """Fetch the copy of a head that is gone. Gives its place; empty where there is nothing to do: a
    database stands here already, or no copy was ever made."""
    if database.exists():
        return ""
    system, folder = _opened(storage)
    place = f"{folder}/{database.name}"
    if not system.get_file_info(place).is_file:
        return ""
    database.parent.mkdir(parents=True, exist_ok=True)
    partial = database.with_name(f".{database.name}.partial")
    with system.open_input_stream(place) as stream:
        partial.write_bytes(stream.read())
    os.replace(partial, database)
    return place


def _put(copy: Path, storage: str) -> str:
    """Under another name first: a copy that is cut short never replaces a whole one."""
    system, folder = _opened(storage)
    system.create_dir(folder, recursive=True)
    partial, place = f"{folder}/.{copy.name}.partial", f"{folder}/{copy.name}"
    with system.open_output_stream(partial) as stream:
        stream.write(copy.read_bytes())
    system.move(partial, place)
    return place


def _opened(storage: str) -> tuple[Any, str]:
    """The file system of a folder or URL, and the path within it."""
    from pyarrow import fs

    if not urlsplit(storage).scheme:
        return fs.LocalFileSystem(), str(Path(storage).absolute())
    system, path = fs.FileSystem.from_uri(storage)
    return system, path.rstrip("/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    parser.add_argument("storage")
    parser.add_argument("--restore", action="store_true", help="from there, where it is not here")
    options = parser.parse_args()
    if options.restore:
        if place := restore(options.database, options.storage):
            print(f"runs of a head before this one: {place}")
    else:
        print(backup(options.database, options.storage))


if __name__ == "__main__":
    main()
