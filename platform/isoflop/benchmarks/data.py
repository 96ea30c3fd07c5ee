"""How fast does text become shards and batches, against what peers need, and in how much memory?

Each figure is a ratio of CPU seconds taken in turns within one run, on one thread; the median and
the quartiles over the rounds are shown. Text is the standard library's own source.

    encode   prepare (read, check, encode, write, join) against tiktoken alone, and against
             Hugging Face's tokenizers with the same vocabulary
    train    a vocabulary of 4,096 against rustbpe, where it is installed
    batches  see `benchmarks.batches`
    memory   see `benchmarks.memory`
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.benchmarks import batches, memory
from isoflop.data import bpe, sources
from isoflop.data.documents import Damage
from isoflop.data.encode import Assigned, Encode, encode
from isoflop.data.scan import Scan, Unit, records, scan, units
from isoflop.data.shards import Origin
from isoflop.data.split import TRAIN
from isoflop.data.tokenizers import Tokenizer, save

VOCABULARY = 4096
BYTES = 16_000_000  # of text encoded in a round, at most: what a process starts with counts less
Work = Callable[[], object]


@dataclass(frozen=True)
class Rate:
    """What one way does in a CPU second, and ours over it, round by round."""

    name: str
    per_second: float
    ratios: tuple[float, ...] = ()

    def line(self, unit: str, goal: float | None) -> str:
        shown = f"  {self.name:44} {self.per_second:9.2f} {unit}"
        if self.ratios:
            low, middle, high = statistics.quantiles(self.ratios, n=4)
            shown += f"   ours / this {middle:6.2f} ({low:.2f}-{high:.2f})"
            if goal is not None:
                shown += f"   goal {goal:g}: {'met' if middle >= goal else 'MISSED'}"
        return shown


def show(size: int, tokenizer: str, rounds: int) -> int:
    """Print all four parts; 1 where a goal is missed."""
    if size < 1 or rounds < 3:
        raise ValueError(f"--size {size} --rounds {rounds}: at least 1 MB and 3 rounds")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        missed = _show_text(Path(folder), rounds)
    print()
    missed += batches.show(rounds)
    return int(missed + memory.show(size, tokenizer) > 0)


def compared(ways: dict[str, Work], amount: float, rounds: int) -> list[Rate]:
    """The first way against the others: all in turn, in the other order every second round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()  # imports, caches
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began = time.process_time()
            ways[name]()
            seconds[name].append(time.process_time() - began)
    own, *others = ways
    return [
        Rate(own, amount / statistics.median(seconds[own])),
        *(
            Rate(
                name,
                amount / statistics.median(seconds[name]),
                tuple(a / b for a, b in zip(seconds[name], seconds[own], strict=True)),
            )
            for name in others
        ),
    ]


def _show_text(folder: Path, rounds: int) -> int:
    parts, texts = _text()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    peer = _peer(texts)
    tokenizer = bpe.train(texts, VOCABULARY)
    print(f"encode {megabytes:.1f} MB, {tokenizer.vocab_size} ids, one thread")
    found_units = units(parts, ready=False)
    save(tokenizer, folder)
    found = compared(
        {
            "text to shards (read twice, checked, written)": lambda: _prepare(
                found_units, tokenizer, folder
            ),
            "tiktoken, encode_ordinary": lambda: [
                tokenizer.encoding.encode_ordinary(text) for text in texts
            ],
            "tiktoken, encode_to_numpy": lambda: [
                tokenizer.encoding.encode_to_numpy(text, disallowed_special=()) for text in texts
            ],
            "tokenizers, encode_batch_fast": lambda: peer.encode_batch_fast(
                texts, add_special_tokens=False
            ),
        },
        megabytes,
        rounds,
    )
    missed = _print(found, "MB/s", {"tiktoken, encode_ordinary": 0.85, "tokenizers": 3.0})
    print(f"\ntrain a vocabulary of {VOCABULARY} on {megabytes:.1f} MB")
    ways: dict[str, Work] = {"isoflop": lambda: bpe.train(texts, VOCABULARY)}
    return missed + _print(
        compared({**ways, **_rustbpe(texts)}, megabytes, rounds), "MB/s", {"rust": 0.9}
    )


def _text() -> tuple[list[Any], list[str]]:
    """Parts of the standard library until they make BYTES, and their texts."""
    parts, texts, size = [], [], 0
    for part in sources.open(sources.STDLIB).parts():
        found = [document.text for document in part.documents(Damage())]
        parts.append(part)
        texts += found
        size += sum(map(len, found))
        if size >= BYTES:
            break
    return parts, texts


def _prepare(found: list[Unit], tokenizer: Tokenizer, work: Path) -> None:
    """What `prepare` does of each unit; `work` holds the tokenizer, which is made once a text."""
    for note in work.glob("[0-9]*.json"):
        note.unlink()  # or the units of the last round would be taken as they are
    origin = Origin("", tokenizer.hash)
    for unit in found:
        scan(Scan(unit, work, signatures=False))
        (work / f"{unit.number:06d}.json").unlink()  # or it would count as encoded
        sides = bytes([TRAIN]) * len(records(work, unit.number))
        assigned = Assigned(source="benchmark", unit=unit, scans=work, sides=sides, tail=0.0)
        encode(Encode(assigned=assigned, folder=work, origin=origin))


def _peer(texts: list[str]) -> Any:
    """Hugging Face's own encoder of such a vocabulary, trained by itself."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    peer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(bpe.PATTERN), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    peer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 1, show_progress=False, initial_alphabet=alphabet
        ),
    )
    return peer


def _rustbpe(texts: list[str]) -> dict[str, Work]:
    try:
        import rustbpe
    except ImportError:
        print("  rustbpe is not installed: nothing to compare with")
        return {}

    def train() -> None:
        rustbpe.Tokenizer().train_from_iterator(iter(texts), VOCABULARY - 1, pattern=bpe.PATTERN)

    return {"rustbpe": train}


def _print(found: list[Rate], unit: str, goals: dict[str, float]) -> int:
    """The lines; how many goals are missed."""
    missed = 0
    for rate in found:
        goal = next((goals[start] for start in goals if rate.name.startswith(start)), None)
        print(rate.line(unit, goal))
        missed += bool(goal and rate.ratios and statistics.median(rate.ratios) < goal)
    return missed
