"""What is in a prepared text? Counts, lengths of documents, samples, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data.encode import SIDES
from isoflop.data.prepared import Prepared
from isoflop.data.shards import TokenFile

_BAR = 40  # columns of the fullest bin
_SAMPLE = 160  # tokens of a document that are shown
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Histogram:
    """Documents by length; each bin is twice as wide as the one before."""

    edges: npt.NDArray[np.int64]  # (bins + 1,): from here on, and below the next
    documents: npt.NDArray[np.int64]  # (bins,)
    tokens: npt.NDArray[np.int64]  # (bins,)

    @staticmethod
    def of(lengths: npt.NDArray[np.int64]) -> Histogram:
        """From lengths in tokens (D,), each at least 1."""
        exponents = np.frexp(lengths)[1] - 1  # of the largest power of two that is not above
        low, high = int(exponents.min()), int(exponents.max())
        places, bins = exponents - low, high - low + 1
        return Histogram(
            edges=2 ** np.arange(low, high + 2, dtype=np.int64),
            documents=np.bincount(places, minlength=bins),
            tokens=np.bincount(places, weights=lengths, minlength=bins).astype(np.int64),
        )

    def lines(self) -> Iterator[str]:
        """One per bin, with a bar for its documents."""
        width = len(f"{self.edges[-1]:,}")
        for k, (documents, tokens) in enumerate(zip(self.documents, self.tokens, strict=True)):
            bar = "█" * round(_BAR * documents / self.documents.max())
            low, high = self.edges[k], self.edges[k + 1] - 1
            share = tokens / self.tokens.sum()
            yield (
                f"{low:{width},} - {high:{width},} {documents:10,} {share:6.1%} of tokens  {bar}"
            )


def lengths(file: TokenFile) -> npt.NDArray[np.int64]:
    """Tokens of each document, its end of text included (D,)."""
    return np.diff(file.document_ends, prepend=0)


def lines(prepared: Prepared, samples: int, seed: int) -> Iterator[str]:
    """All that is told of a prepared text, line by line."""
    yield from _about(prepared)
    for side in SIDES:
        yield from _side(prepared, side)
    found = lengths(prepared.train())
    at = np.quantile(found, _QUANTILES)
    listed = ", ".join(f"{q:.0%} {value:,.0f}" for q, value in zip(_QUANTILES, at, strict=True))
    yield f"\ntokens per training document: mean {found.mean():,.0f}; {listed}"
    yield from Histogram.of(found).lines()
    for name, text in chosen(prepared, samples, seed):
        yield f"\n{name}\n{text}"


def chosen(prepared: Prepared, samples: int, seed: int) -> Iterator[tuple[str, str]]:
    """The beginnings of some training documents, drawn by `seed`, with what to call them.

    Raises ValueError for less than 0 of them.
    """
    if samples < 0:
        raise ValueError(f"samples is {samples}; it must be at least 0")
    file, tokenizer = prepared.train(), prepared.tokenizer()
    ends = file.document_ends
    count = min(samples, file.documents)
    for place in sorted(np.random.default_rng(seed).choice(file.documents, count, replace=False)):
        start = int(ends[place - 1]) if place else 0
        ids = file.ids[start : min(int(ends[place]) - 1, start + _SAMPLE)]
        yield f"document {place}, token {start:,}", tokenizer.decode(ids.tolist())


def plot(prepared: Prepared, path: Path) -> None:
    """The histogram of both sides as an image, of the kind that the file's suffix names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for side in SIDES:
        found = lengths(prepared.train() if side == "train" else prepared.validation())
        histogram = Histogram.of(found)
        axes.stairs(histogram.documents, histogram.edges, label=side, fill=True, alpha=0.5)
    axes.set(xscale="log", yscale="log", xlabel="tokens of a document", ylabel="documents")
    axes.legend()
    figure.savefig(path, dpi=150)


def _about(prepared: Prepared) -> Iterator[str]:
    details = prepared.details()
    yield f"{details['source']}   licence: {details['licence'] or 'unknown'}"
    content = details.get("content", "not noted")  # by the first releases
    yield f"fingerprint {prepared.fingerprint}   of the text alone: {content}"
    yield (
        f"tokenizer {prepared.tokenizer_name} ({prepared.tokenizer_hash}), "
        f"{prepared.vocab:,} ids as {prepared.train().dtype.name}"
    )
    yield f"read {details['documents_read']:,} documents, {details['bytes_read'] / 1e6:,.1f} MB"
    yield from _left_out(details)
    shared = details["overlap"]
    yield (
        f"of {shared['checked']:,} runs of {shared['length']} tokens held out, "
        f"{shared['share']:.2%} stand in training too"
    )


def _left_out(details: dict[str, Any]) -> Iterator[str]:
    near = details["near_duplicates"]
    yield (
        f"left out {details['duplicates']:,} equal documents, and "
        + ("looked for no near ones" if near is None else f"{near:,} nearly equal ones")
    )
    for kind, count in details["damage"]["counts"].items():
        yield f"{kind}: {count:,}, such as {details['damage']['names'][kind][0]}"


def _side(prepared: Prepared, side: str) -> Iterator[str]:
    tokens, size, documents = (
        getattr(prepared, f"{side}_{what}") for what in ("tokens", "bytes", "documents")
    )
    yield (
        f"{side:10} {tokens:15,} tokens {documents:11,} documents {size / 1e6:11,.1f} MB "
        f"{size / tokens:6.3f} bytes per token"
    )
