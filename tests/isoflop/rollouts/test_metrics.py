"""Do the metrics give the values that a hand computes, and an answer to anything at all?"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoflop.rollouts import catalogue, certainty, corpus, metrics, repetition, syntax
from isoflop.rollouts.metrics import METRICS, Corpus, Missing, Sample

Ids = NDArray[np.int64]


def of(ids: list[int]) -> Sample:
    return Sample(np.array(ids, dtype=np.int64), "")


def written(text: str, prompt: str = "", stopped: bool = False) -> Sample:
    return Sample(np.frombuffer(text.encode(), np.uint8), text, prompt, stopped=stopped)


def words(text: str) -> Ids:
    """The text as numbered words and marks."""
    found = re.findall(r"\w+|\s+|[^\w\s]", text)
    known = {word: number for number, word in enumerate(sorted(set(found)))}
    return np.array([known[word] for word in found])


@pytest.fixture(scope="module")
def human() -> Ids:
    return words(Path(argparse.__file__).read_text())


def windows(ids: Ids, length: int, count: int, seed: int = 0) -> list[Ids]:
    starts = np.random.default_rng(seed).integers(0, len(ids) - length, size=count)
    return [ids[start : start + length] for start in starts]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4, 5], 0.0),
        ([1, 1, 1, 1, 1, 1], 1 - 1 / 3),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 - 4 / 5),
        ([7, 7, 7], Missing("fewer than 4 tokens")),
        ([], Missing("fewer than 4 tokens")),
    ],
)
def test_repetition(ids: list[int], expected: float | Missing) -> None:
    assert repetition.repetition(of(ids)) == expected


@pytest.mark.parametrize(
    ("ids", "onset"),
    [
        ([1, 2, 3, 9, 9, 9], 3),
        ([1, 2, 3, 9, 9], None),  # twice is not yet a loop
        ([5, 1, 2, 1, 2, 1, 2], 1),
        ([5, 2, 1, 2, 1, 2, 1, 2], 1),  # the loop may begin in the middle of its period
        ([1, 2, 1, 2, 1, 2], 0),
        ([1, 2, 1, 2, 1, 2, 3], None),  # and it must reach the end
        (list(range(64)) * 3, 0),
        (list(range(65)) * 3, None),
        ([4], None),
    ],
)
def test_loops(ids: list[int], onset: int | None) -> None:
    assert repetition.loop(of(ids)) == float(onset is not None)
    expected = Missing("no loop") if onset is None else float(onset)
    assert repetition.loop_onset(of(ids)) == expected


def test_compression() -> None:
    text = "abc" * 100
    assert repetition.compression(written(text)) == 300 / len(zlib.compress(text.encode()))
    assert repetition.compression(written("")) == Missing("no text")


def test_means_of_what_the_model_said() -> None:
    values = np.array([-1.0, -3.0], dtype=np.float32)
    sample = Sample(np.array([1, 2]), "ab", logprobs=values, entropies=-values, stopped=True)
    assert certainty.surprise(sample) == 2.0
    assert certainty.entropy(sample) == 2.0
    assert (catalogue.length(sample), catalogue.stopped(sample)) == (2.0, 1.0)
    assert certainty.surprise(of([1])) == Missing("no log probabilities")
    broken = Sample(np.array([1]), "a", entropies=np.array([np.nan], dtype=np.float32))
    assert certainty.entropy(broken) == Missing("entropies that are not finite")


@pytest.mark.parametrize(
    ("prompt", "text", "stopped", "expected"),
    [
        ("def f(x):\n", "    return x\n", False, 1.0),
        ("def f(", "x):\n    return x\n    y = (", False, 1.0),  # the last line is not complete
        ("def f(", "x):\n    return x\n    y = (", True, 2 / 3),  # now it is
        ("x = 1\n", "y = 2\nz = = 3\nw = 4\nv = 5\n", False, 1 / 4),
        ("", "if x:\n", False, 0.0),
        ("", "a = 1\n\n\nif a:\n", False, 1 / 2),  # blank lines are not counted
        ("", "s = '''\nnever closed\n", False, 0.0),
        ("", "a = 1\nb = (2,\nc = 3\n", False, 1 / 3),
        ("once upon a time ", "there was\n", False, 0.0),
        ("x = ", "12", False, Missing("no complete line")),
        ("x = 1\n", "", False, Missing("no complete line")),
        ("", "x = '\\d'\n", False, 1.0),  # a warning at most
        ("", "a = 1\n\x00\n", False, 1 / 2),
        ("", "a = 1\n\udc80\n", False, 1 / 2),
    ],
)
def test_parses_as_python(prompt: str, text: str, stopped: bool, expected: float | Missing) -> None:
    sample = Sample(np.zeros(0, np.int64), text, prompt, stopped=stopped)
    assert syntax.parses_as_python(sample) == expected


def test_the_parser_is_never_overrun() -> None:
    for text in (
        "(" * 5000,
        "-" * 50_000 + "1",
        "[" * 90 + "\n",
        "f" + "(x)" * 20_000,
        "x" * 200_000,
    ):
        value = syntax.parses_as_python(written(text + "\n"))
        assert isinstance(value, Missing) or 0 <= value <= 1


def test_whole_files_are_python() -> None:
    source = Path(textwrap.__file__).read_text()
    assert syntax.parses_as_python(written(source)) == 1.0


def brute(rollouts: list[Ids], order: int, chosen: int) -> tuple[float, float]:
    """Mean number of distinct n-grams and mean entropy over every choice of `chosen` rollouts."""
    distinct, bits = [], []
    for subset in itertools.combinations(rollouts, chosen):
        grams = [tuple(r[i : i + order]) for r in subset for i in range(len(r) - order + 1)]
        _, counts = np.unique(np.array(grams), axis=0, return_counts=True)
        p = counts / counts.sum()
        distinct.append(len(counts) / len(grams))
        bits.append(float(-(p * np.log2(p)).sum()))
    return float(np.mean(distinct)), float(np.mean(bits))


@pytest.mark.parametrize("chosen", [1, 3, 7])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_rarefaction_is_the_mean_over_all_choices(order: int, chosen: int) -> None:
    """Exact for equal lengths, and for the entropy where a token's counts are equal."""
    rng = np.random.default_rng(0)
    rollouts = [rng.permutation(12)[:8] for _ in range(7)]
    whole = Corpus.of(rollouts, tokens=8 * chosen)
    distinct, bits = brute(rollouts, order, chosen)
    assert corpus.distinct(whole, order=order) == pytest.approx(distinct)
    if order == 1:
        assert corpus.unigram_entropy(whole) == pytest.approx(bits)


