"""What is a row? The ways to cut a file of documents into rows of T + 1 tokens.

    stream         windows over all documents, one after the other as if they were a single text
    packed         the same windows, and which document each token belongs to
    best-fit       documents put together so that few rows need padding, cut only if longer than one
    slide-in       one document: the window enters it from the left, and stops at its end
    slide-through  one document: the window enters it from the left, and leaves it to the right
    full-windows   one document: windows that it fills; ends and shorter documents are left out
    right-padded   one document, its beginning: what is longer is cut off

All but `stream` tell a row's documents apart, so that models can keep to one, and mark padding -1.
A frame counts its rows and cuts those asked for, found by binary search over the documents: there
is never a list of windows.

Letters: B rows asked for, T context, W = T + 1 tokens of a row, N documents, n tokens of one, S
stride.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from isoflop.data.packing import best_fit
from isoflop.data.shards import TokenFile

Places = npt.NDArray[np.int64]
Documents = npt.NDArray[np.int32]
Cut = tuple[Places, Documents | None]  # ids (B, W), and the document of each (B, W), -1 for padding


class Frame(ABC):
    """The rows that one pass over a file of tokens is made of."""

    strides: ClassVar[bool] = True  # may windows overlap, or leave out, as the stride says?

    def __init__(self, file: TokenFile, context: int, stride: int = 0) -> None:
        """`stride`: tokens from one window to the next; 0 for the context, where only the token
        between two windows is in both. Raises ValueError for a context that gives no row.
        """
        if context < 1:
            raise ValueError(f"context is {context}; it must be at least 1")
        if not 0 <= stride <= context:
            raise ValueError(f"stride is {stride}; it must be from 1 to the context ({context})")
        self.file = file
        self.context = context
        self.width = context + 1
        self.stride = stride or context
        self.count = self._count()  # rows of one pass
        self.room = 1  # offsets that a pass may begin at
        if self.count < 1:
            raise ValueError(
                f"the {file.name} shard has no document that fills a window of {context} + 1 tokens"
            )

    @abstractmethod
    def _count(self) -> int: ...

    @abstractmethod
    def cut(self, rows: Places, offsets: Places) -> Cut:
        """The rows (B,) of passes with the given offsets (B,)."""

    @abstractmethod
    def read(self, rows: Places, offsets: Places) -> Places:
        """The documents (K,) that these rows show anything of; some more than once."""

    @abstractmethod
    def targets(self) -> tuple[int, int]:
        """Tokens predicted in one pass, and how many different ones they are."""

    @cached_property
    def _windows_at(self) -> npt.NDArray[Any]:
        """The W tokens from each place of the file on: a view, whose rows are copied as a whole."""
        return np.lib.stride_tricks.sliding_window_view(self.file.ids, self.width)

    def gather(self, starts: Places) -> Places:
        """Windows (B, W) that start at the given places."""
        return self._windows_at[starts].astype(np.int64)

    def spread(self, count: int) -> Cut:
        """At most `count` rows, evenly spaced over the file: the same for every run."""
        count = min(count, self.count)
        rows = np.arange(count, dtype=np.int64) * self.count // count
        return self.cut(rows, np.zeros_like(rows))


class Stream(Frame):
    """One fewer window than would fit, so that all passes are equally long and have room for an
    offset; the up to two strides of tokens that a pass leaves out at the ends, others visit.
    """

    def _count(self) -> int:
        if self.width > len(self.file):
            raise ValueError(
                f"a context of {self.context} tokens is longer than the {self.file.name} shard, "
                f"which has {len(self.file)} tokens; context + 1 must fit"
            )
        return max(1, (len(self.file) - self.context) // self.stride)

    def __init__(self, file: TokenFile, context: int, stride: int = 0) -> None:
        super().__init__(file, context, stride)
        self.room = len(file) - self.context - (self.count - 1) * self.stride

    def cut(self, rows: Places, offsets: Places) -> Cut:
        return self._windows(rows * self.stride + offsets)

    def read(self, rows: Places, offsets: Places) -> Places:
        starts = rows * self.stride + offsets
        first = np.searchsorted(self.file.document_ends, starts, side="right")
        last = np.searchsorted(self.file.document_ends, starts + self.context, side="right")
        row, within = _ranges(last - first + 1)
        found: Places = first[row] + within
        return found

    def spread(self, count: int) -> Cut:
        inputs = len(self.file) - 1  # the last token is only a target
        count = min(count, inputs // self.context)
        return self._windows(np.arange(count, dtype=np.int64) * inputs // count)

    def targets(self) -> tuple[int, int]:
        return self.count * self.context, (self.count - 1) * self.stride + self.context

    def _windows(self, starts: Places) -> Cut:
        return self.gather(starts), self._documents(starts)

    def _documents(self, starts: Places) -> Documents | None:
        return None


class Packed(Stream):
    def _documents(self, starts: Places) -> Documents:
        ends = self.file.document_ends
        first = np.searchsorted(ends, starts, side="right")
        last = np.searchsorted(ends, starts + self.context, side="right")
        rows, within = _ranges(last - first)
        begins = np.zeros((len(starts), self.width), dtype=np.int32)
        begins[rows, ends[first[rows] + within] - starts[rows]] = 1
        return np.cumsum(begins, axis=1, dtype=np.int32)


class _Single(Frame):
    """Rows of one document each: window k of a document holds W tokens, the last before `end`."""

    def _count(self) -> int:
        ends = self.file.document_ends
        self.lengths = np.diff(ends, prepend=0)
        self.until = np.cumsum(self._windows(self.lengths))  # (N,): windows up to each document's
        return int(self.until[-1])

    @abstractmethod
    def _windows(self, lengths: Places) -> Places:
        """How many windows documents (N,) of these lengths have."""

    @abstractmethod
    def _end(self, window: Places, lengths: Places) -> Places:
        """Where, from the document's beginning, the given windows (B,) end; may lie beyond it."""

    def cut(self, rows: Places, offsets: Places) -> Cut:
        starts, before, length = self._found(rows)
        return self._padded(starts, before, before + length)

    def read(self, rows: Places, offsets: Places) -> Places:
        return np.searchsorted(self.until, rows, side="right")

    def _found(self, rows: Places) -> tuple[Places, Places, Places]:
        """Where windows (B,) start in the file, by how many tokens that is before their documents
        (less than 0 for within), and the documents' lengths.
        """
        document = np.searchsorted(self.until, rows, side="right")
        length = self.lengths[document]
        window = rows - (self.until[document] - self._windows(length))
        before = self.width - self._end(window, length)
        return self.file.document_ends[document] - length - before, before, length

    def _padded(self, starts: Places, first: Places, stop: Places) -> Cut:
        """Windows (B, W) from places that may lie before the file, or too near to its end, of which
        the columns from `first` to before `stop` (B,) are of the document.
        """
        within = np.clip(starts, 0, max(0, len(self.file) - self.width))
        documents = np.zeros((len(starts), self.width), dtype=np.int32)
        outside = np.flatnonzero(within != starts)
        if len(self.file) >= self.width:
            ids = self.gather(within)
        else:
            ids, outside = documents.astype(np.int64), np.arange(len(starts))
        columns = np.arange(self.width)
        places = np.clip(starts[outside, None] + columns, 0, len(self.file) - 1)
        ids[outside] = self.file.ids[places]
        partial = np.flatnonzero((first > 0) | (stop < self.width))
        padding = (columns < first[partial, None]) | (columns >= stop[partial, None])
        documents[partial] -= padding
        ids[partial] = np.where(padding, _padding(self.file), ids[partial])
        return ids, documents


