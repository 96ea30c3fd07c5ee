"""Is a text prepared in parts the same text, however many do it and however often they die?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.data import corpus as corpora
from isoflop.data import encode, parallel, scan
from isoflop.data.options import Means, Options
from isoflop.data.prepare import Prepared, prepare, prepare_to
from isoflop.data.shards import TokenFile
from isoflop.run import Text

UNIT = 20_000  # bytes: some ten units


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "UNIT_BYTES", UNIT)


def text(source: Path, tokenizer: str = "bytes") -> Text:
    return Text(source=str(source), tokenizer=tokenizer, validation=0.2)


def content(prepared: Prepared) -> dict[str, bytes]:
    """Every file but the manifest, which tells the folder's source and choices."""
    files = sorted(prepared.folder.iterdir())
    return {path.name: path.read_bytes() for path in files if path.name != "prepared.json"}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-400"])
def test_any_number_of_processes_gives_the_same_bits(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    found = []
    for processes in (1, 3):
        means = Means(runner=parallel.on(processes))
        options = Options(near_duplicates=0.9)
        cache = tmp_path / str(processes)
        found.append(prepare(text(corpus, tokenizer), cache, options=options, means=means))
    assert content(found[0]) == content(found[1])
    assert len({prepared.fingerprint for prepared in found}) == 1


def test_any_size_of_units_gives_the_same_bits(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(text(corpus), tmp_path / "first")
    monkeypatch.setattr(scan, "UNIT_BYTES", 1)
    assert content(prepare(text(corpus), tmp_path / "second")) == content(first)


def test_a_killed_preparing_continues_after_its_finished_units(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice: after three units were scanned, and after four were encoded."""
    whole = prepare(text(corpus), tmp_path / "whole")
    for stage, results in (("scan", 3), ("encode", 4)):
        killed(corpus, tmp_path / "cache", stage, results)
        assert not list((tmp_path / "cache").glob("*/prepared.json"))
    [work] = (tmp_path / "cache" / "work").iterdir()
    finished = {path.stem for path in work.glob("[0-9]?????.json")}
    assert 4 <= len(finished) < 10
    scanned, encoded = [], []
    counted(monkeypatch, scan, "write_array", scanned)
    counted(monkeypatch, encode, "pieces", encoded)
    continued = prepare(text(corpus), tmp_path / "cache")
    assert scanned == [], "the second process had finished the scan"
    done_now = {f"{job.unit.number:06d}" for job in encoded}
    assert done_now and done_now.isdisjoint(finished)
    assert replace(continued, folder=whole.folder) == whole
    assert content(continued) == content(whole)
    assert not list((tmp_path / "cache" / "work").iterdir())


def test_a_unit_that_was_cut_short_is_encoded_again(corpus: Path, tmp_path: Path) -> None:
    whole = prepare(text(corpus), tmp_path / "whole")
    killed(corpus, tmp_path / "cache", "encode", 4)
    [work] = (tmp_path / "cache" / "work").iterdir()
    files = sorted(work.glob("*.tokens"))
    os.truncate(files[0], files[0].stat().st_size - 3)
    sorted(work.glob("*.ends"))[1].unlink()
    (work / ".000001-train.tokens.dead.tmp").write_bytes(b"half")
    assert content(prepare(text(corpus), tmp_path / "cache")) == content(whole)


def test_kills_from_outside_at_any_moment_do_no_damage(corpus: Path, tmp_path: Path) -> None:
    whole = prepare(text(corpus), tmp_path / "whole")
    out = tmp_path / "out"
    random = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "isoflop.cli", "data", "prepare", str(corpus), "--out", str(out),
             "--tokenizer", "bytes", "--validation", "0.2"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(timeout=random.uniform(0.3, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if (out / "prepared.json").exists():
            break
    assert content(prepare_to(out, text(corpus))) == content(whole)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "corpus", "out", "whole",
    ]  # fmt: skip


def test_duplicates_are_kept_on_request(corpus: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in corpus.iterdir())
    for name in names[::2]:
        (corpus / f"z_{name}").write_bytes((corpus / name).read_bytes())
    once = prepare(text(corpus), tmp_path / "once")
    twice = prepare(text(corpus), tmp_path / "twice", options=Options(keep_duplicates=True))
    assert once.details()["duplicates"] == 10 and twice.details()["duplicates"] == 0
    assert once.train_documents + once.validation_documents == 20
    assert twice.train_documents + twice.validation_documents == 30
    sides = [set(documents(twice, side)) for side in encode.SIDES]
    assert sides[0].isdisjoint(sides[1])


def test_near_duplicates_are_left_out_and_counted(corpus: Path, tmp_path: Path) -> None:
    before = prepare(text(corpus), tmp_path / "before")
    for path in sorted(corpus.iterdir())[-5:]:  # the longer ones: a line is a small part of them
        (corpus / f"z_{path.name}").write_text(path.read_text() + "\nanother = line\n")
    found = prepare(text(corpus), tmp_path / "after", options=Options(near_duplicates=0.8))
    near = found.details()["near_duplicates"]
    kept = {bytes_ for side in encode.SIDES for bytes_ in documents(found, side)}
    assert not any(document.endswith(b"\nanother = line\n") for document in kept)
    assert len(kept) == 25 - near and near >= 5
    assert before.details()["near_duplicates"] is None


def test_a_vocabulary_is_trained_on_a_part_of_a_large_text(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(text(corpus, "bpe-300"), tmp_path / "whole")
    monkeypatch.setattr(corpora, "TRAINED_ON", whole.train_bytes // 2)
    told: list[str] = []
    part = prepare(text(corpus, "bpe-300"), tmp_path / "part", told.append)
    [line] = [line for line in told if line.startswith("training")]
    megabytes = float(line.split()[-2])
    assert 0.2 < megabytes * 1e6 / whole.train_bytes < 0.8
    assert part.train_bytes == whole.train_bytes
    assert part.tokenizer_hash != whole.tokenizer_hash


def test_the_overlap_is_told(corpus: Path, tmp_path: Path) -> None:
    shared = prepare(text(corpus), tmp_path / "first").details()["overlap"]
    for path in sorted(corpus.iterdir()):  # every passage in six documents that differ
        for copy in range(5):
            (corpus / f"z{copy}_{path.name}").write_text(path.read_text() + f"# copy {copy}\n")
    copied = prepare(text(corpus), tmp_path / "second").details()["overlap"]
    assert shared["share"] < 0.5 < copied["share"]


@pytest.mark.parametrize("tokenizer", ["words-400", "characters", "ascii"])
def test_every_kind_of_tokenizer_prepares(corpus: Path, tmp_path: Path, tokenizer: str) -> None:
    """In other processes, which read the tokenizer from the folder."""
    means = Means(runner=parallel.on(2))
    found = prepare(text(corpus, tokenizer), tmp_path / "cache", means=means)
    assert found.tokenizer_name == tokenizer
    decoded = found.tokenizer().decode(found.train().ids[: found.train().document_ends[0]].tolist())
    sources = [path.read_text().encode("ascii", "ignore").decode() for path in corpus.iterdir()]
    assert any(source.rstrip()[:200] == decoded[:200] for source in sources)


def test_a_prepared_folder_is_a_source(corpus: Path, tmp_path: Path) -> None:
    made = prepare_to(tmp_path / "out", text(corpus, "bpe-400"))
    assert prepare(text(made.folder, "bpe-400"), tmp_path / "cache") == made
    assert not (tmp_path / "cache").exists()
    assert prepare(text(made.folder, "bpe-0400"), tmp_path / "cache") == made
    with pytest.raises(ValueError, match=r"data.tokenizer is 'bytes', .* prepared with 'bpe-400'"):
        prepare(text(made.folder), tmp_path / "cache")
    other = replace(text(made.folder, "bpe-400"), validation=0.3)
    with pytest.raises(ValueError, match=r"data.validation is 0.3, .* prepared with 0.2"):
        prepare(other, tmp_path / "cache")


def test_a_folder_of_something_else_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = prepare_to(out, text(corpus))  # an empty one is taken
    assert prepare_to(out, text(corpus)) == made
    with pytest.raises(ValueError, match=r"prepared with tokenizer 'bytes'; choose another"):
        prepare_to(out, text(corpus, "bpe-400"))
    with pytest.raises(ValueError, match="is not empty, and holds no prepared text"):
        prepare_to(corpus, text(corpus))
    assert len(list(corpus.iterdir())) == 20


def documents(prepared: Prepared, side: str) -> list[bytes]:
    """Of a text as bytes."""
    file = TokenFile.open(prepared.folder, side)
    starts = [0, *file.document_ends[:-1]]
    return [
        file.ids[start : end - 1].astype(np.uint8).tobytes()
        for start, end in zip(starts, file.document_ends, strict=True)
    ]


def killed(source: Path, cache: Path, stage: str, results: int) -> None:
    """Prepare in another process, that kills itself after so many results of a stage."""
    code = f"""
import os, signal, sys
from pathlib import Path
from isoflop.data import parallel, scan
from isoflop.data.options import Means
from isoflop.data.prepare import prepare
from types import SimpleNamespace as Text
scan.UNIT_BYTES = {UNIT}
def run(work, jobs):
    for count, result in enumerate(parallel.on(1)(work, jobs), start=1):
        yield result
        if work.__name__ == {stage!r} and count == {results}:
            os.kill(os.getpid(), signal.SIGKILL)
text = Text(source=sys.argv[1], tokenizer="bytes", validation=0.2)
prepare(text, Path(sys.argv[2]), means=Means(runner=run))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(source), str(cache)]
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: list[Any]) -> None:
    """Note the first argument of every call."""
    function: Callable[..., Any] = getattr(module, name)

    def noted(first: Any, *rest: Any) -> Any:
        calls.append(first)
        return function(first, *rest)

    monkeypatch.setattr(module, name, noted)
