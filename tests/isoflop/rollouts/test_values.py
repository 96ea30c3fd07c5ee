"""Do the metrics of repetition, certainty, syntax, recall and groups give what a hand computes?"""

from __future__ import annotations

import itertools
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoflop.rollouts import metrics
from isoflop.rollouts.catalogue import METRICS
from isoflop.rollouts.certainty import (
    calibration,
    certain_run,
    course,
    entropy_slope,
    judged,
)
from isoflop.rollouts.corpus import Corpus, loop_free, zipf
from isoflop.rollouts.groups import chance_of_success, pass_at, unshared
from isoflop.rollouts.measured import Metric, Missing, Sample
from isoflop.rollouts.recall import recalled, recalled_exactly
from isoflop.rollouts.repetition import before_loop, loop_period, repeated, survival
from isoflop.rollouts.syntax import brackets, parses_as_json


def of(ids: list[int], **more: Any) -> Sample:
    return Sample(np.array(ids, dtype=np.int64), "", **more)


def written(text: str, prompt: str = "", stopped: bool = False) -> Sample:
    return Sample(np.zeros(0, np.int64), text, prompt, stopped=stopped)


@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_repeated_is_what_counting_says(window: int) -> None:
    ids = np.random.default_rng(0).integers(12, size=60)
    counted = [ids[i] in ids[max(0, i - window) : i] for i in range(len(ids))]
    assert repeated(of(ids.tolist()), window=window) == pytest.approx(np.mean(counted))
    assert repeated(of([1]), window=window) == Missing("fewer than 2 tokens")


def test_the_period_of_a_loop() -> None:
    assert loop_period(of([9, 1, 2, 1, 2, 1, 2])) == 2
    assert loop_period(of([5, 5, 5, 5])) == 1
    assert loop_period(of([1, 2, 3])) == Missing("no loop")


def test_survival_is_kaplan_and_meiers() -> None:
    """By hand: of 5, one loops at 2; one ends at 3; of the 3 left, one loops at 4."""
    onsets = np.array([2, np.inf, 4, np.inf, np.inf])
    lengths = np.array([10, 3, 10, 10, 10])
    times, shares = survival(onsets, lengths)
    assert times.tolist() == [0, 2, 4]
    assert shares == pytest.approx([1, 4 / 5, 4 / 5 * 2 / 3])
    assert before_loop(onsets, lengths, 10) == pytest.approx(2 + 2 * 0.8 + 6 * 0.8 * 2 / 3)
    assert [part.tolist() for part in survival([], [])] == [[0.0], [1.0]]


def test_loops_shorten_the_time_before_them() -> None:
    never = [np.arange(20)] * 4
    assert loop_free(Corpus.of(never)) == 20
    assert loop_free(Corpus.of([*never[:2], *[np.zeros(20, np.int64)] * 2])) == 10
    assert loop_free(Corpus.of([])) == Missing("no tokens")


def test_zipf_finds_the_exponent_it_was_drawn_with() -> None:
    ranks = np.arange(1, 3001)
    for exponent in (0.8, 1.2):
        p = ranks**-exponent / (ranks**-exponent).sum()
        drawn = np.random.default_rng(0).choice(3000, size=(64, 256), p=p)
        whole = Corpus.of(list(drawn), tokens=64 * 256)
        found = zipf(whole)
        assert isinstance(found, float) and found == pytest.approx(exponent, abs=0.15)
    assert zipf(Corpus.of([np.arange(2000)])) == Missing("fewer than 3 tokens that occur twice")


def test_certainty() -> None:
    falling = np.linspace(2, 1, 11).astype(np.float32)
    assert entropy_slope(of([0] * 11, entropies=falling)) == pytest.approx(-10, rel=1e-5)
    assert entropy_slope(of([0], entropies=falling[:1])) == Missing("fewer than 8 tokens")
    logprobs = np.array([-1, -0.001, -0.001, -3, -0.001], np.float32)
    sample = of([0] * 5, logprobs=logprobs, entropies=np.full(5, 0.5, np.float32), judged=logprobs)
    assert certain_run(sample) == 2
    assert calibration(sample) == pytest.approx(4.003 / 5 - 0.5)
    assert judged(sample) == pytest.approx(4.003 / 5)
    assert judged(of([1])) == Missing("no reference model")
    assert calibration(of([1])) == Missing("no log probabilities")


def test_the_course_over_positions_is_of_those_that_get_there() -> None:
    rows = [np.array([1.0, 2.0, 3.0]), np.array([3.0]), np.array([np.nan, 4.0])]
    assert course(rows) == pytest.approx([2.0, 3.0, 3.0])
    assert len(course([])) == 0


