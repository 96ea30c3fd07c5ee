"""How does a study live where no machine's disk is: on object storage?

    --storage s3://bucket/lab, gs://..., or whatever else fsspec opens

What lies at the URL is the record. Every machine works on a copy of its own, at the same path on
all of them: the driver copies tables, texts and prepared data; the workers of a run copy its newest
checkpoint before they begin, and their first one writes each checkpoint and the result back. A
checkpoint counts when its `state.json` is there, which comes last, as `result.json` does of a run.

Storage of other hosts needs its package beside fsspec: s3fs, gcsfs.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

LAST = ("state.json", "result.json", "manifest.json")  # that say that the others are whole
CHECKPOINTS = "checkpoints"
Keep = Callable[[str], bool]


def is_url(storage: str) -> bool:
    return "://" in storage


@dataclass(frozen=True)
class Mirror:
    """A folder at a URL, and the copy of it on this machine."""

    url: str
    local: Path

    @staticmethod
    def of(url: str) -> Mirror:
        """Where its copy is, on every machine. Raises ValueError if nothing can be kept there."""
        url = url.rstrip("/")
        mirror = Mirror(url, _copies() / hashlib.sha256(url.encode()).hexdigest()[:16])
        with _told(url):
            mirror._system.makedirs(mirror._root, exist_ok=True)
        mirror.local.mkdir(parents=True, exist_ok=True)
        return mirror

    @property
    def _system(self) -> Any:
        from fsspec.core import url_to_fs

        return url_to_fs(self.url)[0]

    @property
    def _root(self) -> str:
        from fsspec.core import url_to_fs

        return str(url_to_fs(self.url)[1]).rstrip("/")

    def _remote(self, path: Path) -> str:
        return f"{self._root}/{path.relative_to(self.local).as_posix()}"

    def pull(self, folder: Path, keep: Keep = lambda name: True) -> None:
        """Copy what lies at the URL below `folder` and is not here, or has another size, or may
        change (JSON). `keep` is asked with names relative to the folder."""
        with self._alone(folder), _told(self.url):
            for name, size in self._listed(folder).items():
                here = folder / name
                same = here.exists() and here.stat().st_size == size
                if keep(name) and not (same and here.suffix != ".json"):
                    self._fetch(f"{self._remote(folder)}/{name}", here)

    def push(
        self,
        folder: Path,
        keep: Keep = lambda name: True,
        changing: tuple[str, ...] = (".json", ".parquet", ".html"),
    ) -> None:
        """Copy every file below `folder` that the URL lacks, or has in another size, or that may
        change, by its suffix; those that say that the others are whole come last."""
        names = [path.relative_to(folder).as_posix() for path in _files(folder)]
        names.sort(key=lambda name: (name.rsplit("/", 1)[-1] in LAST, name))
        with _told(self.url):
            there = self._listed(folder)
            for name in names:
                same = there.get(name) == (folder / name).stat().st_size
                if keep(name) and not (same and not name.endswith(changing)):
                    self._send(folder / name)

    def read(self, path: Path) -> str | None:
        """What stands at the URL under the name of a file here, read there; None: nothing."""
        with _told(self.url):
            self._system.invalidate_cache()
            try:
                return bytes(self._system.cat_file(self._remote(path))).decode()
            except FileNotFoundError:
                return None

    def write(self, path: Path, text: str) -> None:
        with _told(self.url):
            self._system.makedirs(self._remote(path.parent), exist_ok=True)
            self._system.pipe_file(self._remote(path), text.encode())

    def remove(self, path: Path) -> None:
        with _told(self.url), suppress(FileNotFoundError):
            self._system.rm_file(self._remote(path))

    def checkpoint(self, path: Path) -> None:
        """Keep a checkpoint that was just written, and no other than are kept here. Before it what
        the run has captured, which a run that goes on from there counts as done."""
        self.push(path.parent.parent, not_a_checkpoint, changing=(".json",))
        self.push(path)
        with _told(self.url):
            kept = {step.name for step in path.parent.glob("step-*")}
            for step in {name.split("/")[0] for name in self._listed(path.parent)} - kept:
                self._system.rm(f"{self._remote(path.parent)}/{step}", recursive=True)

    def begin(self, run: Path, data: Iterable[Path]) -> None:
        """What a worker needs: the text, and the run as it stands at the URL. Checkpoints that did
        not get there are dropped: all workers of a run must go on from the same one."""
        import shutil

        for folder in data:
            self.pull(folder)
        folder = run / CHECKPOINTS
        whole = {
            name.split("/")[0] for name in self._listed(folder) if name.endswith("/state.json")
        }
        with self._alone(folder):
            for step in folder.glob("step-*"):
                if step.name not in whole:
                    shutil.rmtree(step, ignore_errors=True)
        self.pull(run, lambda name: _wanted(name, whole))

    def end(self, run: Path) -> None:
        """All that a run leaves, its result last."""
        self.push(run, not_a_checkpoint)

    def _listed(self, folder: Path) -> dict[str, int]:
        """Size in bytes of every file at the URL below a folder, by relative name."""
        root, system = self._remote(folder), self._system
        system.invalidate_cache()
        try:
            found = system.find(root, detail=True)
        except FileNotFoundError:
            return {}
        return {
            name.removeprefix(root).lstrip("/"): int(entry["size"])
            for name, entry in found.items()
            if not name.rsplit("/", 1)[-1].startswith(".")
        }

    def _fetch(self, remote: str, here: Path) -> None:
        here.parent.mkdir(parents=True, exist_ok=True)
        partial = here.with_name(f".{here.name}.{os.getpid()}")
        self._system.get_file(remote, str(partial))
        partial.replace(here)

    def _send(self, path: Path) -> None:
        """Whole or not at all: object stores put so; on others a name is given at the end."""
        system, remote = self._system, self._remote(path)
        parent, _, name = remote.rpartition("/")
        protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
        if protocols & {"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"}:
            system.put_file(str(path), remote)
            return
        system.makedirs(parent, exist_ok=True)
        partial = f"{parent}/.{name}.{os.getpid()}"
        system.put_file(str(path), partial)
        system.mv(partial, remote)

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Several workers of a machine share its copy."""
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.local / ".lock"):
            yield


def not_checkpoints(name: str) -> bool:
    """What the driver needs of its runs."""
    return f"/{CHECKPOINTS}/" not in f"/{name}"


def not_a_checkpoint(name: str) -> bool:
    """Of a run's own files."""
    return not name.startswith(f"{CHECKPOINTS}/")


def _wanted(name: str, whole: set[str]) -> bool:
    """Of a run's files, all but the parts of checkpoints that are not whole."""
    parts = name.split("/")
    return parts[0] != CHECKPOINTS or (len(parts) > 2 and parts[1] in whole)


def _copies() -> Path:
    """The same on all machines of a cluster, whatever the homes of their users are called."""
    return Path(tempfile.gettempdir()) / f"isoflop-{os.getuid()}" / "storage"


def _files(folder: Path) -> list[Path]:
    """All of a folder but temporary ones: those of other processes, not yet whole."""
    if folder.is_file():
        return [folder]
    found = (path for path in folder.rglob("*") if path.is_file())
    return [p for p in found if not any(x.startswith(".") for x in p.relative_to(folder).parts)]


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What file systems raise, as one sentence."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise ValueError(f"--storage {url}: {error}") from error
    except OSError as error:
        raise OSError(error.errno, f"{url} cannot be used ({error})") from error
