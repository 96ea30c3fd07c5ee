"""Is a text at a URL read whole, once, and within the bound? On fsspec's own file systems."""

from __future__ import annotations

import builtins
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile

from isoflop.data import remote
from isoflop.data.options import Means
from isoflop.data.prepare import prepare, prepare_to
from isoflop.data.prepared import Prepared
from isoflop.run import Text

URL = "memory://bucket/prepared"
Change = Callable[[Any, str], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Prepared:
    return prepare_to(tmp_path_factory.mktemp("out") / "prepared", text(str(text_folder)))


def text(source: str) -> Text:
    return Text(source=source, tokenizer="bpe-400", validation=0.2)


@pytest.fixture
def memory(original: Prepared) -> Iterator[Any]:
    """A file system of this process that holds the prepared text at URL."""
    system = fsspec.filesystem("memory")
    system.put(str(original.folder), "/bucket/prepared", recursive=True)
    yield system
    system.rm("/bucket", recursive=True)


def copies(cache: Path) -> list[Path]:
    return sorted((cache / "remote").glob("*"))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_copy_is_what_was_prepared(
    kind: str, memory: Any, original: Prepared, tmp_path: Path
) -> None:
    url = URL if kind == "memory" else f"file://{original.folder}"
    found = prepare(text(url), tmp_path)
    assert found.folder.parent == tmp_path / "remote"
    assert (found.fingerprint, found.vocab) == (original.fingerprint, original.vocab)
    assert np.array_equal(found.train().ids, original.train().ids)
    assert np.array_equal(found.validation().ids, original.validation().ids)
    assert found.tokenizer().hash == original.tokenizer_hash


def test_a_copy_is_made_once(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = remote.fetched(URL, tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("the text was copied again")

    monkeypatch.setattr(remote, "_download", fail)
    assert remote.fetched(f"{URL}/", tmp_path) == first
    (first / "train.tokens").write_bytes(b"cut")
    with pytest.raises(AssertionError, match="copied again"):
        remote.fetched(URL, tmp_path)


def test_what_is_asked_for_must_be_what_was_prepared(memory: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.tokenizer is 'bytes', but 'memory://"):
        prepare(Text(source=URL, tokenizer="bytes", validation=0.2), tmp_path)


def _flip(system: Any, name: str) -> None:
    content = bytearray(system.cat_file(name))
    content[len(content) // 2] ^= 1
    system.pipe_file(name, bytes(content))


def _cut(system: Any, name: str) -> None:
    system.pipe_file(name, system.cat_file(name)[:-2])


def _other_tokenizer(system: Any, name: str) -> None:
    values = json.loads(system.cat_file("/bucket/prepared/prepared.json"))
    values["tokenizer_hash"] = "0" * 16
    system.pipe_file("/bucket/prepared/prepared.json", json.dumps(values).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip, r"not what was written: .*train.tokens was altered: SHA-256"),
        (_cut, r"not what was written: .*train.tokens has \d+ bytes where \d+ were written"),
        (_other_tokenizer, r"not what was written: .*the tokenizer is another one"),
    ],
)
def test_what_was_altered_is_refused(
    change: Change, message: str, memory: Any, tmp_path: Path
) -> None:
    change(memory, "/bucket/prepared/train.tokens")
    with pytest.raises(ValueError, match=message):
        remote.fetched(URL, tmp_path)
    assert not copies(tmp_path), "and nothing is left of it"


def test_a_download_that_breaks_off_leaves_nothing_and_the_next_succeeds(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: MemoryFile, size: int = -1) -> bytes:
        raise ConnectionResetError("reset by peer")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFile, "read", broken, raising=False)
        with pytest.raises(ValueError, match=r"could not be read .*reset by peer"):
            remote._copy(memory, "/bucket/prepared", URL, tmp_path / "remote" / "a", 10**9, print)
    assert not copies(tmp_path)
    assert Prepared.load(remote.fetched(URL, tmp_path)).vocab == 400


def test_a_file_shorter_than_listed_is_refused(memory: Any, tmp_path: Path) -> None:
    path = "/bucket/prepared/train.ends"
    with pytest.raises(ValueError, match=r"train.ends broke off at [\d,]+ of [\d,]+"):
        remote._download(memory, path, memory.size(path) + 1, tmp_path / "train.ends", URL)


def test_the_longest_unused_copy_makes_room(
    memory: Any, original: Prepared, tmp_path: Path
) -> None:
    """Three texts, room for two: the first is used again, so the second goes."""
    size = sum(file.stat().st_size for file in original.folder.iterdir())
    found = []
    for number in range(3):
        url = f"memory://bucket/{number}"
        memory.copy("/bucket/prepared", f"/bucket/{number}", recursive=True)
        values = json.loads(memory.cat_file(f"/bucket/{number}/prepared.json"))
        values["details"]["note"] = number
        memory.pipe_file(f"/bucket/{number}/prepared.json", json.dumps(values).encode())
        told: list[str] = []
        found.append(remote.fetched(url, tmp_path, limit=2 * size + 1000, say=told.append))
        os.utime(found[-1], ns=(number * 10**9, number * 10**9))
        if number == 1:
            assert remote.fetched("memory://bucket/0", tmp_path) == found[0]
    assert copies(tmp_path) == sorted([found[0], found[2]])
    assert any(line.startswith(f"removed {found[1]}") for line in told)


def test_a_text_larger_than_the_bound_is_refused_and_nothing_goes_for_it(
    memory: Any, tmp_path: Path
) -> None:
    kept = remote.fetched(URL, tmp_path)
    shutil.move(kept, kept.with_name("another"))
    with pytest.raises(ValueError, match=r"holds [\d,]+ bytes, and copies in .* 1,000 in all"):
        prepare(text(URL), tmp_path, means=Means(remote_limit=1000))
    assert copies(tmp_path) == [kept.with_name("another")]


def test_copies_take_half_of_a_disk_at_most(
    memory: Any, original: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(file.stat().st_size for file in original.folder.iterdir())
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * size - 2, 0, 0))
    with pytest.raises(ValueError, match=rf"may have {size - 1:,} in all \(half of the disk"):
        remote.fetched(URL, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * size, 0, 0))
    assert Prepared.load(remote.fetched(URL, tmp_path)).vocab == 400


def test_a_place_without_a_prepared_text(memory: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/prepared.json is missing: at a URL must lie"):
        remote.fetched("memory://nowhere", tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "s3fs":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"s3:// needs a package .*s3fs.*copy the folder"):
        remote.fetched("s3://bucket/prepared", tmp_path)


def test_an_unknown_kind_of_url(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"knows no such kind of URL .*nope"):
        remote.fetched("nope://bucket", tmp_path)
