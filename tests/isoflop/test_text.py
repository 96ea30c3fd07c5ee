"""Does a mixture weigh its sources by the rule that it names, and call them what people would?"""

from __future__ import annotations

import pytest

from isoflop.text import Part, Text

PARTS = (Part(source="a", weight=3.0), Part(source="b", weight=1.0))


@pytest.mark.parametrize(
    ("rule", "ratio"),
    [
        ({}, 3.0),
        ({"mixing": "equal"}, 1.0),
        ({"mixing": "proportional"}, 100.0),
        ({"mixing": "temperature"}, 100.0),
        ({"mixing": "temperature", "temperature": 2.0}, 10.0),
        ({"mixing": "temperature", "temperature": 1e9}, 1.0),
    ],
)
def test_the_rules(rule: dict[str, object], ratio: float) -> None:
    large, small = Text(mixture=PARTS, **rule).weights([10**12, 10**10])  # type: ignore[arg-type]
    assert large / small == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("python-stdlib", "python-stdlib"),
        ("/data/books.jsonl.gz", "books"),
        ("/data/my books/", "my-books"),
        ("hf:wikitext/raw:train", "raw-train"),
        ("/", "source"),
    ],
)
def test_labels(source: str, label: str) -> None:
    assert Part(source=source).label == label
    assert Part(source=source, name="given").label == "given"
