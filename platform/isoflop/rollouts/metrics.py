"""What can be said in numbers about text that a model wrote, whatever that text is?

Every metric is a total function: it gives a number, or `Missing` with the reason, and never raises.
At step 0 a model writes noise, a diverged one writes not-a-number; both are data.

Most have no good end: a barely trained model repeats less than people do. Such a metric's direction
is "band", and `reference` measures held-out text, cut to the same length, to draw the band from.

How many different n-grams a text holds depends on how long it is, so metrics of a whole set are
stated for `CORPUS_TOKENS` tokens, whatever was written: the expectation over random choices of
that many tokens' worth of whole rollouts (rarefaction by sampling unit, as ecologists count
species: Colwell, Mao & Chang 2004). How many rollouts there are then changes the error, not the
value, as far as all are alike. Those of one prompt resemble each other, so sets are compared at
equally many prompts and seeds, as the runs of a study have them.
"""

from __future__ import annotations

import ast
import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from isoflop.rollouts.statistics import Aggregate, jackknife, mean

CORPUS_TOKENS = 1024  # so many tokens does a corpus metric speak of
ORDERS = (1, 2, 4)  # n-grams of so many tokens are counted over a corpus
PERIODS = 64  # the longest period that counts as a loop, in tokens
REPEATS = 3  # so often must it stand at the end of the text
LONGEST_SOURCE = 100_000  # characters that the Python parser is asked to read

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Missing:
    """Why a metric has no value here."""

    reason: str


@dataclass(frozen=True, eq=False)
class Sample:
    """One text to be measured: a rollout, or a window of held-out text (`logprobs` None)."""

    ids: NDArray[np.integer]  # of the completion
    text: str  # of the completion, without the token that stopped it
    prompt: str = ""
    logprobs: NDArray[np.float32] | None = None  # nats
    entropies: NDArray[np.float32] | None = None  # nats
    stopped: bool = False  # by the model's own end of text


@dataclass(frozen=True, eq=False)
class Grams:
    """The n-grams of a set of rollouts: triplets of rollout, type, and how often it is in there."""

    rollout: NDArray[np.int64]
    type: NDArray[np.int64]
    count: NDArray[np.int64]
    types: int

    @staticmethod
    def of(rollouts: Sequence[NDArray[np.integer]], order: int) -> Grams:
        hashes = [_grams(ids, order) for ids in rollouts]
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
    grams: Mapping[int, Grams]  # by order
    kept: NDArray[np.bool_]
    tokens: int

    @staticmethod
    def of(rollouts: Sequence[NDArray[np.integer]], tokens: int = CORPUS_TOKENS) -> Corpus:
        """All of these; one that is longer than `tokens` is cut there."""
        cut = [ids[:tokens] for ids in rollouts]
        lengths = np.array([len(ids) for ids in cut], dtype=np.int64)
        grams = {order: Grams.of(cut, order) for order in ORDERS}
        return Corpus(lengths, grams, np.ones(len(cut), dtype=np.bool_), tokens)

    @property
    def rollouts(self) -> int:
        return int(self.kept.sum())

    @property
    def chosen(self) -> float:
        """k: the number of rollouts, a fraction included, that have `tokens` tokens on average."""
        return self.tokens * self.rollouts / max(1, int(self.lengths[self.kept].sum()))

    def incidence(self, order: int) -> tuple[Ids, Ids]:
        """For every type: in how many rollouts it occurs, and how often in all."""
        grams = self.grams[order]
        kept = self.kept[grams.rollout]
        types, counts = grams.type[kept], grams.count[kept]
        within = np.bincount(types, minlength=grams.types)
        total = np.bincount(types, weights=counts, minlength=grams.types).astype(np.int64)
        return within[within > 0], total[within > 0]


@dataclass(frozen=True)
class Metric:
    """A number for each rollout, or one for a whole set of them."""

    name: str
    level: Literal["rollout", "corpus"]
    direction: Literal["up", "down", "band"]  # "band": neither end is good, see `reference`
    unit: str
    function: Callable[[Any], float | Missing]  # of a Sample, or of a Corpus
    description: str


