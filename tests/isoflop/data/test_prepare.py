"""Is a text prepared once, the same wherever it lies, and honestly split?"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoflop.data import bpe, encode, sources, tokenizers
from isoflop.data import prepare as preparing
from isoflop.data.prepare import Prepared, prepare
from isoflop.run import Text


def text(source: Path, tokenizer: str = "bpe-400", validation: float = 0.2) -> Text:
    return Text(source=str(source), tokenizer=tokenizer, validation=validation)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written a moment ago count as settled, so that no test waits for them."""
    monkeypatch.setattr(preparing, "_SETTLED_NS", 0)


def documents_of(prepared: Prepared, side: str) -> list[str]:
    """The texts of a side, cut at their ends of text."""
    file = prepared.train() if side == "train" else prepared.validation()
    tokenizer = prepared.tokenizer()
    starts = [0, *file.document_ends[:-1]]
    found = []
    for start, end in zip(starts, file.document_ends, strict=True):
        ids = file.ids[start:end]
        assert ids[-1] == tokenizer.end_of_text
        assert (ids[:-1] != tokenizer.end_of_text).all()
        found.append(tokenizer.decode(ids[:-1]))
    return found


def forbid(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> None:
    def fail(*_: object) -> None:
        raise AssertionError(f"{name} was called again")

    monkeypatch.setattr(target, name, fail)


class TestSplit:
    def test_every_document_is_on_one_side(self, corpus: Path, tmp_path: Path) -> None:
        prepared = prepare(text(corpus), tmp_path / "cache")
        train, held = documents_of(prepared, "train"), documents_of(prepared, "validation")
        written = [document.text for document in sources.documents(str(corpus))]
        assert sorted(train + held) == sorted(written)
        assert set(train).isdisjoint(held)
        assert [t for t in written if t in set(train)] == train  # in their order
        assert (len(train), len(held)) == (prepared.train_documents, prepared.validation_documents)

    @pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
    def test_the_share_is_one_of_bytes(self, corpus: Path, tmp_path: Path, share: float) -> None:
        prepared = prepare(text(corpus, "bytes", share), tmp_path / "cache")
        total = prepared.train_bytes + prepared.validation_bytes
        assert total == sum(path.stat().st_size for path in corpus.iterdir())
        largest = max(path.stat().st_size for path in corpus.iterdir())
        assert abs(prepared.validation_bytes - share * total) <= largest / 2
        assert prepared.train_tokens and prepared.validation_tokens

    def test_equal_documents_count_once(self, corpus: Path, tmp_path: Path) -> None:
        first = prepare(text(corpus, "bytes"), tmp_path / "cache")
        for path in sorted(corpus.iterdir()):
            shutil.copy(path, corpus / f"z_{path.name}")
        (corpus / "bad.txt").write_bytes(b"\xff")
        told: list[str] = []
        assert prepare(text(corpus, "bytes"), tmp_path / "cache", told.append) == first
        assert told[0] == "left out 20 documents that are equal to another"
        assert told[1].startswith("1 documents left out, for they ") and "bad.txt" in told[1]

    def test_a_single_text_is_cut_at_a_line(self, tmp_path: Path) -> None:
        lines = "".join(f"line {k}\n" for k in range(1000))
        (tmp_path / "book.txt").write_text(lines)
        prepared = prepare(text(tmp_path / "book.txt", "bytes", 0.1), tmp_path / "cache")
        [head], [tail] = (documents_of(prepared, side) for side in ("train", "validation"))
        assert head + tail == lines
        assert head.endswith("\n") and tail.endswith("line 999\n")
        assert prepared.validation_bytes / len(lines) == pytest.approx(0.1, abs=0.002)

    def test_a_few_books_and_a_note(self, tmp_path: Path) -> None:
        """The note alone is small enough to be held out whole, and would be far too little."""
        folder = tmp_path / "books"
        folder.mkdir()
        for k in range(3):
            (folder / f"{k}.txt").write_text(f"book {k}, line after line\n" * 400 * (k + 1))
        (folder / "note.md").write_text("Three books.\n")
        prepared = prepare(text(folder, "bytes", 0.05), tmp_path / "cache")
        total = prepared.train_bytes + prepared.validation_bytes
        assert prepared.validation_bytes / total == pytest.approx(0.05, abs=0.002)
        assert documents_of(prepared, "validation")[-1] == "Three books.\n"
        assert prepared.train_documents == 3

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    def test_neither_side_is_ever_empty(self, tmp_path: Path, share: float) -> None:
        folder = tmp_path / "two"
        folder.mkdir()
        for name in ("a", "b"):
            (folder / f"{name}.txt").write_text(f"{name}\n" * 500)
            prepared = prepare(text(folder, "bytes", share), tmp_path / "cache")
            assert prepared.train_bytes and prepared.validation_bytes

    def test_a_text_too_small_to_split_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "word.txt").write_text("x")
        with pytest.raises(ValueError, match=r"text \(1 characters\) is too small"):
            prepare(text(tmp_path / "word.txt"), tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*/prepared.json"))

    def test_the_tokenizer_never_sees_what_is_held_out(self, corpus: Path, tmp_path: Path) -> None:
        prepared = prepare(text(corpus), tmp_path / "cache")
        again = bpe.train(documents_of(prepared, "train"), 400)
        assert again.hash == prepared.tokenizer().hash


class TestCache:
    def test_numbers_are_those_of_the_files(self, corpus: Path, tmp_path: Path) -> None:
        prepared = prepare(text(corpus), tmp_path / "cache")
        tokenizer, file = prepared.tokenizer(), prepared.train()
        file.verify()
        prepared.validation().verify()
        assert file.dtype == np.uint16
        assert prepared.tokenizer_name == tokenizer.name == "bpe-400"
        assert prepared.vocab == tokenizer.vocab_size == 400
        assert prepared.folder == tmp_path / "cache" / prepared.fingerprint
        assert (len(file), file.documents) == (prepared.train_tokens, prepared.train_documents)
        assert tokenizer.token_bytes()[file.ids].sum() == prepared.train_bytes
        assert 1.5 < prepared.train_bytes / prepared.train_tokens < 4

    def test_a_second_call_reads_nothing(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
    ) -> None:
        first = prepare(text(corpus), tmp_path / "cache")
        forbid(monkeypatch, preparing, "scan")
        assert prepare(text(corpus), tmp_path / "cache") == first

    def test_touched_files_are_read_but_not_encoded(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
    ) -> None:
        first = prepare(text(corpus), tmp_path / "cache")
        for path in corpus.iterdir():
            os.utime(path, (1, 1))
        forbid(monkeypatch, bpe, "train")
        forbid(monkeypatch, encode, "encode")
        assert prepare(text(corpus), tmp_path / "cache") == first

    def test_a_moved_text_is_the_same(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = prepare(text(corpus), tmp_path / "cache")
        moved = corpus.rename(tmp_path / "elsewhere")
        elsewhere = prepare(text(moved), tmp_path / "another-cache")
        assert replace(elsewhere, folder=first.folder) == first
        forbid(monkeypatch, encode, "encode")
        assert prepare(text(moved), tmp_path / "cache") == first

    def test_any_change_makes_another_text(
        self, corpus: Path, tmp_path: Path, settled: None
    ) -> None:
        cache = tmp_path / "cache"
        found = [prepare(text(corpus, "bytes"), cache)]
        path = sorted(corpus.iterdir())[3]
        status = path.stat()
        path.write_bytes(path.read_bytes()[:-1] + b"#")  # of the same length, and then
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # of the same time
        found.append(prepare(text(corpus, "bytes"), cache))
        path.rename(corpus / "zz.py")  # the order of documents is part of it
        found.append(prepare(text(corpus, "bytes"), cache))
        found.append(prepare(text(corpus, "bytes", 0.3), cache))
        found.append(prepare(text(corpus, "bpe-300", 0.3), cache))
        assert len({prepared.fingerprint for prepared in found}) == 5
        # The last two are one text under two tokenizers, and so they say.
        assert len({prepared.details()["content"] for prepared in found}) == 4

    def test_files_still_being_written_are_not_remembered(
        self, corpus: Path, tmp_path: Path
    ) -> None:
        """A clock ticks coarsely: a file changed within the same tick looks unchanged."""
        (corpus / "new.py").write_text("new = 1\n")
        prepare(text(corpus, "bytes"), tmp_path / "cache")
        assert not (tmp_path / "cache" / "seen").exists()

    def test_damage_is_repaired_and_told(self, corpus: Path, tmp_path: Path, settled: None) -> None:
        first = prepare(text(corpus), tmp_path / "cache")
        os.truncate(first.folder / "train.tokens", 10)
        with pytest.raises(ValueError, match=r"train\.tokens has 10 bytes"):
            Prepared.load(first.folder)
        told: list[str] = []
        assert prepare(text(corpus), tmp_path / "cache", told.append) == first
        assert "train.tokens has 10 bytes" in told[0] and "preparing it again" in told[0]
        first.train().verify()

    def test_what_a_killed_process_left_is_cleared(self, corpus: Path, tmp_path: Path) -> None:
        first = prepare(text(corpus), tmp_path / "cache")
        left = first.folder.with_name(f".{first.fingerprint}.dead.tmp")
        first.folder.rename(left)
        (left / "prepared.json").unlink()
        assert prepare(text(corpus), tmp_path / "cache") == first
        assert not left.exists()

    def test_a_failure_leaves_nothing_that_could_be_read(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(preparing.shards.Writer, "append", full)
            with pytest.raises(OSError, match=r"no room .* the same command continues"):
                prepare(text(corpus, "bytes"), tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob("*train*"))
        prepare(text(corpus, "bytes"), tmp_path / "cache").train().verify()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("late = 1\n", r"\.py in .* changed while it was prepared"),
            ("", "1 documents of .* went while it was prepared"),
        ],
    )
    def test_a_text_that_changes_meanwhile_is_an_error(
        self,
        corpus: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        change: str,
        message: str,
    ) -> None:
        train = bpe.train

        def train_and_change(texts: object, size: int) -> object:
            trained = train(texts, size)  # type: ignore[arg-type]
            last.write_text(change)
            return trained

        last = sorted(corpus.iterdir())[-1]
        monkeypatch.setattr(bpe, "train", train_and_change)
        with pytest.raises(ValueError, match=message):
            prepare(text(corpus), tmp_path / "cache")
        monkeypatch.undo()
        train_documents = documents_of(prepare(text(corpus), tmp_path / "cache"), "train")
        assert change == "" or change in train_documents

    def test_two_processes_do_no_damage(self, corpus: Path, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from types import SimpleNamespace\n"
            "from isoflop.data.prepare import prepare\n"
            "text = SimpleNamespace(source=sys.argv[1], tokenizer='bpe-400', validation=0.2)\n"
            "print(prepare(text, Path(sys.argv[2])).fingerprint)"
        )
        cache = tmp_path / "cache"
        command = [sys.executable, "-c", code, str(corpus), str(cache)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)
        ]
        [first, second] = [process.communicate(timeout=120)[0].strip() for process in processes]
        assert first == second
        Prepared.load(cache / first.decode()).train().verify()
        folders = {path.name for path in cache.iterdir() if path.is_dir()}
        assert folders - {"seen"} == {first.decode(), "tokenizers", "scans", "work"}
        assert not [path for name in ("scans", "work") for path in (cache / name).glob("[!.]*")]


