"""How does a folder come into being whole, by one process, or not at all?"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from isoflop.data.meter import Say

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def only_one(target: Path, say: Say = lambda line: None) -> Iterator[None]:
    """One process at a time; the others say so, wait, and then find the target made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"another process is at work on {target}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A folder to fill, that becomes `target` only when the block ends well.

    The lock is held, so what an earlier process left half-done is nobody's and goes.
    """
    for stale in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's is the owner's alone, and a cache may be shared
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def room(below: Path) -> Iterator[None]:
    """Raises OSError that says what to do where the block meets a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(
            error.errno,
            f"no room for token files below {below} ({os.strerror(error.errno or 0)}); finished "
            "parts are kept: free some room, and the same command continues",
        ) from error
