"""How rich is what a model writes, taken as a whole?

How many different n-grams a text holds depends on how long it is, so metrics of a whole set are
stated for `CORPUS_TOKENS` tokens, whatever was written: the expectation over random choices of
that many tokens' worth of whole rollouts (rarefaction by sampling unit, as ecologists count
species: Colwell, Mao & Chang 2004). How many rollouts there are then changes the error, not the
value, as far as all are alike. Those of one prompt resemble each other, so sets are compared at
equally many prompts and seeds, as the runs of a study have them.

Letters: R rollouts, k of them chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.measured import Missing
from isoflop.rollouts.repetition import before_loop, find_loop, grams

CORPUS_TOKENS = 1024  # so many tokens does a corpus metric speak of
ORDERS = (1, 2, 4)  # n-grams of so many tokens are counted over a corpus
CHOICES = 8  # of rollouts, over which Zipf's exponent is averaged

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Grams:
    """The n-grams of a set of rollouts: triplets of rollout, type, and how often it is in there."""

    rollout: NDArray[np.int64]
    type: NDArray[np.int64]
    count: NDArray[np.int64]
    types: int

    @staticmethod
    def of(rollouts: Sequence[NDArray[np.integer]], order: int) -> Grams:
        hashes = [grams(ids, order) for ids in rollouts]
        sizes = [len(found) for found in hashes]
        flat = np.concatenate([np.empty(0, np.uint64), *hashes])
        _, kind = np.unique(flat, return_inverse=True)
        types = int(kind.max()) + 1 if len(kind) else 0
        pairs = np.repeat(np.arange(len(rollouts)), sizes) * types + kind
        pairs, count = np.unique(pairs, return_counts=True)
        return Grams(pairs // max(types, 1), pairs % max(types, 1), count, types)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A set of rollouts, of which `kept` are looked at, to be measured at `tokens` tokens."""

    lengths: NDArray[np.int64]
    counts: Mapping[int, Grams]  # by order
    onsets: NDArray[np.float64]  # of each rollout's loop; inf where there is none
    kept: NDArray[np.bool_]
    tokens: int

    @staticmethod
    def of(rollouts: Sequence[NDArray[np.integer]], tokens: int = CORPUS_TOKENS) -> Corpus:
        """All of these; one that is longer than `tokens` is cut there."""
        cut = [ids[:tokens] for ids in rollouts]
        lengths = np.array([len(ids) for ids in cut], dtype=np.int64)
        counts = {order: Grams.of(cut, order) for order in ORDERS}
        loops = [find_loop(ids) for ids in cut]
        onsets = np.array([np.inf if found is None else found[0] for found in loops], np.float64)
        return Corpus(lengths, counts, onsets, np.ones(len(cut), dtype=np.bool_), tokens)

    @property
    def rollouts(self) -> int:
        return int(self.kept.sum())

    @property
    def chosen(self) -> float:
        """k: the number of rollouts, a fraction included, that have `tokens` tokens on average."""
        return self.tokens * self.rollouts / max(1, int(self.lengths[self.kept].sum()))

    def incidence(self, order: int) -> tuple[Ids, Ids]:
        """For every type: in how many rollouts it occurs, and how often in all."""
        found = self.counts[order]
        kept = self.kept[found.rollout]
        types, counts = found.type[kept], found.count[kept]
        within = np.bincount(types, minlength=found.types)
        total = np.bincount(types, weights=counts, minlength=found.types).astype(np.int64)
        return within[within > 0], total[within > 0]


def distinct(corpus: Corpus, *, order: int) -> float | Missing:
    """Unique per total n-grams (Li et al. 2016), expected in a set of `corpus.tokens` tokens."""
    short = _too_short(corpus)
    if short:
        return short
    within, total = corpus.incidence(order)
    R, k = corpus.rollouts, corpus.chosen
    if not total.sum():
        return Missing(f"no rollout has {order} tokens")
    d = np.arange(R + 1)
    absent = np.where(
        d <= R - k, np.exp(_log_choose(np.maximum(R - d, k), k) - _log_choose(R, k)), 0
    )
    return float((1 - absent[within]).sum() / (total.sum() * k / R))


