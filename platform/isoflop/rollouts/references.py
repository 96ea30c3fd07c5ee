"""What do the metrics say of text that people wrote, cut to the rollouts' length?

Measured once per prepared text and length, and kept beside the text: every run of a study draws its
bands from the same values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.catalogue import METRICS, longest_copy, novel
from isoflop.rollouts.measured import Sample, number
from isoflop.rollouts.metrics import cut, reasoned, reference
from isoflop.rollouts.novelty import ORDERS, Seen
from isoflop.rollouts.prompts import Held, Tokenizer, spread
from isoflop.rollouts.rows import VERSION
from isoflop.rollouts.statistics import Aggregate, mean

WINDOWS = 512  # of held-out text, at most


def windows(files: Sequence[Held], length: int, count: int = WINDOWS) -> list[NDArray[np.int64]]:
    """Windows of `length` tokens, evenly spaced over all files; none overlap within a file."""
    found = []
    for file in files:
        room = len(file.ids) // length
        share = max(1, count // len(files))
        starts = spread(room, share).tolist()
        found += [np.asarray(file.ids[i * length : (i + 1) * length], np.int64) for i in starts]
    return found


def measure(files: Sequence[Held], tokenizer: Tokenizer, length: int) -> dict[str, Aggregate]:
    """Every metric that text has without a model, of held-out windows. One within which a document
    ends is cut there: so often, and there, a model should end its text."""
    held = windows(files, length)
    return reference(held, lambda ids: tokenizer.decode(ids.tolist()), tokenizer.end_of_text)


def references(
    folder: Path, files: Sequence[Held], tokenizer: Tokenizer, length: int
) -> dict[str, Aggregate]:
    """The same from `folder`, where it was measured before; else measured and kept there.

    A folder that cannot be written to (somebody else's prepared text) costs the measurement only.
    """
    path = folder / f"rollouts-{VERSION}-{length}.json"
    names = [metric.name for metric in METRICS]
    try:
        values = json.loads(path.read_text())
        found = {name: Aggregate(**values[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        found = measure(files, tokenizer, length)
        _keep(path, found)
    return found


def read(folder: Path) -> dict[str, dict[str, Aggregate]]:
    """What a run's `references.json` says, by the set's name; empty where there is none (yet).

    Older ones, which go by the rollouts' length, are read as such: see `of_set`.
    """
    try:
        values = json.loads((folder / "references.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {
        name: {metric: Aggregate(**item) for metric, item in found.items()}
        for name, found in values.items()
    }


def of_set(
    known: Mapping[str, Mapping[str, Aggregate]], name: str, length: int
) -> Mapping[str, Aggregate]:
    """The references of a set of prompts, whose rollouts have so many tokens."""
    return known.get(name, known.get(str(length), {}))


def write(folder: Path, found: Mapping[str, Mapping[str, Aggregate]]) -> None:
    """`references.json`, all or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        name: {metric: asdict(item) for metric, item in own.items()} for name, own in found.items()
    }
    partial = folder / f".references.json.{os.getpid()}"
    partial.write_text(json.dumps(plain))
    partial.replace(folder / "references.json")


def _keep(path: Path, found: dict[str, Aggregate]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps({name: asdict(item) for name, item in found.items()}))
        partial.replace(path)
    except OSError:
        return


def novelty(
    seen: Seen, files: Sequence[Held], length: int, end: int | None = None
) -> dict[str, Aggregate]:
    """What of held-out text stands in what a run has read by now: changes as it reads on."""
    held = [cut(ids, end)[0] for ids in windows(files, length)]
    made = [
        Sample(ids, "", copies=copies) for ids, copies in zip(held, seen.copies(held), strict=True)
    ]
    shares = {n: [novel(sample, order=n) for sample in made] for n in ORDERS}
    found = {
        f"novel_{n}": reasoned(
            mean([number(value) for value in own], range(len(made)), share=True), own
        )
        for n, own in shares.items()
    }
    lengths = [number(longest_copy(sample)) for sample in made]
    return {**found, "longest_copy": mean(lengths, range(len(made)))}


def band(found: Aggregate, reference: Aggregate) -> str:
    """Where a value stands to the human one: "below", "above", "within", or "unknown".

    Within: the two intervals meet.
    """
    if found.low is None or found.high is None or reference.low is None or reference.high is None:
        return "unknown"
    if found.high < reference.low:
        return "below"
    return "above" if found.low > reference.high else "within"
