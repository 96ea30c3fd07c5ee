"""What does it cost to measure rollouts, and to know what of them a run had read?

CPU seconds of one thread for 1,000 rollouts of 128 tokens: all built-in metrics with their values
for the whole set and their intervals; the index of the training text per million tokens; asking it.
The text is the standard library's own source, so that repetition, syntax and copies are what they
are in text, not in noise; the rollouts are windows of it with a tenth of the tokens changed.
"""

from __future__ import annotations

import statistics
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from isoflop.rollouts.measured import number
from isoflop.rollouts.metrics import VALUES, Sample, score, summarise
from isoflop.rollouts.novelty import Seen

GOALS = {"metrics": 1.0, "index": 2.0, "query": 0.2}
WORDS = {
    "metrics": "all metrics of 1,000 rollouts",
    "index": "index of 1 M training tokens",
    "query": "novelty of 1,000 rollouts",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is measured."""

    rollouts: int = 1000
    tokens: int = 128  # of each
    seeds: int = 8  # rollouts of a prompt
    read: int = 1_000_000  # training tokens, in rows of 256


def show(rounds: int = 5, shape: Shape | None = None) -> int:
    """Print the table; 1 where a goal is missed."""
    if rounds < 1:
        raise ValueError(f"--rounds {rounds}: at least 1 is needed")
    shape = shape or Shape()
    seconds = measure(shape, rounds)
    scale = {"metrics": 1000 / shape.rollouts, "index": 1e6 / shape.read}
    scale["query"] = scale["metrics"]
    print(f"rollouts of {shape.tokens} tokens, CPU seconds (median of {rounds}, range)")
    met = []
    for name, own in seconds.items():
        scaled = [value * scale[name] for value in own]
        middle = statistics.median(scaled)
        met.append(middle <= GOALS[name])
        spread = f"{min(scaled):.2f}-{max(scaled):.2f}"
        print(f"  {WORDS[name]:34} {middle:6.2f} ({spread})   goal {GOALS[name]:g}")
    return 0 if all(met) else 1


def measure(shape: Shape, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each part in each round."""
    samples, owners, rows = _made(shape)
    texts = [sample.ids for sample in samples]
    seconds: dict[str, list[float]] = {name: [] for name in WORDS}
    for _ in range(rounds):
        seen = Seen()
        seconds["metrics"].append(_clocked(partial(_scored, samples, owners)))
        seconds["index"].append(_clocked(partial(seen.add, rows)))
        seconds["query"].append(_clocked(partial(seen.copies, texts)))
    return seconds


def _clocked(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _scored(samples: list[Sample], owners: NDArray[np.int64]) -> object:
    values = score(samples, owners)
    plain = {name: [number(value) for value in values[name]] for name in VALUES}
    return summarise(plain, [sample.ids for sample in samples], owners)


def _made(shape: Shape) -> tuple[list[Sample], NDArray[np.int64], NDArray[np.int64]]:
    """Rollouts, their prompts, and rows of 257 training tokens."""
    words, ids = _text(shape.read + shape.tokens)
    draws = np.random.default_rng(0)
    entropies = draws.gamma(2, 1.5, size=(shape.rollouts, shape.tokens)).astype(np.float32)
    samples = []
    for row in range(shape.rollouts):
        start = int(draws.integers(len(ids) - shape.tokens))
        own = ids[start : start + shape.tokens].copy()
        changed = draws.random(shape.tokens) < 0.1
        own[changed] = draws.choice(ids, int(changed.sum()))
        text = "".join(words[token] for token in own.tolist())
        samples.append(
            Sample(own, text, "", -draws.exponential(entropies[row]), entropies[row], False, own)
        )
    rows = ids[: len(ids) // 257 * 257].reshape(-1, 257)
    return samples, np.arange(shape.rollouts) // shape.seeds, rows


def _text(tokens: int) -> tuple[list[str], NDArray[np.int64]]:
    """So many tokens of source (words, spaces and marks), and what each id stands for."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found += regex.findall(r"\s*\w+|\s*[^\w\s]|\s+", path.read_text(errors="replace"))
        if len(found) >= tokens:
            break
    found = (found * (1 + tokens // len(found)))[:tokens]
    known: dict[str, Any] = {}
    ids = np.array([known.setdefault(word, len(known)) for word in found], np.int64)
    return list(known), ids
