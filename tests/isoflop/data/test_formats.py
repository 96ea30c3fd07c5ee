"""Are files read whole and in slices alike, compressed or not, and is damage counted?"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data import formats, parquet, sources
from isoflop.data.documents import Damage, Document, Undecodable


def read(path: Path, undecodable: Undecodable = "skip") -> tuple[list[Document], Damage]:
    """The documents of a source, each part read as another process would."""
    log = Damage()
    parts = sources.open(str(path), undecodable=undecodable).parts()
    assert len({part.name for part in parts}) == len(parts)
    parts = pickle.loads(pickle.dumps(parts))
    return [document for part in parts for document in part.documents(log)], log


def zstandard(path: Path, content: bytes) -> None:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)


PACK: dict[str, Callable[[Path, bytes], object]] = {
    ".gz": lambda path, content: path.write_bytes(gzip.compress(content)),
    ".zst": zstandard,
}


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "SLICE", 16)
    monkeypatch.setattr(formats, "_LINE", 8)


class TestSlices:
    @settings(max_examples=100, deadline=None)
    @given(text=st.text("aé😀\n \r", max_size=120))
    def test_a_text_is_the_sum_of_its_slices(
        self, tmp_path_factory: pytest.TempPathFactory, text: str
    ) -> None:
        """And the same ones where it comes as a compressed stream."""
        folder = tmp_path_factory.mktemp("slices")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "SLICE", 16)
            patch.setattr(formats, "_LINE", 8)
            content = f"x{text}y".encode()
            (folder / "a.txt").write_bytes(content)
            documents, log = read(folder / "a.txt")
            assert len(sources.open(str(folder / "a.txt")).parts()) == -(-len(content) // 16)
            if not log.counts:  # blank slices are left out
                assert "".join(document.text for document in documents) == f"x{text}y"
            for suffix, pack in PACK.items():
                pack(folder / f"b.txt{suffix}", content)
                streamed, _ = read(folder / f"b.txt{suffix}")
                assert [d.text for d in streamed] == [d.text for d in documents]

    def test_lines_are_not_cut(self, tmp_path: Path, small_slices: None) -> None:
        path = tmp_path / "a.txt"
        path.write_text("".join(f"line {k}\n" for k in range(20)))
        documents, _ = read(path)
        assert len(documents) > 5
        assert all(document.text.endswith("\n") for document in documents)
        assert documents[1].name == "a.txt#1"

    def test_every_line_of_json_is_in_one_slice(self, tmp_path: Path, small_slices: None) -> None:
        texts = [("é" * (7 * k % 50)) + str(k) for k in range(40)]
        path = tmp_path / "a.jsonl"
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        path.write_bytes(codecs.BOM_UTF8 + "\n".join(lines).encode())
        documents, _ = read(path)
        assert [document.text for document in documents] == texts
        at = int(documents[5].name.removeprefix("a.jsonl:@"))
        assert path.read_bytes()[at:].startswith(lines[5].encode())

    def test_row_groups_are_parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parquet, "SLICE", 600)
        texts = [f"row {k}" for k in range(100)]
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=7)
        documents, _ = read(tmp_path)
        assert [(d.name, d.text) for d in documents] == [
            (f"a.parquet:{k}", text) for k, text in enumerate(texts)
        ]
        parts = sources.open(str(tmp_path)).parts()
        assert 1 < len(parts) < 15
        assert 0 < sum(part.bytes for part in parts) < (tmp_path / "a.parquet").stat().st_size


class TestCompressed:
    @pytest.mark.parametrize("suffix", PACK)
    def test_it_is_read_as_what_is_inside(self, tmp_path: Path, suffix: str) -> None:
        PACK[suffix](tmp_path / f"a.txt{suffix}", "é\r\n".encode())
        PACK[suffix](tmp_path / f"b.jsonl{suffix}", b'{"text": "one"}\n{"text": "two"}\n')
        PACK[suffix](tmp_path / f"c.csv{suffix}", b"text\nthree\n")
        PACK[suffix](tmp_path / f"d.html{suffix}", b"not asked for")
        documents, log = read(tmp_path)
        assert [d.text for d in documents] == ["é\r\n", "one", "two", "three"]
        assert documents[0].name == f"a.txt{suffix}"
        assert log == Damage()

    @pytest.mark.parametrize("suffix", PACK)
    def test_joined_files_are_read_to_the_end(self, tmp_path: Path, suffix: str) -> None:
        one, two = tmp_path / f"a.txt{suffix}", tmp_path / f"b.txt{suffix}"
        PACK[suffix](one, b"one\n")
        PACK[suffix](two, b"two\n")
        one.write_bytes(one.read_bytes() + two.read_bytes())
        assert [d.text for d in read(one)[0]] == ["one\ntwo\n"]

    @pytest.mark.parametrize("suffix", PACK)
    @pytest.mark.parametrize("kept", [-3, 12])
    def test_one_that_is_cut_off_is_named(self, tmp_path: Path, suffix: str, kept: int) -> None:
        path = tmp_path / f"a.jsonl{suffix}"
        rows = [json.dumps({"text": f"{k * k} {k**3}"}) for k in range(500)]
        PACK[suffix](path, "\n".join(rows).encode())
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=rf"a\.jsonl\{suffix}: cannot be decompressed"):
            read(path)

    @pytest.mark.parametrize("suffix", PACK)
    def test_one_that_is_not_compressed_is_named(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"a.txt{suffix}").write_bytes(b"plain text")
        with pytest.raises(ValueError, match=rf"a\.txt\{suffix}: cannot be decompressed"):
            read(tmp_path)

    def test_parquet_must_be_unpacked(self, tmp_path: Path) -> None:
        PACK[".gz"](tmp_path / "a.parquet.gz", b"PAR1")
        with pytest.raises(ValueError, match=r"a\.parquet\.gz: .*unpack it"):
            read(tmp_path)


class TestTables:
    def test_csv_gives_a_document_per_row(self, tmp_path: Path) -> None:
        texts = ["plain", 'quoted "twice"', "two\nlines, and a comma", "", "é" * 200_000]
        with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "text"])
            rows.writerows(enumerate(texts))
        documents, log = read(tmp_path)
        assert [document.text for document in documents] == [text for text in texts if text]
        assert documents[-1].name == "a.csv:4"
        assert log.counts == {"empty": 1}

    def test_another_column(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("body,text\nin csv,no\n")
        (tmp_path / "b.jsonl").write_text('{"body": "in json", "text": 3}\n')
        pq.write_table(pa.table({"body": pa.array(["in parquet"]).dictionary_encode()}),
                       tmp_path / "c.parquet")  # fmt: skip
        source = sources.open(str(tmp_path), column="body")
        found = [d.text for part in source.parts() for d in part.documents(Damage())]
        assert found == ["in csv", "in json", "in parquet"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r'a\.csv: no column "text"; it has none'),
            (b"body,id\nx,1\n", r'a\.csv: no column "text"; it has body, id'),
            (b"id,text\n1,x\n2\n", r'a\.csv: row 1 has no "text"'),
            (b'text\n"open', r"a\.csv:2: not CSV \(unexpected end of data\)"),
        ],
    )
    def test_a_damaged_csv_is_named(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


BAD = b"caf\xe9"


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "a.csv").write_bytes(b"text\ngood\n" + BAD + b"\n")
        (tmp_path / "b.jsonl").write_bytes(b'{"text": "good"}\n{"text": "' + BAD + b'"}\n')
        column = pa.array([b"good", BAD]).view(pa.string())  # unchecked
        pq.write_table(pa.table({"text": column}), tmp_path / "c.parquet")
        (tmp_path / "d.txt").write_bytes(BAD)
        (tmp_path / "e.py").write_bytes(b"# coding: ascii\nx = '\xe9'\n")
        (tmp_path / "f.md").write_bytes(b"")
        (tmp_path / "g.txt").write_bytes(b"\x7fELF\x02\x01\x01\x00")
        return tmp_path

    def test_it_is_left_out_and_counted(self, folder: Path) -> None:
        documents, log = read(folder, "skip")
        assert [d.text for d in documents] == ["good"] * 3
        assert log.counts == {"undecodable": 5, "empty": 1, "binary": 1}
        assert log.names["binary"] == ["g.txt"]
        assert log.names["undecodable"] == ["a.csv:1", "b.jsonl:2", "c.parquet:1", "d.txt", "e.py"]

    def test_it_is_mended_and_counted(self, folder: Path) -> None:
        documents, log = read(folder, "replace")
        assert [d.text for d in documents][:7] == ["good", "caf\ufffd"] * 3 + ["caf\ufffd"]
        assert documents[7].text == "# coding: ascii\nx = '\ufffd'\n"
        assert log.counts == {"replaced": 5, "empty": 1, "binary": 1}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("a.csv", r"a\.csv:1: not UTF-8"),
            ("b.jsonl", r"b\.jsonl:2: not UTF-8"),
            ("c.parquet", r"c\.parquet:1: not UTF-8"),
            ("d.txt", r"d\.txt: not UTF-8"),
            ("e.py", r"e\.py: not in the encoding that it declares"),
            ("g.txt", r"g\.txt: a binary file"),
        ],
    )
    def test_it_is_refused(self, folder: Path, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read(folder / name, "refuse")

    def test_another_word_is_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"'ignore'; it must be one of 'skip', 'replace'"):
            sources.open(str(folder), undecodable="ignore")  # type: ignore[arg-type]

    def test_counts_of_several_processes_add_up(self) -> None:
        logs = []
        for process in range(3):
            logs.append(Damage())
            for k in range(4):
                logs[-1].note("empty", f"{process}.{k}")
        total = Damage()
        for log in logs:
            total.add(pickle.loads(pickle.dumps(log)))
        assert total.counts == {"empty": 12}
        assert total.names["empty"] == ["0.0", "0.1", "0.2", "0.3", "1.0"]
        assert total.lines() == ["12 documents left out, for they are empty, such as 0.0"]
