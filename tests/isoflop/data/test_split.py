"""Does the split keep its promises, whatever the documents?"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.split import (
    CUT,
    DROPPED,
    RECORD,
    TRAIN,
    VALIDATION,
    Documents,
    cut,
    first_of_equals,
    split,
)


def documents(texts: list[bytes]) -> Documents:
    records = np.empty(len(texts), dtype=RECORD)
    for place, text in enumerate(texts):
        records[place] = (np.frombuffer(hashlib.sha256(text).digest(), np.uint8), len(text))
    half = len(texts) // 2
    return Documents.of([records[:half], records[half:]])


def by_hand(texts: list[bytes], share: float) -> tuple[set[bytes], bytes | None]:
    """The same rule over a dictionary: what is held out whole, and what is cut."""
    sizes = {hashlib.sha256(text).digest(): len(text) for text in texts}
    wanted, held, chosen = share * sum(sizes.values()), 0, set()
    for digest in sorted(sizes):
        if held + sizes[digest] / 2 <= wanted:
            chosen.add(digest)
            held += sizes[digest]
    if len(chosen) == len(sizes):
        held -= sizes[max(chosen)]
        chosen.remove(max(chosen))
    if 2 * held >= wanted:
        return chosen, None
    return chosen, max(sizes.keys() - chosen, key=lambda digest: (sizes[digest], digest))


Texts = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=40)


@given(Texts, st.floats(0.01, 0.99))
def test_as_by_hand(texts: list[bytes], share: float) -> None:
    found = documents(texts)
    first = first_of_equals(found)
    assert first.tolist() == [texts.index(text) for text in texts]
    unique = np.where(first == np.arange(len(texts)), first, -1)
    sides = split(found, share, unique).sides
    held, halved = by_hand(texts, share)
    for place, text in enumerate(texts):
        digest = hashlib.sha256(text).digest()
        if first[place] != place:
            assert sides[place] == DROPPED
        elif digest == halved:
            assert sides[place] == CUT
        else:
            assert sides[place] == (VALIDATION if digest in held else TRAIN)


@given(Texts, st.floats(0.01, 0.99))
def test_equal_documents_that_are_kept_share_a_side(texts: list[bytes], share: float) -> None:
    found = documents(texts)
    made = split(found, share, first_of_equals(found))
    assert DROPPED not in made.sides
    sides = {text: set() for text in texts}
    for text, side in zip(texts, made.sides.tolist(), strict=True):
        sides[text].add(side)
    assert all(len(found) == 1 for found in sides.values())


@given(st.text(alphabet="ab \n", min_size=1, max_size=60), st.floats(0.05, 0.9))
def test_a_cut_loses_nothing(text: str, tail: float) -> None:
    try:
        head, rest = cut(text, tail)
    except ValueError as error:
        assert "too small to hold out" in str(error)
        return
    assert head + rest == text
    assert head.strip() and rest.strip()


def test_a_larger_text_is_quick() -> None:
    """The loop ends once the share is reached: no pass over a million documents in Python."""
    random = np.random.default_rng(0)
    records = np.empty(200_000, dtype=RECORD)
    records["digest"] = random.integers(0, 256, (len(records), 32), dtype=np.uint8)
    records["size"] = random.integers(1, 10_000, len(records))
    found = Documents.of([records])
    made = split(found, 0.1, first_of_equals(found))
    held = records["size"][made.sides == VALIDATION].sum()
    assert held / records["size"].sum() == pytest.approx(0.1, rel=1e-3)
