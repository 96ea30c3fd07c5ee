"""Are data sets found by name: streamed, read from the cache, or clearly not there?"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.data import hub, sources
from isoflop.data.documents import Damage


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set's folder with two files of training rows and one of test rows."""
    pytest.importorskip("datasets")
    for name, rows in {
        "train-0": ["one", " ", "two \ud83d\ude00"], "train-1": ["three", None], "test-0": ["four"]
    }.items():  # fmt: skip
        lines = [json.dumps({"text": row, "id": k}) for k, row in enumerate(rows)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_a_folder_is_streamed_in_its_order(dataset: Path) -> None:
    source = sources.open(f"hf:{dataset}")
    parts = pickle.loads(pickle.dumps(source.parts()))
    assert len(parts) == 2
    log = Damage()
    found = [(d.name, d.text) for part in parts for d in part.documents(log)]
    assert [text for _, text in found] == ["one", "two 😀", "three"]
    assert found[1][0] == f"{dataset}#0:2"
    assert log.counts == {"empty": 1}
    assert source.stamp() is None


def test_a_split_can_be_named(dataset: Path) -> None:
    assert [d.text for d in sources.documents(f"hf:{dataset}:test")] == ["four"]
    with pytest.raises(ValueError, match=r'Bad split: "?dev'):
        sources.open(f"hf:{dataset}:dev")


def test_a_column_that_is_not_there(dataset: Path) -> None:
    with pytest.raises(ValueError, match='no column "body"; it has text, id'):
        sources.open(f"hf:{dataset}", column="body")
    source = sources.open(f"hf:{dataset}", column="id")
    with pytest.raises(ValueError, match='column "id" is int, not a string'):
        list(source.parts()[0].documents(Damage()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:wikitext", ("wikitext", None, "train")),
        ("hf:owner/name", ("owner/name", None, "train")),
        ("hf:owner/name/config:test", ("owner/name", "config", "test")),
        ("hf:./folder/of/mine:dev", ("./folder/of/mine", None, "dev")),
    ],
)
def test_names(name: str, expected: tuple[str, str | None, str]) -> None:
    assert hub.parsed(name) == expected


@pytest.mark.parametrize("name", ["hf:", "hf:a//b", "hf:a/b/c/d"])
def test_other_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(ValueError, match="must read hf:NAME, hf:OWNER/NAME"):
        sources.open(name)


def cached(home: Path, name: str, files: list[str]) -> None:
    """The hub's cache as a download leaves it."""
    repository = hub.DOWNLOADS[name].repository.replace("/", "--")
    folder = home / "hub" / f"datasets--{repository}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for k, file in enumerate(files):
        path = folder / "snapshots" / ("0" * 40) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [f"story {k}"]}), path)


def offline(home: Path, code: str) -> subprocess.CompletedProcess[str]:
    return elsewhere(home, code, HF_HUB_OFFLINE="1")


def elsewhere(home: Path, code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its settings when it is imported."""
    environment = os.environ | {"HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", f"from isoflop.data import sources; {code}"],
        env=environment | settings, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@contextmanager
def serving(repository: str, folder: Path, files: dict[str, list[str]]) -> Iterator[str]:
    """The address of a hub that has these tables of texts."""
    for name, texts in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts}), path)
    words = [sys.executable, str(Path(__file__).with_name("run_hub.py")), repository, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def test_a_named_text_is_downloaded_once(tmp_path: Path) -> None:
    wanted = hub.DOWNLOADS["tinystories"]
    files = {f"data/train-0000{k}-of-00004-x.parquet": [f"story {k}"] for k in range(4)}
    files["data/validation-00000-of-00001-x.parquet"] = ["not asked for"]
    code = "print([d.text for d in sources.documents('tinystories')])"
    with serving(wanted.repository, tmp_path / "there", files) as address:
        done = elsewhere(tmp_path, code, HF_ENDPOINT=address)
    assert done.stdout.strip() == str([f"story {k}" for k in range(4)]), done.stderr
    assert not list((tmp_path / "hub").rglob("*validation*"))
    assert offline(tmp_path, code).stdout == done.stdout, "and is there without a network"


def test_any_other_text_is_streamed_and_read_offline_once_it_was_loaded(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    files = {"data/train-0.parquet": ["one", "two"], "data/test-0.parquet": ["three"]}
    code = "print([d.text for d in sources.documents('hf:some/text')])"
    with serving("some/text", tmp_path / "there", files) as address:
        streamed = elsewhere(tmp_path, code, HF_ENDPOINT=address)
        assert streamed.stdout.strip() == "['one', 'two']", streamed.stderr
        assert offline(tmp_path, code).returncode, "a stream stores nothing"
        load = "import datasets; datasets.load_dataset('some/text')"
        loaded = elsewhere(tmp_path, load, HF_ENDPOINT=address)
        assert not loaded.returncode, loaded.stderr
    done = offline(tmp_path, code)
    assert done.stdout == streamed.stdout, done.stderr


def test_a_download_is_read_from_the_cache(tmp_path: Path) -> None:
    cached(tmp_path, "tinystories", [f"data/train-0000{k}-of-00004-x.parquet" for k in range(4)])
    done = offline(
        tmp_path,
        "s = sources.open('tinystories'); "
        "print(s.licence, [d.text for d in sources.documents('tinystories')], len(s.stamp()))",
    )
    expected = f"CDLA-Sharing-1.0 {[f'story {k}' for k in range(4)]} 4"
    assert done.stdout.strip() == expected, done.stderr


def test_half_a_download_is_refused(tmp_path: Path) -> None:
    cached(tmp_path, "tinystories", ["data/train-00000-of-00004-x.parquet"])
    done = offline(tmp_path, "sources.open('tinystories')")
    last = done.stderr.strip().splitlines()[-1]
    assert "1 of 4 files are there" in last and last.startswith("ValueError: data.source"), last


@pytest.mark.parametrize("name", ["fineweb-edu", "hf:nobody/nothing"])
def test_offline_it_says_what_to_do(tmp_path: Path, name: str) -> None:
    if name.startswith("hf:"):
        pytest.importorskip("datasets")
    done = offline(tmp_path, f"sources.open({name!r})")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: data.source '{name}' is the data set"), done.stderr
    assert "neither on this machine nor to be fetched" in last and "set HF_HOME" in last


@pytest.mark.parametrize(
    ("name", "package"), [("hf:owner/name", "datasets"), ("tinystories", "huggingface_hub")]
)
def test_without_the_package_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"package {package}: pip install 'isoflop\[hf\]'"):
        sources.open(name)