def test_entropy_is_close_where_counts_vary(human: Ids) -> None:
    rollouts = windows(human, 32, 9)
    whole = Corpus.of(rollouts, tokens=4 * 32)
    assert corpus.unigram_entropy(whole) == pytest.approx(brute(rollouts, 1, 4)[1], abs=0.05)


def test_the_number_of_rollouts_does_not_change_the_value(human: Ids) -> None:
    """Where plain distinct-2 halves, the rarefied one stays; so does the entropy."""

    def plain(rollouts: list[Ids]) -> float:
        pairs = [tuple(r[i : i + 2]) for r in rollouts for i in range(len(r) - 1)]
        return len(set(pairs)) / len(pairs)

    small = [windows(human, 48, 32, seed) for seed in range(8)]
    large = windows(human, 48, 512, 99)
    assert plain(large) < 0.6 * np.mean([plain(rollouts) for rollouts in small])
    for function, spread in (
        (lambda found: corpus.distinct(found, order=2), 0.03),
        (corpus.unigram_entropy, 0.1),
    ):
        few = np.array([function(Corpus.of(rollouts)) for rollouts in small])
        assert np.mean(few) == pytest.approx(function(Corpus.of(large)), abs=spread)


def test_ragged_rollouts_are_measured_at_the_same_tokens(human: Ids) -> None:
    lengths = np.random.default_rng(1).integers(16, 80, size=300)
    ragged = [window[:n] for window, n in zip(windows(human, 80, 300), lengths, strict=True)]
    equal = windows(human, 48, 300, 1)
    values = [corpus.distinct(Corpus.of(rollouts), order=2) for rollouts in (ragged, equal)]
    assert values[0] == pytest.approx(values[1], abs=0.04)