def repetition(sample: Sample, *, order: int = 4) -> float | Missing:
    """1 - unique / total n-grams of one continuation: seq-rep-n of Welleck et al. 2019."""
    found = _grams(sample.ids, order)
    if not len(found):
        return Missing(f"fewer than {order} tokens")
    return 1 - len(np.unique(found)) / len(found)


def loop(sample: Sample) -> float | Missing:
    """1 if the end repeats itself: a period of at most 64 tokens, at least 3 times."""
    if not len(sample.ids):
        return Missing("no tokens")
    return 0.0 if _loop(sample.ids) is None else 1.0


def loop_onset(sample: Sample) -> float | Missing:
    """The token at which the loop begins, counted from the completion's first."""
    found = _loop(sample.ids)
    return Missing("no loop") if found is None else float(found)


def compression(sample: Sample) -> float | Missing:
    """Bytes of the text per byte of its zlib stream (Shaib et al. 2024); grows with length."""
    data = sample.text.encode("utf-8", errors="surrogatepass")
    return len(data) / len(zlib.compress(data)) if data else Missing("no text")


def entropy(sample: Sample) -> float | Missing:
    """Mean entropy in nats of the distributions the tokens were drawn from, at temperature 1."""
    return _finite_mean(sample.entropies, "entropies")


def surprise(sample: Sample) -> float | Missing:
    """Mean negative log probability in nats; about the mean entropy if drawn at temperature 1."""
    value = _finite_mean(sample.logprobs, "log probabilities")
    return value if isinstance(value, Missing) else -value


def length(sample: Sample) -> float | Missing:
    """Tokens, the one that stopped it included."""
    return float(len(sample.ids))


def stopped(sample: Sample) -> float | Missing:
    """1 if the model ended the text itself."""
    return float(sample.stopped)


def parses_as_python(sample: Sample) -> float | Missing:
    """The share of the completion's lines that the longest prefix that is Python reaches.

    Of prompt and completion together, cut after the last complete line: a limit on the length
    mostly cuts within a line, and that is not the model's fault. Blank lines do not count.
    """
    source = sample.prompt + sample.text
    if not sample.stopped:
        source = source[: source.rfind("\n") + 1]
    if len(source) > LONGEST_SOURCE:
        return Missing(f"more than {LONGEST_SOURCE} characters")
    lines = source.split("\n")
    written = range(sample.prompt.count("\n"), len(lines))
    judged = [number for number in written if lines[number].strip()]
    if not judged or len(source) <= len(sample.prompt):
        return Missing("no complete line")
    end = _parseable(lines, judged[0], judged[-1] + 1)
    if isinstance(end, Missing):
        return end
    return sum(number < end for number in judged) / len(judged)


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


METRICS: tuple[Metric, ...] = (
    Metric("repetition", "rollout", "band", "share", repetition, "4-grams that occurred before"),
    Metric("loop", "rollout", "band", "share of rollouts", loop, "rollouts that end in a loop"),
    Metric("loop_onset", "rollout", "up", "tokens", loop_onset, "where the loops begin"),
    Metric("compression", "rollout", "band", "bytes per byte", compression, "by zlib"),
    Metric("entropy", "rollout", "band", "nats", entropy, "of the next-token distribution"),
    Metric("surprise", "rollout", "band", "nats", surprise, "of the model at its own tokens"),
    Metric("length", "rollout", "band", "tokens", length, "of the completion"),
    Metric("stopped", "rollout", "band", "share of rollouts", stopped, "ended by the model itself"),
    Metric(
        "parses_as_python",
        "rollout",
        "up",
        "share of lines",
        parses_as_python,
        "lines within the longest prefix that is Python",
    ),
    *(
        Metric(
            f"distinct_{order}",
            "corpus",
            "band",
            f"share at {CORPUS_TOKENS} tokens",
            partial(distinct, order=order),
            f"unique among all {order}-grams of a set",
        )
        for order in ORDERS
    ),
    Metric(
        "unigram_entropy",
        "corpus",
        "band",
        f"bits at {CORPUS_TOKENS} tokens",
        unigram_entropy,
        "of the token frequencies of a set",
    ),
)


