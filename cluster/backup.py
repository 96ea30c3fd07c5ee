"""How does the record of runs outlive the head? A consistent copy of its database, elsewhere.

python -m cluster.backup mlflow.db s3://bucket/lab
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path
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


def _put(copy: Path, storage: str) -> str:
    """Under another name first: a copy that is cut short never replaces a whole one."""
    if not urlsplit(storage).scheme:
        target = Path(storage)
        target.mkdir(parents=True, exist_ok=True)
        partial = target / f".{copy.name}.partial"
        partial.write_bytes(copy.read_bytes())
        os.replace(partial, target / copy.name)
        return str(target / copy.name)
    from pyarrow import fs

    system, path = fs.FileSystem.from_uri(storage)
    partial_path = f"{path.rstrip('/')}/.{copy.name}.partial"
    with system.open_output_stream(partial_path) as stream:
        stream.write(copy.read_bytes())
    system.move(partial_path, f"{path.rstrip('/')}/{copy.name}")
    return f"{storage.rstrip('/')}/{copy.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    parser.add_argument("storage")
    options = parser.parse_args()
    print(backup(options.database, options.storage))


if __name__ == "__main__":
    main()