def test_too_few_tokens_have_no_value() -> None:
    whole = Corpus.of([np.arange(10)] * 3)
    assert corpus.distinct(whole, order=2) == Missing("30 tokens of 1024")
    assert corpus.unigram_entropy(whole) == Missing("30 tokens of 1024")
    found = metrics.summarise(metrics_of([of([1, 2])]), [np.array([1, 2])], [0])
    assert found["distinct_2"].value is None


def metrics_of(samples: list[Sample]) -> dict[str, list[float | None]]:
    return {
        name: [None if isinstance(value, Missing) else value for value in column]
        for name, column in metrics.score(samples).items()
    }


def test_known_extremes_of_a_set() -> None:
    same = Corpus.of([np.zeros(64, dtype=np.int64)] * 20)
    other = Corpus.of([np.arange(64) + 64 * i for i in range(20)])
    assert corpus.distinct(same, order=1) == pytest.approx(1 / 1024)
    assert corpus.unigram_entropy(same) == pytest.approx(0, abs=1e-9)
    assert corpus.distinct(other, order=4) == pytest.approx(1)
    assert corpus.unigram_entropy(other) == pytest.approx(10)


def test_people_stand_between_loops_and_noise(human: Ids) -> None:
    """Why most directions are bands: noise looks better than people on every one of them."""
    rng = np.random.default_rng(0)
    people = windows(human, 64, 64)
    noise = [rng.integers(0, 2000, size=64) for _ in range(64)]
    loops = [np.tile(window[:6], 11)[:64] for window in people]
    sets = [
        metrics.reference(rollouts, lambda ids: " ".join(map(str, ids)))
        for rollouts in (noise, people, loops)
    ]
    for name in ("repetition", "loop", "compression"):
        low, middle, high = (found[name].value for found in sets)
        assert low is not None and middle is not None and high is not None
        assert low <= middle < high
    for name in ("distinct_1", "distinct_2", "distinct_4", "unigram_entropy"):
        high, middle, low = (found[name].value for found in sets)
        assert low is not None and middle is not None and high is not None
        assert low < middle < high
    band = sets[1]["distinct_2"]
    assert band.low is not None and band.high is not None and band.value is not None
    assert band.low < band.value < band.high
    assert sets[1]["surprise"].value is None, "held-out text has no log probabilities"


def test_every_metric_is_described_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.description and metric.unit for metric in METRICS)
    found = metrics.summarise(metrics_of([of([1] * 2000)]), [np.ones(2000, np.int64)], [0])
    assert list(found) == names


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2**31 - 1), max_size=80),
    text=st.text(st.characters(), max_size=200),
    prompt=st.text(max_size=40),
    numbers=st.one_of(st.none(), st.lists(st.floats(width=32), max_size=80)),
    stopped=st.booleans(),
)
def test_anything_can_be_scored(
    ids: list[int], text: str, prompt: str, numbers: list[float] | None, stopped: bool
) -> None:
    values = None if numbers is None else np.array(numbers, dtype=np.float32)
    sample = Sample(np.array(ids, dtype=np.int32), text, prompt, values, values, stopped)
    for name, (value,) in metrics.score([sample]).items():
        if isinstance(value, Missing):
            assert value.reason, name
        else:
            assert math.isfinite(value), name
    many = [sample.ids] * 30
    for aggregate in metrics.summarise(
        metrics_of([sample] * 30), many, [0] * 15 + [1] * 15
    ).values():
        assert aggregate.value is None or math.isfinite(aggregate.value)


def test_the_empty_and_the_huge() -> None:
    assert metrics.summarise(metrics_of([]), [], [])["repetition"].value is None
    huge = np.random.default_rng(0).integers(0, 50_000, size=200_000)
    found = metrics.summarise(metrics_of([Sample(huge, "x = 1\n" * 30_000)]), [huge], [0])
    assert found["distinct_1"].value is not None
    assert found["parses_as_python"].missing == 1