def score(samples: Sequence[Sample]) -> dict[str, list[float | Missing]]:
    """Every rollout metric of every sample, by the metric's name."""
    return {
        metric.name: [metric.function(sample) for sample in samples]
        for metric in METRICS
        if metric.level == "rollout"
    }


def summarise(
    values: Mapping[str, Sequence[float | None]],
    ids: Sequence[NDArray[np.integer]],
    prompts: Sequence[int] | NDArray[np.integer],
) -> dict[str, Aggregate]:
    """Every metric of a set of rollouts: their values, tokens, and which prompt each continues."""
    corpus = Corpus.of(ids)
    aggregates = {}
    for metric in METRICS:
        share = metric.unit.startswith("share")
        if metric.level == "rollout":
            aggregates[metric.name] = mean(values[metric.name], prompts, share=share)
        else:
            statistic = partial(_of_kept, metric.function, corpus)
            aggregates[metric.name] = jackknife(
                statistic,
                prompts,
                name=f"rarefied to {corpus.tokens} tokens",
                lowest=0.0,
                highest=1.0 if share else math.inf,
            )
    return aggregates


def reference(
    windows: Sequence[NDArray[np.integer]],
    decode: Callable[[NDArray[np.integer]], str],
    prompts: Sequence[str] | None = None,
) -> dict[str, Aggregate]:
    """The same metrics on windows of held-out text, cut to the rollouts' length by the caller.

    Each window counts as a prompt of its own; `prompts`: the text before each, where it is known.
    What only a model has (entropy, surprise) stays without a value.
    """
    before = prompts or [""] * len(windows)
    samples = [
        Sample(ids, decode(ids), prompt) for ids, prompt in zip(windows, before, strict=True)
    ]
    values = {
        name: [None if isinstance(value, Missing) else value for value in column]
        for name, column in score(samples).items()
    }
    return summarise(values, windows, range(len(windows)))


def _of_kept(
    function: Callable[[Corpus], float | Missing], corpus: Corpus, kept: NDArray[np.bool_]
) -> float | None:
    value = function(replace(corpus, kept=kept))
    return None if isinstance(value, Missing) else value


def _too_short(corpus: Corpus) -> Missing | None:
    held = int(corpus.lengths[corpus.kept].sum())
    if held >= corpus.tokens:
        return None
    return Missing(f"{held} tokens of {corpus.tokens}")


def _log_choose(n: Any, k: Any) -> Any:
    """Logarithm of the binomial coefficient, for 0 <= k <= n that need not be whole."""
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _grams(ids: NDArray[np.integer], order: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every n-gram, in order."""
    count = max(0, len(ids) - order + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for shift in range(order):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[shift : shift + count].astype(
            np.uint64
        )
    return hashes


def _loop(ids: NDArray[np.integer]) -> int | None:
    """Where the periodic end begins; None if the end is not periodic."""
    n = len(ids)
    longest = min(PERIODS, n // REPEATS)
    if not longest:
        return None
    candidates = np.flatnonzero(ids[n - 1 - longest : n - 1][::-1] == ids[-1]) + 1
    for period in candidates.tolist():
        start = n - (REPEATS - 1) * period
        if np.array_equal(ids[start:], ids[start - period : n - period]):
            breaks = np.flatnonzero(ids[period:] != ids[:-period])
            return int(breaks[-1]) + 1 if len(breaks) else 0
    return None


def _finite_mean(values: NDArray[np.float32] | None, name: str) -> float | Missing:
    if values is None or not len(values):
        return Missing(f"no {name}")
    value = float(np.mean(values, dtype=np.float64))
    return value if math.isfinite(value) else Missing(f"{name} that are not finite")


def _parseable(lines: Sequence[str], start: int, end: int) -> int | Missing:
    """The largest number of lines in [start, end] that are Python; `start` if it is not above that.

    A line at which the parser gives up spoils every longer prefix, so the search steps back to it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model's invalid escapes are not ours
        while end > start:
            try:
                ast.parse("\n".join(lines[:end]) + "\n")
            except SyntaxError as error:
                end = min(end, error.lineno or end) - 1
            except ValueError:  # a null byte or a lone surrogate, which no Python holds
                end -= 1
            except (MemoryError, RecursionError):
                return Missing("nested too deeply for the parser")
            else:
                return end
    return start
