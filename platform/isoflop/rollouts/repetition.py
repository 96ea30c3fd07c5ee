"""Does a text say the same again, and does it end in a loop?

Letters: n tokens of a text, p period of a loop.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.measured import Missing, Sample

PERIODS = 64  # the longest period that counts as a loop, in tokens
REPEATS = 3  # so often must it stand at the end of the text
WINDOWS = (16, 32, 128)  # tokens looked back


def repetition(sample: Sample, *, order: int = 4) -> float | Missing:
    """1 - unique / total n-grams of one continuation: seq-rep-n of Welleck et al. 2019."""
    found = grams(sample.ids, order)
    if not len(found):
        return Missing(f"fewer than {order} tokens")
    return 1 - len(np.unique(found)) / len(found)


def repeated(sample: Sample, *, window: int) -> float | Missing:
    """The share of tokens that stand among the `window` before them (Welleck et al. 2019, rep/l;
    there of predicted tokens, here of the written ones)."""
    n = len(sample.ids)
    if n < 2:
        return Missing("fewer than 2 tokens")
    order = np.argsort(sample.ids, kind="stable")
    same = sample.ids[order[1:]] == sample.ids[order[:-1]]
    return float(np.count_nonzero(same & (np.diff(order) <= window)) / n)


def loop(sample: Sample) -> float | Missing:
    """1 if the end repeats itself: a period of at most 64 tokens, at least 3 times."""
    if not len(sample.ids):
        return Missing("no tokens")
    return 0.0 if find_loop(sample.ids) is None else 1.0


def loop_onset(sample: Sample) -> float | Missing:
    """The token at which the loop begins, counted from the completion's first."""
    found = find_loop(sample.ids)
    return Missing("no loop") if found is None else float(found[0])


def loop_period(sample: Sample) -> float | Missing:
    """How many tokens the loop repeats."""
    found = find_loop(sample.ids)
    return Missing("no loop") if found is None else float(found[1])


def compression(sample: Sample) -> float | Missing:
    """Bytes of the text per byte of its zlib stream (Shaib et al. 2024); grows with length."""
    data = sample.text.encode("utf-8", errors="surrogatepass")
    return len(data) / len(zlib.compress(data)) if data else Missing("no text")


def survival(
    onsets: Sequence[float] | NDArray[np.float64], lengths: Sequence[float] | NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The share of rollouts not yet in a loop, by token: times (m,) and shares (m,) from there on.

    `onsets`: inf where a rollout of that length did not loop; it is then censored at its length
    (Kaplan & Meier 1958). The first time is 0.
    """
    onset, length = np.asarray(onsets, np.float64), np.asarray(lengths, np.float64)
    times = np.unique(onset[np.isfinite(onset)])
    if not len(onset) or not len(times):
        return np.zeros(1), np.ones(1)
    ended = np.sort(np.minimum(onset, length))
    looped = np.sort(onset[np.isfinite(onset)])
    at_risk = len(onset) - np.searchsorted(ended, times, side="left")
    events = np.searchsorted(looped, times, side="right") - np.searchsorted(looped, times)
    return np.append(0.0, times), np.append(1.0, np.cumprod(1 - events / at_risk))


def before_loop(onsets: NDArray[np.float64], lengths: NDArray[np.integer], within: float) -> float:
    """Tokens until a loop begins, expected among the first `within`: the area under `survival`."""
    times, shares = survival(onsets, lengths)
    ends = np.minimum(np.append(times[1:], np.inf), within)
    return float((shares * np.maximum(ends - times, 0)).sum())


def grams(ids: NDArray[np.integer], order: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every n-gram, in order."""
    count = max(0, len(ids) - order + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for shift in range(order):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[shift : shift + count].astype(
            np.uint64
        )
    return hashes


def find_loop(ids: NDArray[np.integer]) -> tuple[int, int] | None:
    """Where the periodic end begins, and its period; None if the end is not periodic."""
    n = len(ids)
    longest = min(PERIODS, n // REPEATS)
    if not longest:
        return None
    candidates = np.flatnonzero(ids[n - 1 - longest : n - 1][::-1] == ids[-1]) + 1
    for p in candidates.tolist():
        start = n - (REPEATS - 1) * p
        if np.array_equal(ids[start:], ids[start - p : n - p]):
            breaks = np.flatnonzero(ids[p:] != ids[:-p])
            return (int(breaks[-1]) + 1 if len(breaks) else 0), p
    return None
