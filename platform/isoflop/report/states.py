"""How is one study run under two states of the code, so that they can be compared?

Each state is trained in processes of its own that import that state's `isoflop`, `models` and study
file, from a git worktree that goes again afterwards. Results are kept by the state's hash, so a
comparison that was stopped, or is asked again, trains nothing twice. Runs of two states may have
the same identity (the same settings, other code), so they never share a storage folder.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class State:
    """One state of the checkout: a commit, or what lies in the working tree now."""

    name: str  # as a person says it: "main", or "working tree"
    key: str  # 12 hex digits of its content
    commit: str | None  # None: the working tree


def state(root: Path, revision: str | None) -> State:
    """Raises ValueError for a revision that git does not know."""
    if revision is not None:
        commit = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        return State(revision, commit[:12], commit)
    content = hashlib.sha256(_git(root, "rev-parse", "HEAD").encode())
    content.update(_git(root, "diff", "HEAD").encode())
    for name in _git(root, "ls-files", "--others", "--exclude-standard").splitlines():
        path = root / name
        content.update(name.encode() + path.read_bytes() if path.is_file() else b"")
    return State("working tree", content.hexdigest()[:12], None)


def root_of(file: Path) -> Path:
    """The checkout that a study file stands in."""
    if not file.is_file():
        raise ValueError(f"there is no study file {file}")
    return Path(_git(file.resolve().parent, "rev-parse", "--show-toplevel"))


def train(root: Path, file: Path, which: State, storage: Path, options: Sequence[str]) -> Path:
    """Run the study under one state, as its own command would, and return its storage folder.

    Raises ValueError if that state's command fails; its own words stand above.
    """
    place = storage / which.key
    place.mkdir(parents=True, exist_ok=True)
    with _tree(root, which) as tree:
        study = tree / file.resolve().relative_to(root.resolve())
        if not study.exists():
            raise ValueError(f"{which.name} has no file {study.relative_to(tree)}")
        found = [str(tree / "platform"), str(tree), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))}
        command = [sys.executable, str(study), "--storage", str(place.absolute()), *options]
        print(f"{which.name} ({which.key})", file=sys.stderr, flush=True)
        # What the study prints goes beside the comparison, which alone is for a script to read.
        done = subprocess.run(command, cwd=tree, env=environment, stdout=2)
    if done.returncode:
        raise ValueError(f"the study failed under {which.name}; see above")
    return place


@contextmanager
def _tree(root: Path, which: State) -> Iterator[Path]:
    """A folder that holds the state; the checkout itself for the working tree."""
    if which.commit is None:
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
        tree = Path(folder) / root.name
        _git(root, "worktree", "add", "--quiet", "--detach", str(tree), which.commit)
        try:
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError("comparing states of the code needs git, which is not there") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ValueError(f"git {' '.join(words)}: {said[-1] if said else 'it knows no such thing'}")
    return done.stdout.strip()
