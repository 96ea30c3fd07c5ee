"""Is what is wrong with a text, a disk or a neighbour told, and does it do no damage?"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from isoflop.data.meter import Lines
from isoflop.data.options import Means, Options, Text
from isoflop.data.prepare import prepare, prepare_to


def text(source: Path) -> Text:
    return Text(source=str(source), tokenizer="bytes", validation=0.2)


def command(*arguments: object, before: str = "") -> subprocess.Popen[str]:
    """`isoflop data prepare ... --tokenizer bytes`, started; `before` is run first in it."""
    code = f"{before}\nfrom isoflop.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "data", "prepare", *map(str, arguments),
         "--tokenizer", "bytes", "--validation", "0.2"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.fixture
def damaged(corpus: Path) -> Path:
    """The 20 modules, and among them Latin-1, nothing, blanks, and a binary file."""
    (corpus / "latin.txt").write_bytes("Füße und Äpfel".encode("latin-1") * 20)
    (corpus / "empty.txt").write_bytes(b"")
    (corpus / "blank.md").write_bytes(b" \n\t\n")
    (corpus / "binary.txt").write_bytes(bytes(range(256)) * 20)
    return corpus


def test_by_default_damaged_files_are_left_out_and_counted(damaged: Path, tmp_path: Path) -> None:
    told: list[str] = []
    found = prepare(text(damaged), tmp_path / "cache", told.append)
    assert found.train_documents + found.validation_documents == 20
    damage = found.details()["damage"]
    assert damage["counts"] == {"undecodable": 1, "binary": 1, "empty": 2}
    assert damage["names"]["undecodable"] == ["latin.txt"]
    assert any("binary.txt" in line for line in told)


def test_undecodable_text_can_be_mended(damaged: Path, tmp_path: Path) -> None:
    found = prepare(text(damaged), tmp_path / "cache", options=Options(undecodable="replace"))
    assert found.train_documents + found.validation_documents == 21
    damage = found.details()["damage"]
    assert damage["counts"] == {"replaced": 1, "binary": 1, "empty": 2}
    files = found.train(), found.validation()
    decoded = "".join(found.tokenizer().decode(file.ids.tolist()) for file in files)
    assert "F\ufffd\ufffde und \ufffdpfel" in decoded


def test_undecodable_text_can_be_refused(damaged: Path, tmp_path: Path) -> None:
    for name in ("binary.txt", "latin.txt"):  # in their order
        with pytest.raises(ValueError, match=name):
            prepare(text(damaged), tmp_path / "cache", options=Options(undecodable="refuse"))
        (damaged / name).unlink()
    assert not list((tmp_path / "cache").glob("*/[!.]*"))


def test_a_text_of_nothing_but_damage_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xff\xfe\xfd" * 9)
    (folder / "b.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no text: 1 documents .* such as a\.txt"):
        prepare(text(folder), tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"undecodable": "ignore"}, "undecodable is 'ignore'"),
        ({"near_duplicates": 1.5}, r"near_duplicates is 1\.5"),
    ],
)
def test_other_choices_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)  # type: ignore[arg-type]


def test_a_full_disk_is_told_and_the_same_command_continues(corpus: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the call fails in the same way."""
    out = tmp_path / "out"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))"
    process = command(corpus, "--out", out, before=limit)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.startswith("error: ") and "the same command continues" in error
    assert "Traceback" not in error
    assert not out.exists()
    process = command(corpus, "--out", out)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert not (tmp_path / ".out.work").exists()
    prepare_to(out, text(corpus)).train().verify()


def test_two_commands_at_once_make_one_text(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = [command(corpus, "--out", out) for _ in range(2)]
    shown = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], shown
    lines = {next(line for line in o.splitlines() if "fingerprint" in line) for o, _ in shown}
    assert len(lines) == 1
    prepare_to(out, text(corpus)).train().verify()
    assert not (tmp_path / ".out.work").exists()


def test_who_waits_for_another_says_so(corpus: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", queue.SimpleQueue[str]()
    means = Means(meter=Lines(told.put))
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / ".out.lock"):
            waiting = pool.submit(prepare_to, out, text(corpus), means=means)
            assert told.get(timeout=60) == f"another process is at work on {out}; waiting for it"
            assert not waiting.done()
        assert waiting.result().folder == out


def test_a_folder_that_may_not_be_written_is_told(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    process = command(corpus, "--out", tmp_path / "file" / "out")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1 and error.startswith("error: ") and "file" in error
