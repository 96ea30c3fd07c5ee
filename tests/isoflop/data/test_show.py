"""Is what is shown of a text what is in it?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.options import Text
from isoflop.data.prepare import Prepared, prepare
from isoflop.data.show import Histogram, chosen, lengths, lines, plot


@pytest.fixture
def prepared(corpus: Path, tmp_path: Path) -> Prepared:
    wanted = Text(source=str(corpus), tokenizer="bpe-400", validation=0.2)
    return prepare(wanted, tmp_path / "cache")


@given(st.lists(st.integers(1, 2**40), min_size=1))
def test_every_document_is_in_its_bin(found: list[int]) -> None:
    histogram = Histogram.of(np.array(found, dtype=np.int64))
    assert (np.diff(histogram.edges) == histogram.edges[:-1]).all()
    for low, high, documents, tokens in zip(
        histogram.edges[:-1],
        histogram.edges[1:],
        histogram.documents,
        histogram.tokens,
        strict=True,
    ):
        inside = [length for length in found if low <= length < high]
        assert (documents, tokens) == (len(inside), sum(inside))
    assert histogram.documents.sum() == len(found)
    assert len(list(histogram.lines())) == len(histogram.documents)


def test_lines_tell_the_counts(prepared: Prepared) -> None:
    shown = "\n".join(lines(prepared, samples=2, seed=0))
    assert f"{prepared.train_tokens:,} tokens" in shown
    assert f"{prepared.validation_documents:,} documents" in shown
    assert prepared.fingerprint in shown and "bpe-400" in shown and "licence: unknown" in shown
    assert f"of the text alone: {prepared.details()['content']}" in shown
    assert f"mean {lengths(prepared.train()).mean():,.0f}" in shown
    assert shown.count("\ndocument ") == 2


def test_samples_are_the_beginnings_of_documents(prepared: Prepared) -> None:
    sources = [path.read_text() for path in Path(prepared.details()["source"]).iterdir()]
    for _, sample in chosen(prepared, 5, seed=1):
        assert sample and any(source.startswith(sample) for source in sources)
    assert list(chosen(prepared, 5, seed=1)) != list(chosen(prepared, 5, seed=2))
    assert len(list(chosen(prepared, 1000, seed=0))) == prepared.train_documents
    with pytest.raises(ValueError, match="samples is -1"):
        list(chosen(prepared, -1, seed=0))


def test_the_histogram_is_drawn(prepared: Prepared, tmp_path: Path) -> None:
    plot(prepared, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
