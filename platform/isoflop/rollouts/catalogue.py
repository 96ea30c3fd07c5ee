"""Which metrics are there, what does each say, and which end of it is good?

Most have no good end: a barely trained model repeats less than people do. Such a metric's direction
is "band", and `metrics.reference` measures held-out text, cut to the same length, to draw the band
from.

`least`: as many rollouts give a mean of held-out text to 5 % of itself (measured on windows of
Python source, 128 tokens each; loops make text of models vary more), where that was measured.
"""

from __future__ import annotations

from functools import partial

from isoflop.rollouts import certainty, corpus, groups, recall, repetition, syntax
from isoflop.rollouts.corpus import CORPUS_TOKENS
from isoflop.rollouts.measured import Metric, Missing, Sample
from isoflop.rollouts.novelty import ORDERS, SPAN


def length(sample: Sample) -> float | Missing:
    """Tokens, the one that stopped it included."""
    return float(len(sample.ids))


def stopped(sample: Sample) -> float | Missing:
    """1 if the model ended the text itself."""
    return float(sample.stopped)


def novel(sample: Sample, *, order: int) -> float | Missing:
    """The share of its n-grams that the run had not read by then (Merrill et al. 2024)."""
    if isinstance(sample.copies, Missing):
        return sample.copies
    value = sample.copies.novel[order]
    return Missing(f"fewer than {order} tokens") if value is None else value


def longest_copy(sample: Sample) -> float | Missing:
    """The longest span, in tokens, that stands in what was read; 0 if none has 8 tokens."""
    return sample.copies if isinstance(sample.copies, Missing) else float(sample.copies.longest)


REPETITION = (
    Metric("repetition", "rollout", "band", "share", repetition.repetition,
           "4-grams that occurred before", 617),
    *(
        Metric(f"repeated_{n}", "rollout", "band", "share", partial(repetition.repeated, window=n),
               f"tokens that stand among the {n} before them", 91)
        for n in repetition.WINDOWS
    ),
    Metric("loop", "rollout", "band", "share of rollouts", repetition.loop,
           "rollouts that end in a loop", 400),
    Metric("loop_onset", "rollout", "up", "tokens", repetition.loop_onset, "where the loops begin"),
    Metric("loop_period", "rollout", "band", "tokens", repetition.loop_period,
           "what the loops repeat"),
    Metric("compression", "rollout", "band", "bytes per byte", repetition.compression,
           "by zlib", 39),
)  # fmt: skip

CERTAINTY = (
    Metric("entropy", "token", "band", "nats", certainty.entropy,
           "of the next-token distribution"),
    Metric("entropy_slope", "token", "band", "nats per 100 tokens", certainty.entropy_slope,
           "how it moves along the text"),
    Metric("surprise", "token", "band", "nats", certainty.surprise,
           "of the model at its own tokens"),
    Metric("calibration", "token", "band", "nats", certainty.calibration,
           "surprise less entropy: 0 at temperature 1"),
    Metric("certain_run", "token", "band", "tokens", certainty.certain_run,
           "the longest run of tokens given 99 %"),
    Metric("judged", "token", "band", "nats", certainty.judged,
           "surprise of a frozen model of the same study"),
)  # fmt: skip

ENDS = (
    Metric("length", "rollout", "band", "tokens", length, "of the completion"),
    Metric("stopped", "rollout", "band", "share of rollouts", stopped, "ended by the model itself"),
)

SYNTAX = (
    Metric("parses_as_python", "rollout", "up", "share of lines", syntax.parses_as_python,
           "lines within the longest prefix that is Python", 400),
    Metric("parses_as_json", "rollout", "up", "share of characters", syntax.parses_as_json,
           "characters within the longest prefix that is JSON", 400),
    Metric("brackets", "rollout", "up", "share of brackets", syntax.brackets,
           "brackets that match", 400),
)  # fmt: skip

MEMORY = (
    *(
        Metric(f"novel_{n}", "rollout", "band", "share", partial(novel, order=n),
               f"{n}-grams that the run had not read")
        for n in ORDERS
    ),
    Metric("longest_copy", "rollout", "band", "tokens", longest_copy,
           f"the longest span of at least {SPAN} that it had read"),
    Metric("recalled", "rollout", "band", "share", recall.recalled,
           "of the text that the prompt begins, until the first token that differs"),
    Metric("recalled_exactly", "rollout", "band", "share of rollouts", recall.recalled_exactly,
           "that go on as the text does, to the end", 1000),
)  # fmt: skip

SETS = (
    Metric("unshared", "group", "band", "share", groups.unshared,
           "2-grams that no other rollout of the prompt has"),
    *(
        Metric(f"distinct_{n}", "corpus", "band", f"share at {CORPUS_TOKENS} tokens",
               partial(corpus.distinct, order=n), f"unique among all {n}-grams of a set")
        for n in corpus.ORDERS
    ),
    Metric("unigram_entropy", "corpus", "band", f"bits at {CORPUS_TOKENS} tokens",
           corpus.unigram_entropy, "of the token frequencies of a set"),
    Metric("zipf", "corpus", "band", f"exponent at {CORPUS_TOKENS} tokens", corpus.zipf,
           "how fast frequencies fall with rank"),
    Metric("loop_free", "corpus", "up", "tokens", corpus.loop_free,
           "until a loop begins, expected within the longest rollout"),
)  # fmt: skip

METRICS: tuple[Metric, ...] = (*REPETITION, *CERTAINTY, *ENDS, *SYNTAX, *MEMORY, *SETS)
VALUES = tuple(metric.name for metric in METRICS if metric.level != "corpus")