class TestPrepared:
    def test_it_is_small_and_picklable(self, corpus: Path, tmp_path: Path) -> None:
        prepared = prepare(text(corpus, "bytes"), tmp_path / "cache")
        assert len(pickle.dumps(prepared)) < 1_000
        assert pickle.loads(pickle.dumps(prepared)) == prepared == Prepared.load(prepared.folder)

    def test_a_copied_folder_is_whole(self, corpus: Path, tmp_path: Path) -> None:
        prepared = prepare(text(corpus), tmp_path / "cache")
        copied = Prepared.load(Path(shutil.copytree(prepared.folder, tmp_path / "copy")))
        assert copied.tokenizer().hash == prepared.tokenizer().hash
        assert np.array_equal(copied.train().ids, prepared.train().ids)

    def test_a_folder_that_holds_none(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"prepared\.json is missing"):
            Prepared.load(tmp_path)
        for content in ("", "[]", "{}", '{"format": 1, "fingerprint": ""}'):
            (tmp_path / "prepared.json").write_text(content)
            with pytest.raises(ValueError, match=r"prepared\.json is not what isoflop wrote"):
                Prepared.load(tmp_path)


@pytest.mark.parametrize(
    ("tokenizer", "message"), [("bpe-100", "at least 257"), ("gpt-two", "'bpe-N'")]
)
def test_a_wrong_tokenizer_is_refused_before_anything_is_read(
    tmp_path: Path, tokenizer: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(text(tmp_path / "nowhere", tokenizer), tmp_path / "cache")
    with pytest.raises(ValueError, match="no such file or folder"):
        prepare(text(tmp_path / "nowhere", "bytes"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_large_vocabulary_takes_wide_ids(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wide(tokenizers.ByteTokenizer):
        vocab_size = 70_000
        end_of_text = 69_999

    monkeypatch.setattr(tokenizers, "named", lambda name: Wide())
    prepared = prepare(text(corpus, "bytes"), tmp_path / "cache")
    assert prepared.train().dtype == np.uint32
    assert prepared.train().ids[-1] == 69_999


def test_english_as_a_single_file(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "text" / "tinyshakespeare.txt"
    prepared = prepare(text(source, "bpe-512", 0.05), tmp_path / "cache")
    assert prepared.train_bytes + prepared.validation_bytes == source.stat().st_size
    assert prepared.validation_bytes / source.stat().st_size == pytest.approx(0.05, abs=0.001)
    assert prepared.train_bytes / prepared.train_tokens > 2


def test_progress_is_told(corpus: Path, tmp_path: Path) -> None:
    told: list[str] = []
    prepare(text(corpus), tmp_path / "cache", told.append)
    assert told[0].startswith("training a vocabulary (bpe-400) on ")
    assert told[-1].startswith("prepared ") and "held out" in told[-1]


def test_preparing_does_not_import_torch() -> None:
    code = "import sys, isoflop.data.prepare; assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
