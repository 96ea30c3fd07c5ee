"""Does a source hold the documents that it should, always in one order, and complain clearly?"""

from __future__ import annotations

import json
import os
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.data import sources
from isoflop.data.sources import Document, documents


def write(folder: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())


def test_a_folder_gives_its_text_files_sorted_by_name(tmp_path: Path) -> None:
    write(tmp_path, b_md="two", sub__a_txt="four", a_txt="one", sub_py="x = 3\r\n", c_html="no")
    found = [(document.name, document.text) for document in documents(str(tmp_path))]
    assert found == [
        ("a.txt", "one"),
        ("b.md", "two"),
        ("sub.py", "x = 3\r\n"),
        ("sub/a.txt", "four"),
    ]


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    write(tmp_path, book_txt="all of it")
    assert list(documents(str(tmp_path / "book.txt"))) == [Document("book.txt", "all of it")]


def test_hidden_and_blank_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, a_txt="kept", blank_txt=" \n", empty_py="")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / ".x.txt").write_text("hidden")
    assert [document.name for document in documents(str(tmp_path))] == ["a.txt"]


def test_a_pattern_names_files_of_any_suffix(tmp_path: Path) -> None:
    write(tmp_path, a_rst="one", sub__b_rst="two", sub__deep__c_rst="three", sub__d_txt="no")
    (tmp_path / "sub" / ".hidden.rst").write_text("no")
    found = list(documents(str(tmp_path / "**" / "*.rst")))
    assert found == [
        Document("a.rst", "one"),
        Document("sub/b.rst", "two"),
        Document("sub/deep/c.rst", "three"),
    ]
    assert [d.name for d in documents(str(tmp_path / "su?" / "*"))] == ["sub/b.rst", "sub/d.txt"]
    with pytest.raises(ValueError, match="no such file or folder"):
        sources.open(str(tmp_path / "*.tex"))


def test_a_file_of_another_suffix_is_read_when_it_is_named(tmp_path: Path) -> None:
    write(tmp_path, notes_tex="text")
    assert list(documents(str(tmp_path / "notes.tex"))) == [Document("notes.tex", "text")]


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "a[1]", a_txt="text")
    assert [d.name for d in documents(str(tmp_path / "a[1]"))] == ["a.txt"]


def test_a_stamp_changes_with_any_file(tmp_path: Path) -> None:
    write(tmp_path, a_txt="one", b_txt="two")
    stamps = []
    for change in (lambda: None, lambda: (tmp_path / "a.txt").write_text("new"),
                   lambda: (tmp_path / "b.txt").unlink()):  # fmt: skip
        change()
        stamps.append(sources.open(str(tmp_path)).stamp())
    assert stamps[0] != stamps[1] != stamps[2]
    assert sources.open(str(tmp_path)).stamp() == stamps[2]


def test_jsonl_gives_a_document_per_line(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "first", "id": 1}), "", json.dumps({"text": "pair \ud83d\ude00"})]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    found = list(documents(str(path)))
    assert found == [Document("rows.jsonl:1", "first"), Document("rows.jsonl:3", "pair 😀")]


def test_a_lone_surrogate_in_json_becomes_the_replacement_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\\ud800b"}')
    assert [document.text for document in documents(str(path))] == ["a\ufffdb"]


def test_parquet_gives_a_document_per_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = [f"row {k}" for k in range(2500)]
    texts[7] = None  # type: ignore[call-overload]
    pq.write_table(pa.table({"id": list(range(2500)), "text": texts}), path, row_group_size=900)
    found = list(documents(str(path)))
    assert len(found) == 2499
    assert found[7] == Document("rows.parquet:8", "row 8")
    assert found[-1] == Document("rows.parquet:2499", "row 2499")


def test_python_files_are_read_in_the_encoding_they_declare(tmp_path: Path) -> None:
    content = "# -*- coding: latin-1 -*-\nname = 'é'\n"
    (tmp_path / "old.py").write_bytes(content.encode("latin-1"))
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbfmarked")
    assert [d.text for d in documents(str(tmp_path))] == ["marked", content]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.txt", b"\xff\xfe\x00"),
        ("bad.py", b"x = '\xff'\n"),
        ("bad.py", b"# coding: no-such-encoding\n"),
        ("bad.py", b"# coding: rot13\nk = 1\n"),
    ],
)
def test_what_cannot_be_decoded_is_skipped_and_counted(
    tmp_path: Path, name: str, content: bytes
) -> None:
    write(tmp_path, good_txt="good")
    (tmp_path / name).write_bytes(content)
    skipped: list[str] = []
    assert [d.name for d in documents(str(tmp_path), skipped)] == ["good.txt"]
    assert skipped == [name]


def test_the_standard_library_without_its_tests() -> None:
    files = sources.files("python-stdlib")
    names = [file.name for file in files]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py", "email/message.py"} <= set(names)
    assert all(name.endswith(".py") for name in names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert sum(file.path.stat().st_size for file in files) > 5_000_000
    assert Path(sysconfig.get_path("stdlib")) in files[0].path.parents


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', r'a\.jsonl:2: .*string "text"'),
        ("a.jsonl", b'{"text": 3}', r'a\.jsonl:1: .*string "text"'),
        ("a.jsonl", b"[]", r'a\.jsonl:1: .*string "text"'),
        ("a.jsonl", b'\n{"text": ', r"a\.jsonl:2: not a line of JSON"),
        ("a.jsonl", b'{"text": "\xff"}', r"holds no text: could not decode a\.jsonl:1"),
        ("a.txt", b"\x89PNG\0", r"holds no text: could not decode a\.txt"),
        ("a.parquet", b"PAR0", r"a\.parquet: not a parquet file"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.txt", b"\xff", r"holds no text: could not decode a\.txt"),
    ],
)
@pytest.mark.parametrize("single", [True, False])
def test_bad_sources_are_named(
    tmp_path: Path, name: str, content: bytes, message: str, single: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    source = tmp_path / name if single else tmp_path
    with pytest.raises(ValueError, match=message):
        list(documents(str(source)))


def test_a_folder_of_other_files_says_what_it_reads(tmp_path: Path) -> None:
    write(tmp_path, a_html="<p>")
    with pytest.raises(ValueError, match=r"no file that ends in \.txt, \.md, \.py, \.jsonl, \.csv"):
        sources.open(str(tmp_path))


def test_a_parquet_file_without_text_says_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match='no column "text"; it has body, id'):
        list(documents(str(tmp_path)))
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match='column "text" is int64'):
        list(documents(str(tmp_path)))


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file or folder.*'python-stdlib'"):
        list(documents(str(tmp_path / "nowhere")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, a_txt="text", shut__b_txt="more")
    (tmp_path / "shut").chmod(0)
    with pytest.raises(PermissionError, match="shut"):
        list(documents(str(tmp_path)))
