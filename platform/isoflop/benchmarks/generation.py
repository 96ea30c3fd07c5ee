"""How fast is text written, beside the transformers library with the same weights?

One LLaMA of 4 layers and width 256, in float32 on one thread. Its weights are carried over into the
library's model, and greedy tokens must be equal. Three loads:

    single     one prompt of 32 tokens, 64 new ones
    batch      32 prompts of 32 tokens, 32 new ones
    rollouts   8 prompts of 128 tokens with 8 seeds each, at most 32 new tokens at temperature 1,
               of which rows stop early as they come to one of many stop ids

The two are run in turns, so that each ratio is a pair taken within seconds. CPU time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.exchange import save_model
from isoflop.rollouts.generate import generate
from isoflop.rollouts.sampling import Sampling
from isoflop.training.process import settle
from models import LlamaConfig
from models.llama import Llama

STOPS = 0.03  # share of the vocabulary that ends a row of the last load: about half are useful


@dataclass(frozen=True, kw_only=True)
class Load:
    name: str
    goal: float  # the ratio that is wanted
    prompts: int
    length: int
    seeds: int
    new_tokens: int
    temperature: float = 0.0

    def stops(self, vocab: int) -> tuple[int, ...]:
        return tuple(range(0, vocab, round(1 / STOPS))) if self.temperature else ()


LOADS = (
    Load(name="single", goal=1.5, prompts=1, length=32, seeds=1, new_tokens=64),
    Load(name="batch", goal=1.1, prompts=32, length=32, seeds=1, new_tokens=32),
    Load(name="rollouts", goal=2.0, prompts=8, length=128, seeds=8, new_tokens=32, temperature=1.0),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    load: Load
    rate: float  # tokens that count, per CPU second
    ratios: list[float]  # the library's CPU time over ours, pair by pair
    equal: bool  # the same greedy tokens


def models(vocab: int) -> tuple[Llama, Any]:
    """Ours and the library's, with the same random weights, sharp enough that no two logits tie.

    Raises ValueError where transformers is not installed.
    """
    torch.manual_seed(0)
    config = LlamaConfig(vocab=vocab, context=256, width=256, depth=4, heads=4, tied=True)
    ours = config.build().eval()
    with torch.no_grad():
        for weight in ours.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
    try:
        from transformers import LlamaForCausalLM
    except ImportError:
        raise ValueError("this benchmark compares with transformers: install it first") from None
    with tempfile.TemporaryDirectory() as folder:
        save_model(ours, Path(folder) / "model")
        theirs: Any = LlamaForCausalLM.from_pretrained(
            Path(folder) / "model", attn_implementation="sdpa"
        )
    return ours, theirs.eval()


def measure(load: Load, vocab: int, pairs: int, ours: Llama, theirs: Any) -> Result:
    """The load by both, in turns, `pairs` times after a first that warms up and compares."""
    prompts = np.random.default_rng(0).integers(vocab, size=(load.prompts, load.length))
    greedy = Sampling(0.0, min(load.new_tokens, 16), ())
    rows = generate(ours, list(prompts), [[0]] * load.prompts, greedy)
    expected = _library(theirs, prompts, 1, greedy)[:, load.length :]
    equal = bool(np.array_equal(np.stack([row.completion_ids for row in rows]), expected))
    sampling = Sampling(load.temperature, load.new_tokens, load.stops(vocab))
    times, count = [], 0
    for pair in range(pairs):
        seeds = [
            [pair * 10_000 + index * 100 + i for i in range(load.seeds)]
            for index in range(load.prompts)
        ]
        own, written = _timed(partial(generate, ours, list(prompts), seeds, sampling))
        other, _ = _timed(lambda: _library(theirs, prompts, load.seeds, sampling))
        count += sum(len(row.completion_ids) for row in written)
        times.append((own, other))
    rate = count / sum(own for own, _ in times)
    return Result(load=load, rate=rate, ratios=[b / a for a, b in times], equal=equal)


def _library(model: Any, prompts: np.ndarray, seeds: int, sampling: Sampling) -> np.ndarray:
    ids = torch.from_numpy(prompts).repeat_interleave(seeds, dim=0)
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        options = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
    stops = list(sampling.stop_ids) or None
    with torch.no_grad():
        found: np.ndarray = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.new_tokens,
            eos_token_id=stops,
            pad_token_id=0,
            **options,
        ).numpy()
    return found


def _timed(act: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    found = act()
    return time.process_time() - began, found


def show(vocab: int, pairs: int) -> int:
    """Print the table; 1 where greedy tokens differ from the library's."""
    if vocab < 2 or pairs < 2:
        raise ValueError(f"--vocab is {vocab} and --pairs {pairs}; both must be at least 2")
    settle(threads=1)
    ours, theirs = models(vocab)
    print(f"text written by LLaMA (4 x 256, vocabulary {vocab}), one thread, float32, CPU time")
    print(f"{'load':<10} {'tokens / CPU s':>15} {'transformers / ours':>20} {'goal':>6}  greedy")
    results = [measure(load, vocab, pairs, ours, theirs) for load in LOADS]
    for result in results:
        low, middle, high = statistics.quantiles(result.ratios, n=4)
        spread = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        said = "equal" if result.equal else "NOT EQUAL"
        print(
            f"{result.load.name:<10} {result.rate:15,.0f} {spread:>20} "
            f"{result.load.goal:6.1f}  {said}"
        )
    return 0 if all(result.equal for result in results) else 1
