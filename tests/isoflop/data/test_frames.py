"""Are rows cut as their names say? Against windows that are written out one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data import shards
from isoflop.data.frames import FRAMES, Frame, frame
from isoflop.data.shards import TokenFile

Row = list[
    tuple[int, int]
]  # (document in the file, place in it) of each token; (-1, -1) is padding
PADDING = (-1, -1)

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)
shapes = st.integers(1, 9).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t)))


def made(folder: Path, sizes: list[int]) -> TokenFile:
    """Ids that tell the document and the place: 100 d + p."""
    texts = [np.arange(n) + 100 * d for d, n in enumerate(sizes)]
    return shards.write(folder, "made", texts, "uint32")


def window(document: int, size: int, end: int, context: int) -> Row:
    places = range(end - context - 1, end)
    return [(document, p) if 0 <= p < size else PADDING for p in places]


def single(name: str, sizes: list[int], context: int, stride: int) -> Iterator[Row]:
    """The windows of one document per row, by their definitions."""
    for document, n in enumerate(sizes):
        entering = range(stride + 1, n + context, stride)
        full = range(context + 1, n + 1, stride)
        inside = [e for e in entering if e < n]
        ends = {
            "slide-in": [*inside, n] if n > 1 else [],
            "slide-through": [e for e in entering if n - (e - context - 1) >= 2] if n > 1 else [],
            "full-windows": list(full),
            "right-padded": [context + 1] if n > 1 else [],
        }
        yield from (window(document, n, end, context) for end in ends[name])


def whole(cut: Frame) -> list[Row]:
    """Every row of a pass, from its ids, with padding where the frame says so."""
    rows = np.arange(cut.count)
    ids, documents = cut.cut(rows, np.zeros_like(rows))
    assert ids.dtype == np.int64 and ids.shape == (cut.count, cut.width)
    if documents is None:
        documents = np.zeros(ids.shape, dtype=np.int32)
    assert documents.dtype == np.int32 and documents.shape == ids.shape
    return [
        [PADDING if d < 0 else divmod(int(i), 100) for i, d in zip(r, ds, strict=True)]
        for r, ds in zip(ids, documents, strict=True)
    ]


def predicted(rows: list[Row]) -> list[tuple[int, int]]:
    """What an objective predicts: tokens that follow one of their own document."""
    pairs = [pair for row in rows for pair in itertools.pairwise(row)]
    return [b for a, b in pairs if a[0] == b[0] >= 0]


@pytest.mark.parametrize("name", ["slide-in", "slide-through", "full-windows", "right-padded"])
@settings(max_examples=40, deadline=None)
@given(sizes=lengths, shape=shapes)
def test_windows_of_one_document(
    tmp_path_factory: pytest.TempPathFactory, name: str, sizes: list[int], shape: tuple[int, int]
) -> None:
    context, stride = shape
    expected = list(single(name, sizes, context, stride if FRAMES[name].strides else context))
    file = made(tmp_path_factory.mktemp("made"), sizes)
    if not expected:
        with pytest.raises(ValueError, match="no document that fills a window"):
            FRAMES[name](file, context, stride)
        return
    found = FRAMES[name](file, context, stride if FRAMES[name].strides else 0)
    rows = whole(found)
    assert rows == expected
    targets = predicted(rows)
    assert found.targets() == (len(targets), len(set(targets)))
    if name.startswith("slide"):
        assert set(targets) == {(d, p) for d, n in enumerate(sizes) for p in range(1, n)}


@settings(max_examples=40, deadline=None)
@given(sizes=lengths, context=st.integers(1, 12))
def test_best_fit_rows_hold_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], context: int
) -> None:
    sizes = [*sizes, 2]
    found = FRAMES["best-fit"](made(tmp_path_factory.mktemp("made"), sizes), context)
    targets = predicted(whole(found))
    assert sorted(targets) == [(d, p) for d, n in enumerate(sizes) for p in range(1, n)]
    assert found.targets() == (len(targets), len(targets))


def test_best_fit_cuts_only_what_is_longer_than_a_row(tmp_path: Path) -> None:
    found = FRAMES["best-fit"](made(tmp_path, [3, 20, 5, 8, 2, 1]), 7)
    rows = whole(found)
    pieces = sorted(
        (d, sorted(p for e, p in row if e == d)) for row in rows for d in {e for e, _ in row} - {-1}
    )
    parts = [range(8), range(7, 15), range(14, 20)]
    expected = [(0, range(3)), *((1, part) for part in parts), (2, range(5)), (3, range(8))]
    assert pieces == [(d, list(p)) for d, p in [*expected, (4, range(2))]]
    assert len(rows) == 5, "two whole pieces, the eight, 6 + 2 and 5 + 3"


def test_best_fit_tells_documents_apart(tmp_path: Path) -> None:
    found = FRAMES["best-fit"](made(tmp_path, [4, 3, 3]), 9)
    ids, documents = found.cut(np.array([0]), np.array([0]))
    assert documents is not None
    assert ids[0].tolist() == [0, 1, 2, 3, 100, 101, 102, 200, 201, 202]
    assert documents[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


@settings(max_examples=40, deadline=None)
@given(sizes=lengths, shape=shapes, data=st.data())
def test_packed_rows_are_the_streams_with_their_documents(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    shape: tuple[int, int],
    data: st.DataObject,
) -> None:
    context, stride = min(shape[0], max(1, sum(sizes) - 1)), min(shape[1], sum(sizes) - 1)
    if sum(sizes) < 2:
        return
    file = made(tmp_path_factory.mktemp("made"), sizes)
    packed, stream = (FRAMES[name](file, context, stride) for name in ("packed", "stream"))
    offset = data.draw(st.integers(0, packed.room - 1))
    rows = np.arange(packed.count)
    ids, documents = packed.cut(rows, np.full_like(rows, offset))
    plain, none = stream.cut(rows, np.full_like(rows, offset))
    assert none is None and documents is not None and np.array_equal(ids, plain)
    assert (documents[:, 0] == 0).all()
    assert np.array_equal(np.diff(documents) == 1, np.diff(ids // 100) != 0)
    assert packed.targets() == stream.targets()


@given(data=st.data(), shape=shapes, size=st.integers(2, 80))
@settings(max_examples=40, deadline=None)
def test_a_stream_with_a_stride_leaves_out_its_ends_only(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    shape: tuple[int, int],
    size: int,
) -> None:
    context = min(shape[0], size - 1)
    stride = min(shape[1], context)
    file = shards.write(tmp_path_factory.mktemp("made"), "made", [np.arange(size)], "uint32")
    stream = FRAMES["stream"](file, context, stride)
    offset = data.draw(st.integers(0, stream.room - 1))
    rows = np.arange(stream.count)
    ids, _ = stream.cut(rows, np.full_like(rows, offset))
    targets = ids[:, 1:]
    assert stream.targets() == (targets.size, len(np.unique(targets)))
    assert (np.diff(ids[:, 0]) == stride).all()
    assert size - 1 - len(np.unique(targets)) <= 2 * stride
    last, _ = stream.cut(rows[-1:], np.array([stream.room - 1]))
    assert last[0, -1] == size - 1, "the largest offset reaches the end"


@pytest.mark.parametrize("name", FRAMES)
def test_held_out_rows_are_spread_over_the_file(tmp_path: Path, name: str) -> None:
    found = FRAMES[name](made(tmp_path, [30, 9, 25, 40, 3, 60]), 8)
    ids, documents = found.spread(4)
    assert ids.shape == (4, 9)
    assert len({row[0] // 100 for row in ids.tolist()}) > 1
    assert (documents is None) == (name in ("stream", "full-windows"))
    many, _ = found.spread(10_000)
    assert len(many) == (found.count if name not in ("stream", "packed") else 166 // 8)


def test_an_empty_document_has_no_rows_and_harms_none(tmp_path: Path) -> None:
    texts = [np.arange(3), np.arange(0), np.arange(100, 105), np.arange(0)]
    file = shards.write(tmp_path, "holes", texts, "uint32")
    for name in FRAMES:
        found = FRAMES[name](file, 3)
        rows = np.arange(found.count)
        ids, _ = found.cut(rows, np.zeros_like(rows))
        assert set(ids.flatten().tolist()) <= {0, 1, 2, 100, 101, 102, 103, 104}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rows", 4, 0), "rows are 'rows'; they must be one of stream, packed, best-fit"),
        (("best-fit", 4, 2), "stride is 2, but 'best-fit' rows do not move"),
        (("stream", 4, 5), r"stride is 5; it must be from 1 to the context \(4\)"),
        (("slide-in", 4, -1), "stride is -1"),
        (("stream", 0, 0), "context is 0"),
        (("stream", 99, 0), "a context of 99 tokens is longer than the made shard"),
        (("full-windows", 20, 0), "the made shard has no document that fills a window of 20"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path, arguments: tuple[str, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        frame(made(tmp_path, [9, 9]), *arguments)
