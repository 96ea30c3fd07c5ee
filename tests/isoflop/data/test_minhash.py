"""Are nearly equal documents found, and only those?"""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.data.minhash import FUNCTIONS, WORDS, bands, leaders, signature

WORD = np.array([f"word{k}" for k in range(5000)])


def text(seed: int, words: int = 400) -> list[str]:
    return [str(word) for word in np.random.default_rng(seed).choice(WORD, words)]


def changed(words: list[str], count: int, seed: int = 1) -> list[str]:
    """Some words, far apart, replaced by others."""
    made = list(words)
    for place in np.random.default_rng(seed).choice(len(words) // 10, count, replace=False):
        made[place * 10] = "another"
    return made


def jaccard(one: list[str], other: list[str]) -> float:
    sets = [{tuple(w[k : k + WORDS]) for k in range(len(w) - WORDS + 1)} for w in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def own(count: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(count)


@pytest.mark.parametrize("count", [0, 3, 8, 20, 40])
def test_equal_minima_estimate_the_similarity(count: int) -> None:
    errors = []
    for seed in range(8):
        one = text(seed)
        other = changed(one, count, seed)
        estimate = (signature(" ".join(one)) == signature("\n".join(other))).mean()
        errors.append(estimate - jaccard(one, other))
    # The standard error of one estimate is sqrt(J (1 - J) / K) <= 0.045; of the mean of 8, 0.016.
    assert abs(np.mean(errors)) < 4 * 0.5 / np.sqrt(8 * FUNCTIONS)


def test_short_blank_and_long_texts_have_signatures() -> None:
    assert (signature("two words") == signature(" two\n\twords ")).all()
    assert (signature("two words") != signature("words two")).mean() > 0.9
    assert (signature("  ") == signature("\n")).all()
    long = " ".join(text(3, 300_000))  # more than is looked at in one go
    assert (signature(long) == signature(long + " and the end")).mean() > 0.99
    assert (signature("日本語の文") != signature("日本語の本")).mean() > 0.9


def test_groups_follow_their_first_document() -> None:
    base = [text(seed) for seed in range(30)]
    near = [changed(base[k], 2, seed=k) for k in range(0, 30, 3)]  # similarity about 0.95
    far = [changed(base[k], 30, seed=k) for k in range(1, 30, 3)]  # about 0.45
    every = [signature(" ".join(words)) for words in base + near + far]
    blocks = [np.array(every[:13]), np.empty((0, FUNCTIONS), np.uint32), np.array(every[13:])]
    found = leaders(blocks, own(len(every)), 0.8)
    expected = own(len(every))
    expected[30:40] = range(0, 30, 3)
    assert found.tolist() == expected.tolist()


def test_documents_that_follow_an_equal_one_follow_its_leader() -> None:
    words = text(0)
    texts = [words, changed(words, 1), changed(words, 1), text(5)]
    first = np.array([0, 1, 1, 3])  # the third is equal to the second
    found = leaders([np.array([signature(" ".join(w)) for w in texts])], first, 0.8)
    assert found.tolist() == [0, 0, 0, 3]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_what_is_well_above(threshold: float) -> None:
    count, rows = bands(threshold)
    assert count * rows <= FUNCTIONS
    assert 1 - (1 - min(1.0, threshold + 0.05) ** rows) ** count >= 0.99


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1, float("nan")])
def test_other_similarities_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"near_duplicates is .* above 0 and at most 1"):
        bands(threshold)