@pytest.mark.parametrize(
    ("prompt", "text", "stopped", "expected"),
    [
        ('{"a": ', "1}", False, 1.0),
        ('{"a": ', "1, ", False, 1.0),  # cut short is not wrong
        ('{"a": ', "1 1}", False, 1 / 2),
        ('["', "never clos", False, 1.0),
        ("[1]", " x", False, 0.0),  # behind the value; white space does not count
        ("", "hello", False, Missing("neither an object nor an array")),
        ("[1]", "  ", False, Missing("no text")),
        ("[" * 50_000, "[" * 10, False, Missing("nested too deeply for the parser")),
    ],
)
def test_json(prompt: str, text: str, stopped: bool, expected: float | Missing) -> None:
    found = parses_as_json(written(text, prompt, stopped))
    assert found == expected


@pytest.mark.parametrize(
    ("prompt", "text", "stopped", "expected"),
    [
        ("", "f(x)[0]", False, 1.0),
        ("f(", "x)", False, 1.0),
        ("", "f(x]", False, 1 / 2),
        ("", "((", False, 1.0),
        ("", "((", True, 0.0),
        ("", "no", False, Missing("no brackets")),
    ],
)
def test_brackets(prompt: str, text: str, stopped: bool, expected: float | Missing) -> None:
    assert brackets(written(text, prompt, stopped)) == expected


def test_recall_stops_at_the_first_difference() -> None:
    truth = np.array([1, 2, 3, 4])
    for ids, share in (([1, 2, 3, 4], 1.0), ([1, 2, 9, 4], 0.5), ([9], 0.0), ([1, 2], 0.5)):
        assert recalled(of(ids, truth=truth)) == share
        assert recalled_exactly(of(ids, truth=truth)) == float(share == 1)
    assert isinstance(recalled_exactly(of([1])), Missing)
    assert recalled(of([1], truth=truth[:0])) == Missing("the text ends with the prompt")


def test_what_no_other_seed_wrote() -> None:
    same, other = of([1, 2, 3]), of([1, 2, 4])
    assert unshared([same, same]) == [0.0, 0.0]
    assert unshared([same, other]) == [0.5, 0.5]
    assert unshared([same]) == [Missing("the only rollout of its prompt")]
    assert unshared([same, of([1])]) == [1.0, Missing("fewer than 2 tokens")]
    scored = metrics.score([same, other, same], [0, 0, 1])["unshared"]
    assert scored == [0.5, 0.5, Missing("the only rollout of its prompt")]


def test_pass_at_k_is_the_mean_over_all_choices() -> None:
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c > n or k > n:
            continue
        flags = [True] * c + [False] * (n - c)
        tries = [any(choice) for choice in itertools.combinations(flags, k)]
        assert chance_of_success(n, c, k) == pytest.approx(np.mean(tries))
    with pytest.raises(ValueError, match="c is 3"):
        chance_of_success(2, 3, 1)


def test_pass_at_k_over_prompts() -> None:
    passed = [True, False, False, False, True, None]
    found = pass_at(2, passed, [0, 0, 1, 1, 2, 2])
    assert found.value == pytest.approx(0.5) and (found.prompts, found.missing) == (2, 1)
    assert found.low is not None and found.low <= 0.5 and found.rollouts == 5


def test_too_few_rollouts_are_named() -> None:
    found = metrics.summarise({name: [0.5] * 4 for name in metrics.VALUES}, [np.arange(9)] * 4,
                              [0, 0, 1, 1])  # fmt: skip
    assert metrics.too_few(found)["repetition"] == 617
    assert "length" not in metrics.too_few(found)


class Point:
    """As importlib.metadata gives them."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value, self._value = name, "package:metric", value

    def load(self) -> object:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


def plugged(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)


def vowels(sample: Sample) -> float:
    return sum(sample.text.count(vowel) for vowel in "aeiou") / len(sample.text)


def test_plugins_cannot_break_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Metric("vowels", "rollout", "band", "share", vowels, "of characters")
    plugged(monkeypatch, Point("vowels", metric))
    found = metrics.score([written("aab"), written("")], metrics=metrics.plugins())["vowels"]
    assert found == [pytest.approx(2 / 3), Missing("ZeroDivisionError: division by zero")]


@pytest.mark.parametrize(
    ("value", "message"),
    [(3, "must be an isoflop"), (METRICS[0], "new name"), (ImportError("gone"), "gone")],
)
def test_a_plugin_that_is_none_is_refused(
    value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugged(monkeypatch, Point("broken", value))
    with pytest.raises(ValueError, match=message):
        metrics.plugins()


def test_no_plugins_here(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch)
    assert metrics.plugins() == ()


def test_levels_and_directions_are_declared() -> None:
    levels: dict[str, NDArray[np.str_]] = {}
    for metric in METRICS:
        levels.setdefault(metric.level, np.array([metric.name]))
        assert metric.direction in ("up", "down", "band") and metric.least >= 0
    assert set(levels) == {"token", "rollout", "group", "corpus"}
