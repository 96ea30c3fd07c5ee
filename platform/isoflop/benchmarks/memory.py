"""Does preparing a text stay in as little memory when the text grows?

`isoflop data prepare` runs as a user would start it, on a source that is made here: documents of
the standard library, each with a line of words that no other has. So none is a duplicate, and the
different words grow with the text, as they do on the web: they are what training a vocabulary holds
in memory. They lie compressed, as members of .gz files that are written from parts compressed once,
so that a source of 10 GB takes about 3 GB of disk and little time to make. Memory is the
proportional set size of all processes of the command (shared pages count once), looked at five
times a second.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from isoflop.data import sources
from isoflop.data.hashing import mix

LIMIT = 500  # MB
PROCESSES = 2  # each takes its own, so machines of any number of cores are asked the same
SMALL = 8  # the source it is compared with is so many times smaller
FILE = 64 * 10**6  # bytes of text in a file
NEW = 500  # bytes of text that bring a new word: English does after some megabytes, and fewer later

_POWERS = np.uint64(26) ** np.arange(9, dtype=np.uint64)  # of the nine letters of a new word


@dataclass(frozen=True)
class Use:
    """What one command took."""

    megabytes: int  # of text
    documents: int
    peak: float  # MB
    seconds: float


def show(size: int, tokenizer: str) -> int:
    """Print the peak at a fraction of `size` MB of text and at all of it; 1 above the limit."""
    if not Path("/proc/self/smaps_rollup").exists():
        print("\nmemory: this system does not tell it")
        return 0
    command = f"isoflop data prepare --tokenizer {tokenizer} --processes {PROCESSES}"
    print(f"\nmemory of `{command}`, all processes")
    uses = [measure(max(1, size // SMALL), tokenizer), measure(size, tokenizer)]
    for use in uses:
        print(
            f"  {use.megabytes:6,} MB of text, {use.documents:9,} documents: "
            f"peak {use.peak:4.0f} MB, {use.megabytes / use.seconds:.1f} MB/s"
        )
    peak = uses[-1].peak
    print(
        f"  limit {LIMIT} MB, text {size / LIMIT:.1f} times that: "
        f"{'met' if peak < LIMIT else 'MISSED'}"
    )
    return int(peak >= LIMIT)


def measure(size: int, tokenizer: str) -> Use:
    """Make a source of `size` MB, prepare it, and watch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"
        source.mkdir()
        documents = make(source, size * 10**6)
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "isoflop.cli", "data", "prepare", str(source), "--out",
             str(folder / "out"), "--tokenizer", tokenizer, "--processes", str(PROCESSES)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, used(process.pid))
            time.sleep(0.2)
        if process.returncode:
            raise ValueError(f"preparing ended with status {process.returncode}")
        return Use(size, documents, peak, time.monotonic() - began)


def make(folder: Path, size: int) -> int:
    """Fill a folder with about `size` bytes of text as .jsonl.gz; how many documents they are."""
    texts = [document.text for document in sources.documents(sources.STDLIB)]
    bodies = [json.dumps(text)[1:].encode() + b"}\n" for text in texts]
    packed = [gzip.compress(body, 6) for body in bodies]
    made = count = 0
    order = cycle(range(len(texts)))
    for number in range(max(1, round(size / FILE))):
        with (folder / f"{number:04d}.jsonl.gz").open("wb") as file:
            while made < min(size, (number + 1) * FILE):
                place = next(order)
                head = f'{{"text": "# {" ".join(_words(count, len(texts[place]) // NEW))}\\n'
                file.write(gzip.compress(head.encode(), 1) + packed[place])
                made += len(texts[place])
                count += 1
    return count


def _words(document: int, count: int) -> list[str]:
    """At least one word that stands in no other document, and `count` in all."""
    start = np.uint64(document << 20)
    draws = mix(np.arange(max(1, count), dtype=np.uint64) + start)
    letters = (draws[:, None] // _POWERS % 26 + ord("a")).astype(np.uint8)
    return [row.tobytes().decode() for row in letters]


def used(pid: int) -> float:
    """MB that a process and all below it hold in memory (proportional set size)."""
    total = 0.0
    for each in _family(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # ended since
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3
    return total


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            found += _family(int(child))
    return found
