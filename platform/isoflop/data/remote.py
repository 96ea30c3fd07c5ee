"""How is a prepared text that lies at a URL read? Through a copy here, checked, within a bound.

    s3://bucket/prepared, gs://..., or whatever else fsspec opens: what `isoflop data prepare`
    filled, copied there

The manifest is read from the URL each time; all the rest only where no copy of that very manifest
is here. Copies lie below CACHE/remote/, by the hash of their manifest. A copy takes its name once
every checksum in it holds; where all of them would be larger than the bound (half of the disk that
they lie on), those that were asked for longest ago go first. Texts are copied whole: rows are drawn
at random from all of a text, so a few steps ask for nearly every part of it. Storage of other hosts
needs its package beside fsspec: s3fs, gcsfs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from isoflop.data.folders import only_one, room, whole
from isoflop.data.prepared import MANIFEST, Prepared
from isoflop.data.verify import complaints

SHARE = 0.5  # of the disk: what all copies together may take
_BLOCK = 2**22  # bytes copied at a time


def is_url(source: str) -> bool:
    return "://" in source


def fetched(
    url: str,
    cache: Path,
    *,
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of the copy of what was prepared at `url`; all copies hold at most `limit` bytes,
    by default half of their disk.

    Raises ValueError for a URL that cannot be read, where no text was prepared, whose content is
    not what was written, or that is larger than the limit; OSError for a disk that is full.
    """
    system, root = _opened(url)
    with _reading(url):
        if not system.exists(f"{root}/{MANIFEST}"):
            raise ValueError(
                f"{url}/{MANIFEST} is missing: at a URL must lie what `isoflop data prepare` filled"
            )
        manifest: bytes = system.cat_file(f"{root}/{MANIFEST}")
    copies = cache / "remote"
    target = copies / hashlib.sha256(manifest).hexdigest()[:16]
    with room(copies), only_one(copies, say):  # the bound is of all copies: one at a time is made
        if not _whole(target):
            copies.mkdir(parents=True, exist_ok=True)
            bound = int(SHARE * shutil.disk_usage(copies).total) if limit is None else limit
            _copy(system, root, url, target, bound, say)
        os.utime(target)  # its time is that of its last use
    return target


def _copy(
    system: Any, root: str, url: str, target: Path, limit: int, say: Callable[[str], None]
) -> None:
    with _reading(url):
        listed = system.ls(root, detail=True)
    sizes = {entry["name"]: int(entry["size"]) for entry in listed if entry["type"] == "file"}
    needed = sum(sizes.values())
    if needed > limit:
        raise ValueError(
            f"{url} holds {needed:,} bytes, and copies in {target.parent} may have {limit:,} in "
            "all (half of the disk, unless another bound was given): use a larger disk, or prepare "
            "a part of the text"
        )
    for line in _make_room(target.parent, limit - needed):
        say(line)
    say(f"copying {url}, {needed / 1e6:,.1f} MB")
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as folder:
        for name, size in sizes.items():
            _download(system, name, size, folder / PurePosixPath(name).name, url)
        for complaint in complaints(folder):
            raise ValueError(f"{url} is not what was written: {complaint}")
        if hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16] != target.name:
            raise ValueError(f"{url} changed while it was copied; try again")


def _download(system: Any, name: str, size: int, path: Path, url: str) -> None:
    with path.open("wb") as local:
        with _reading(url):
            remote = system.open(name, "rb")
        with remote:
            while block := _block(remote, url):
                local.write(block)
    if path.stat().st_size != size:
        raise ValueError(f"{url}: {path.name} broke off at {path.stat().st_size:,} of {size:,}")


def _block(remote: Any, url: str) -> bytes:
    """The next bytes. Only reading is guarded: what cannot be written is the disk's fault here."""
    with _reading(url):
        block: bytes = remote.read(_BLOCK)
    return block


def _make_room(copies: Path, allowed: int) -> Iterator[str]:
    """Remove what killed processes left, and then the longest unused copies beyond `allowed`."""
    for stale in copies.glob(".*.tmp"):
        shutil.rmtree(stale)
    found = sorted(copies.glob("[!.]*/"), key=lambda folder: folder.stat().st_mtime_ns)
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in found}
    while sum(sizes.values()) > allowed:
        oldest = next(iter(sizes))
        size = sizes.pop(oldest)
        shutil.rmtree(oldest)
        yield f"removed {oldest}, {size / 1e6:,.1f} MB, to keep within the limit of copies"


def _whole(target: Path) -> bool:
    """Whether a copy is here with all its bytes; what somebody cut short is cleared away."""
    if not target.exists():
        return False
    try:
        Prepared.load(target)
    except ValueError:
        shutil.rmtree(target)
        return False
    return True


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises ValueError where a package is missing,
    or the kind of URL is unknown.
    """
    import fsspec

    kind = url.partition("://")[0]
    try:
        with _reading(url):
            system, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(
            f"data.source is {url!r}, and {kind}:// needs a package that is not installed "
            f"({error}); install it, or copy the folder to this machine"
        ) from error
    return system, str(root).rstrip("/")


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Whatever another host's storage does wrong, in one sentence."""
    try:
        yield
    except (OSError, TimeoutError) as error:
        raise ValueError(
            f"{url} could not be read ({type(error).__name__}: {error}); look at the address, the "
            "network and the credentials; the same command tries again"
        ) from error
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        raise ValueError(
            f"data.source is {url!r}; fsspec knows no such kind of URL ({error})"
        ) from error
