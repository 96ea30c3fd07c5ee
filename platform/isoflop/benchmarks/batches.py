"""How fast do token files become batches, in each of the ways to cut rows, against what peers do?

Tokens per CPU second of one thread, until a batch is what a model reads and must predict. All take
turns within a round, forwards and backwards, so each ratio is of times within seconds. The peers:

    one by one   each window sliced and cast from a file that is mapped anew, inputs and targets
                 stacked apart: the idiom of nanoGPT. It draws with replacement and knows no epochs
    DataLoader   torch's, shuffled, over rows of Hugging Face's `datasets` that lie packed on disk

Documents are as long as text's are, by a log-normal of mean 700 tokens. What matters is measured:
the first batch, which has the order of an epoch and the packing to make, is not.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.data.frames import FRAMES
from isoflop.data.loader import Batches
from isoflop.data.shards import TokenFile, write
from isoflop.objectives.autoregressive import NextToken
from isoflop.training.process import settle

ONE_BY_ONE, LOADER = "one by one (nanoGPT)", "DataLoader over datasets"
GOALS = {ONE_BY_ONE: 15.0, LOADER: 5.0}
MIXTURE = "stream, 3 sources"
VOCABULARY = 4096
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is measured: batches of B rows of T tokens, from so many tokens of text."""

    rows: int = 32
    context: int = 256
    tokens: int = 4_000_000
    batches: int = 100  # of a turn


def show(rounds: int = 7, shape: Shape | None = None) -> int:
    """Print the table; 1 where `stream` misses a goal."""
    if rounds < 2:
        raise ValueError(f"--rounds {rounds}: quartiles need at least 2")
    shape = shape or Shape()
    settle(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(shape, rounds, Path(folder))
    print(f"batches of {shape.rows} x {shape.context}, M tokens per CPU second and ratios to peers")
    for name, own in seconds.items():
        speed = shape.batches * shape.rows * shape.context / statistics.median(own) / 1e6
        ratios = "".join(
            f"   {_ratio(peer, own)} x {key}" for key, peer in _peers(seconds) if name not in GOALS
        )
        print(f"  {name:24} {speed:8.1f}{ratios}")
    if LOADER not in seconds:
        print(f"  {LOADER}: datasets is not installed, so there is nothing to compare with")
    met = [
        statistics.median(np.divide(peer, seconds["stream"])) >= GOALS[key]
        for key, peer in _peers(seconds)
    ]
    print("  goals of stream: " + ", ".join(f"{goal:g} x {key}" for key, goal in GOALS.items()))
    return 0 if all(met) else 1


def measure(shape: Shape, rounds: int, folder: Path) -> dict[str, list[float]]:
    """CPU seconds of each way in each round, for `shape.batches` batches."""
    file = _text(shape, folder)
    ways: dict[str, Work] = {name: _loader(file, shape, name) for name in FRAMES}
    ways[MIXTURE] = _loader(dict.fromkeys("abc", file), shape, "stream", weights=(0.5, 0.3, 0.2))
    ways |= {ONE_BY_ONE: lambda: _one_by_one(file, shape), **_data_loader(file, shape, folder)}
    for work in ways.values():
        work()  # imports, orders, packing
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began = time.process_time()
            for _ in range(shape.batches):
                ways[name]()
            seconds[name].append(time.process_time() - began)
    return seconds


def _peers(seconds: dict[str, list[float]]) -> Iterator[tuple[str, list[float]]]:
    return ((name, seconds[name]) for name in GOALS if name in seconds)


def _ratio(peer: list[float], own: list[float]) -> str:
    low, middle, high = statistics.quantiles(np.divide(peer, own).tolist(), n=4)
    return f"{middle:5.1f} ({low:.1f}-{high:.1f})"


def _text(shape: Shape, folder: Path) -> TokenFile:
    draws = np.random.default_rng(0)
    ids = draws.integers(VOCABULARY, size=shape.tokens).astype(np.uint16)
    ends = np.cumsum(draws.lognormal(6.0, 1.05, shape.tokens // 300).astype(np.int64) + 2)
    documents = np.split(ids, ends[ends < shape.tokens])
    return write(folder, "train", documents, np.uint16)


def _loader(files: Any, shape: Shape, framing: str, weights: tuple[float, ...] = ()) -> Work:
    batches = Batches(
        files, context=shape.context, rows=shape.rows, seed=0, framing=framing, weights=weights
    )
    steps = iter(range(10**9))
    objective = NextToken()
    return lambda: objective.batch(batches.batch(next(steps)))


def _one_by_one(file: TokenFile, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    mapped = np.memmap(file.folder / "train.tokens", dtype=np.uint16, mode="r")
    starts = torch.randint(len(mapped) - shape.context, (shape.rows,))
    inputs, targets = (
        torch.stack(
            [
                torch.from_numpy(mapped[k + shift : k + shift + shape.context].astype(np.int64))
                for k in starts
            ]
        )
        for shift in (0, 1)
    )
    return inputs, targets


def _data_loader(file: TokenFile, shape: Shape, folder: Path) -> dict[str, Work]:
    """Nothing where `datasets` is not installed."""
    try:
        import datasets
    except ImportError:
        return {}
    from torch.utils.data import DataLoader

    width = shape.context + 1
    rows = file.ids[: len(file) // width * width].reshape(-1, width).astype(np.int64)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"ids": rows}).save_to_disk(folder / "packed")
    packed: Any = datasets.load_from_disk(folder / "packed").with_format("torch")
    loader: Any = DataLoader(packed, batch_size=shape.rows, shuffle=True, drop_last=True)

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    stream = endless()

    def one() -> tuple[torch.Tensor, torch.Tensor]:
        ids = next(stream)["ids"]
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return {LOADER: one}