class SlideIn(_Single):
    """Window k has S more tokens in it than the one before, or moves on by S; the last ends with
    the document.
    """

    def _windows(self, lengths: Places) -> Places:
        return -(-np.maximum(lengths - 1, 0) // self.stride)

    def _end(self, window: Places, lengths: Places) -> Places:
        return np.minimum((window + 1) * self.stride + 1, lengths)

    def targets(self) -> tuple[int, int]:
        kept = self.lengths[self.lengths > 1]
        before = self._windows(kept) - 1  # all windows but the last, which the end has moved
        predicted = _rising(before, self.stride, self.context) + np.minimum(kept - 1, self.context)
        return int(predicted.sum()), int((kept - 1).sum())


class SlideThrough(_Single):
    """As `SlideIn`, and on by S each time, as long as two tokens are left in the window."""

    def _windows(self, lengths: Places) -> Places:
        return np.where(lengths > 1, (lengths + self.context - 2) // self.stride, 0)

    def _end(self, window: Places, lengths: Places) -> Places:
        return (window + 1) * self.stride + 1

    def targets(self) -> tuple[int, int]:
        kept = self.lengths[self.lengths > 1]
        count = self._windows(kept)
        entered = _rising(count, self.stride, kept - 1)
        moved = count * (count + 1) // 2 * self.stride  # sum of kS: how far the windows have come
        left = moved - _rising(count, self.stride, self.context)  # sum of max(kS - T, 0)
        return int((entered - left).sum()), int((kept - 1).sum())


class FullWindows(_Single):
    def _windows(self, lengths: Places) -> Places:
        return np.maximum((lengths - self.width) // self.stride + 1, 0)

    def _end(self, window: Places, lengths: Places) -> Places:
        return window * self.stride + self.width

    def cut(self, rows: Places, offsets: Places) -> Cut:
        return self.gather(self._found(rows)[0]), None  # one document, no padding: nothing to tell

    def targets(self) -> tuple[int, int]:
        windows = self._windows(self.lengths)
        distinct = ((windows - 1) * self.stride + self.context)[windows > 0]
        return self.count * self.context, int(distinct.sum())


class RightPadded(_Single):
    strides = False

    def _windows(self, lengths: Places) -> Places:
        return (lengths > 1).astype(np.int64)

    def _end(self, window: Places, lengths: Places) -> Places:
        return np.full_like(window, self.width)

    def targets(self) -> tuple[int, int]:
        predicted = int(np.clip(self.lengths - 1, 0, self.context).sum())
        return predicted, predicted


class BestFit(Frame):
    """Pieces of at most W tokens in rows. A document that is cut goes on with the token that it was
    cut at, so that no token is lost as a target.
    """

    strides = False

    def _count(self) -> int:
        self.lengths = np.diff(self.file.document_ends, prepend=0)
        pieces = -(-np.maximum(self.lengths - 1, 0) // self.context)
        self.until = np.cumsum(pieces)  # (N,): pieces up to each document's last
        total = int(self.until[-1])
        if not total:
            return 0
        last = self.lengths - (pieces - 1) * self.context
        sizes = np.full(total, self.width)
        sizes[self.until[pieces > 0] - 1] = last[pieces > 0]
        bins = best_fit(sizes, self.width)
        small = np.min_scalar_type(total)  # 4 bytes for a piece and for a row, below 2**32 of them
        self.order = np.argsort(bins, kind="stable").astype(small)  # the pieces by their rows
        self.filled = np.cumsum(np.bincount(bins)).astype(
            small
        )  # (rows,): pieces up to each's last
        return len(self.filled)

    def cut(self, rows: Places, offsets: Places) -> Cut:
        before, held = self._held(rows)
        row, place = _ranges(held + 1)  # (P,): of each piece, and of the padding after the last
        padding = place == held[row]
        piece = self.order[np.where(padding, 0, before[row] + place)].astype(np.int64)
        begin, size = self._pieces(piece)
        size[padding] = 0
        size[padding] = self.width - np.add.reduceat(size, np.flatnonzero(place == 0))
        # The same as if all rows were one: piece after piece, and padding where it is due.
        offset = np.cumsum(size) - size
        shift = np.where(padding, -offset, begin - offset)
        places = np.repeat(shift, size) + np.arange(len(rows) * self.width)
        documents = np.repeat(np.where(padding, -1, place).astype(np.int32), size)
        ids = self.file.ids[places % len(self.file)].astype(np.int64)
        ids[documents < 0] = _padding(self.file)
        return ids.reshape(len(rows), -1), documents.reshape(len(rows), -1)

    def _held(self, rows: Places) -> tuple[Places, Places]:
        """How many pieces come before rows (B,), and how many are in each."""
        before = np.where(rows > 0, self.filled[rows - 1].astype(np.int64), 0)
        return before, self.filled[rows].astype(np.int64) - before

    def read(self, rows: Places, offsets: Places) -> Places:
        before, held = self._held(rows)
        row, place = _ranges(held)
        found: Places = np.searchsorted(self.until, self.order[before[row] + place], side="right")
        return found

    def _pieces(self, pieces: Places) -> tuple[Places, Places]:
        """Where pieces (P,) begin in the file, and their tokens."""
        document = np.searchsorted(self.until, pieces, side="right")
        length, end = self.lengths[document], self.file.document_ends[document]
        first = self.until[document] - -(-(length - 1) // self.context)
        begin = end - length + (pieces - first) * self.context
        return begin, np.minimum(end - begin, self.width)

    def targets(self) -> tuple[int, int]:
        predicted = int(np.maximum(self.lengths - 1, 0).sum())
        return predicted, predicted


FRAMES: dict[str, type[Frame]] = {
    "stream": Stream,
    "packed": Packed,
    "best-fit": BestFit,
    "slide-in": SlideIn,
    "slide-through": SlideThrough,
    "full-windows": FullWindows,
    "right-padded": RightPadded,
}


@lru_cache(maxsize=4)  # packing takes seconds where there are millions of documents
def frame(file: TokenFile, name: str, context: int, stride: int = 0) -> Frame:
    """The frame of that name. Raises ValueError naming what is allowed, and a stride in vain."""
    if name not in FRAMES:
        raise ValueError(f"rows are {name!r}; they must be one of {', '.join(FRAMES)}")
    if stride and not FRAMES[name].strides:
        raise ValueError(f"stride is {stride}, but {name!r} rows do not move by one; leave it out")
    return FRAMES[name](file, context, stride)


def _ranges(lengths: Places) -> tuple[Places, Places]:
    """For lengths (2, 0, 3): which one each element is of (0 0 2 2 2), and where (0 1 0 1 2)."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    return owner, np.arange(len(owner)) - starts[owner]


def _rising(count: Places, step: int, limit: Places | int) -> Places:
    """The sum of min(k * step, limit) over k = 1 .. count."""
    below = np.minimum(count, limit // step)
    total: Places = step * below * (below + 1) // 2 + (count - below) * limit
    return total


def _padding(file: TokenFile) -> int:
    """The id that fills rows up: the end of text, as each document ends with it. It is not read by
    models that keep to documents, and never predicted.
    """
    return int(file.ids[-1])
