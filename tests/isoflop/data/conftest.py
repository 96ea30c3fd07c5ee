"""What do the tests of the data room share? A small real text, and a vocabulary trained on it."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from isoflop.data import bpe
from isoflop.data.tokenizers import TiktokenTokenizer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    for folder in (ROOT / ".." / "shared" / "data", ROOT / ".." / ".." / "shared" / "data"):
        if folder.is_dir():
            return folder.resolve()
    pytest.skip("the folder ../shared/data with real texts is not on this machine")


@pytest.fixture(scope="session")
def stdlib_texts() -> dict[str, str]:
    """Some 50 modules of the standard library, about 1 MB."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = {path.name: path.read_bytes().decode() for path in sorted(root.glob("[a-d]*.py"))}
    assert sum(map(len, texts.values())) > 500_000
    return texts


@pytest.fixture(scope="session")
def trained(stdlib_texts: dict[str, str]) -> TiktokenTokenizer:
    return bpe.train(stdlib_texts.values(), 1024)


@pytest.fixture
def corpus(tmp_path: Path, stdlib_texts: dict[str, str]) -> Path:
    """A folder of 20 small modules."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    by_length = sorted(stdlib_texts.items(), key=lambda item: len(item[1]))
    for name, content in by_length[:20]:
        (folder / name).write_bytes(content.encode())
    assert len(list(folder.iterdir())) == 20
    return folder
