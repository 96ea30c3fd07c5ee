"""How much of what is held out stands in the training text all the same?

Splitting by document leaves passages that several documents share. The measure is that of Brown et
al. 2020 (GPT-3, appendix C), with tokens for words: the share of the n-grams held out that occur in
training, for an n that spans about 13 words. Nothing is removed; the share is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from isoflop.data.hashing import ODD, Hashes, mix
from isoflop.data.shards import TokenFile

BYTES = 64  # 13 words of English
SAMPLE = 2**20  # n-grams looked for at most, chosen by their hash: 8 bytes each
_BLOCK = 2**18  # tokens hashed at a time
_CELLS = 2**23
_LOW = np.uint64(_CELLS - 1)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The share of n-grams held out that training has too, within documents."""

    length: int  # tokens of an n-gram
    checked: int
    share: float


def overlap(
    train: TokenFile,
    validation: TokenFile,
    bytes_per_token: float,
    tell: Callable[[int], None] = lambda tokens: None,
) -> Overlap:
    """Read both sides once. Where there are more n-grams than SAMPLE, an even sample of them.

    `tell` is told how many more tokens of `train` were compared.
    """
    length = max(2, round(BYTES / bytes_per_token))
    wanted = _wanted(validation, length)
    if not len(wanted):  # no document is so long
        return Overlap(length=length, checked=0, share=0.0)
    values, counts = np.unique(wanted, return_counts=True)
    found = np.zeros(len(values), dtype=bool)
    ceiling = values[-1]
    likely = np.zeros(_CELLS, dtype=bool)  # by the low bits: searching for all takes ten times long
    likely[values & _LOW] = True
    for hashes in _hashes(train, length):
        tell(len(hashes))
        some = hashes[hashes <= ceiling]
        some = some[likely[some & _LOW]]
        places = np.searchsorted(values, some)
        found[places[values[places] == some]] = True
    return Overlap(
        length=length, checked=len(wanted), share=float(counts[found].sum() / len(wanted))
    )


def _wanted(file: TokenFile, length: int) -> Hashes:
    """The hashes of n-grams that lie within a document: all, or those with the smallest ones."""
    kept = np.empty(0, dtype=np.uint64)
    ceiling = np.uint64(2**64 - 1)
    start = 0
    for hashes in _hashes(file, length):
        # The end of a document is its last token, so an n-gram may end there but not hold it.
        last = np.arange(start, start + len(hashes)) + length - 1
        ends = file.document_ends
        document = np.searchsorted(ends, last, side="right")
        begins = np.where(document > 0, ends[document - 1], 0)
        inside = (begins <= last - length + 1) & (last < ends[document] - 1)
        kept = np.concatenate([kept, hashes[inside & (hashes <= ceiling)]])
        start += len(hashes)
        if len(kept) > 2 * SAMPLE:
            kept, ceiling = _smallest(kept)
    return _smallest(kept)[0] if len(kept) > SAMPLE else kept


def _smallest(hashes: Hashes) -> tuple[Hashes, np.uint64]:
    ceiling = np.partition(hashes, SAMPLE)[SAMPLE]
    return hashes[hashes <= ceiling], ceiling


def _hashes(file: TokenFile, length: int) -> Iterator[Hashes]:
    """A hash of every n-gram (n,), a block at a time, in order."""
    for start in range(0, len(file) - length + 1, _BLOCK):
        stop = min(len(file), start + _BLOCK + length - 1)
        yield _rolled(file.read(start, stop).astype(np.uint64), length)


def _rolled(ids: Hashes, length: int) -> Hashes:
    """sum of ids[i + j] p**(length - 1 - j), modulo 2**64, then mixed; by doubling the length."""
    power, doubled, size = pow(ODD, 1, 2**64), ids + np.uint64(1), 1
    total, covered = np.zeros(len(ids), dtype=np.uint64), 0
    while True:
        if length & size:  # this many tokens go after those that are covered
            shifted = doubled[covered:]
            total = total[: len(shifted)] * np.uint64(power) + shifted
            covered += size
        if covered == length:
            return mix(total[: len(ids) - length + 1])
        doubled = doubled[:-size] * np.uint64(power) + doubled[size:]
        power, size = power * power % 2**64, 2 * size