def unigram_entropy(corpus: Corpus) -> float | Missing:
    """Entropy in bits of the tokens' frequencies, expected in a set of `corpus.tokens` tokens.

    A token that occurs m times in each rollout that has it counts as m tokens for each of them
    that is chosen; how m varies between rollouts is left out.
    """
    short = _too_short(corpus)
    if short:
        return short
    within, total = corpus.incidence(1)
    low = max(1, math.floor(corpus.chosen))
    share = corpus.chosen - low
    value = _expected_entropy(within, total, corpus.rollouts, low)
    if share > 0:
        above = _expected_entropy(within, total, corpus.rollouts, low + 1)
        value += share * (above - value)
    return value


def _expected_entropy(within: Ids, total: Ids, R: int, k: int) -> float:
    """log2 n - E[sum of c log2 c] / n, c being a token's count among k of R rollouts.

    The number h of chosen rollouts that hold a token is hypergeometric, and c = m h.
    """
    different, where = np.unique(within, return_inverse=True)
    d, h = different[:, None], np.arange(1, k + 1)[None, :]
    possible = (h <= d) & (k - h <= R - d)
    rest = np.where(possible, k - h, 0)
    ways = _log_choose(np.maximum(d, h), h) + _log_choose(np.maximum(R - d, rest), rest)
    chance = np.where(possible, np.exp(ways - _log_choose(R, k)), 0)
    bits = (chance * h * np.log2(h)).sum(axis=1)[where]
    m, expected = total / within, within * k / R
    n = total.sum() * k / R
    return float(math.log2(n) - (m * (bits + expected * np.log2(m))).sum() / n)


def zipf(corpus: Corpus) -> float | Missing:
    """Zipf's exponent (Holtzman et al. 2020): minus the slope of log frequency on log rank.

    By least squares over the tokens that occur at least twice in about `corpus.tokens` tokens.

    It is the mean over `CHOICES` choices of whole rollouts, the same for equal sets.
    """
    short = _too_short(corpus)
    if short:
        return short
    rollouts = np.flatnonzero(corpus.kept)
    count = min(len(rollouts), max(1, round(corpus.chosen)))
    draws, found = np.random.default_rng(0), corpus.counts[1]
    slopes = []
    for _ in range(CHOICES):
        chosen = np.zeros(len(corpus.kept), dtype=np.bool_)
        chosen[draws.choice(rollouts, count, replace=False)] = True
        used = chosen[found.rollout]
        frequency = np.bincount(found.type[used], weights=found.count[used]).astype(np.float64)
        slopes.append(_slope(np.sort(frequency[frequency >= 2])[::-1]))
    known = [slope for slope in slopes if slope is not None]
    return float(np.mean(known)) if known else Missing("fewer than 3 tokens that occur twice")


def _slope(frequency: NDArray[np.float64]) -> float | None:
    if len(frequency) < 3:
        return None
    x, y = np.log(np.arange(1, len(frequency) + 1)), np.log(frequency)
    x -= x.mean()
    return float(-(x @ (y - y.mean())) / (x @ x))


def loop_free(corpus: Corpus) -> float | Missing:
    """Tokens until a loop begins, expected within the longest rollout; those that end before count
    as far as they go (the area under the survival curve, see `repetition.survival`)."""
    kept = corpus.kept & (corpus.lengths > 0)
    if not kept.any():
        return Missing("no tokens")
    longest = float(corpus.lengths.max())
    return before_loop(corpus.onsets[kept], corpus.lengths[kept], longest)


def _too_short(corpus: Corpus) -> Missing | None:
    held = int(corpus.lengths[corpus.kept].sum())
    if held >= corpus.tokens:
        return None
    return Missing(f"{held} tokens of {corpus.tokens}")


def _log_choose(n: Any, k: Any) -> Any:
    """Logarithm of the binomial coefficient, for 0 <= k <= n that need not be whole."""
    from scipy.special import gammaln

    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
