"""How near does writing come to the speed of a device's memory? Decode bandwidth utilisation.

To write one more token of every row, all weights that multiply are read once, and each row's keys
and values. Those bytes, over the time between two tokens, as a share of what the device's memory
could move. Timed is `rollouts.generate` as it is used, random numbers, log probabilities and
entropies included: N tokens against 1, so that reading the prompt and what comes around it cancel.

    eager      each kernel is launched by itself
    recorded   a step is one CUDA graph (`rollouts.steps`); on a CPU, only its fixed shapes
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from isoflop.benchmarks.device import Limits, limits, settled
from isoflop.benchmarks.utilisation import DEFAULT_SIZES, MODELS, SIZES, shaped
from isoflop.rollouts.generate import generate
from isoflop.rollouts.sampling import Sampling
from models import ZOO
from models.decoder import DecoderConfig
from models.interface import Model

BATCHES = {"cuda": (1, 32, 256), "cpu": (1, 4)}
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Load:
    """Rows of equally long prompts."""

    batch: int
    prompt: int
    new_tokens: int

    @staticmethod
    def of(batch: int, context: int) -> Load:
        """An eighth of the context is read and an eighth written."""
        return Load(batch=batch, prompt=context // 8, new_tokens=context // 8)

    @property
    def held(self) -> float:
        """Tokens that a row's cache holds, in the middle."""
        return self.prompt + self.new_tokens / 2


@dataclass(frozen=True, kw_only=True)
class Result:
    first: float  # seconds to the first token of all rows
    gap: float  # seconds between two tokens
    bytes: float  # that a step reads
    equal: bool  # the tokens are those of the eager way


def moved(config: DecoderConfig, load: Load, size: int) -> float:
    """Bytes that a step must read: weights, and the keys and values that are held."""
    cached = 2 * config.depth * config.key_value_heads * config.size * load.held * load.batch
    return size * (config.parameters().without_input_embedding + cached)


def measure(model: Model, load: Load, recorded: bool) -> Result:
    """Greedy, so that the two ways can be compared token by token."""
    config, weight = model.config, next(model.parameters())
    assert isinstance(config, DecoderConfig)
    device = str(weight.device)
    drawn = np.random.default_rng(0).integers(config.text_vocab, size=(load.batch, load.prompt))

    def write(new_tokens: int, recorded: bool) -> list[list[int]]:
        rows = generate(
            model, list(drawn), [[0]] * load.batch, Sampling(0.0, new_tokens, ()),
            batch=load.batch, recorded=recorded,
        )  # fmt: skip
        return [row.completion_ids.tolist() for row in rows]

    def timed(new_tokens: int) -> float:
        began = settled(device)
        write(new_tokens, recorded)
        return settled(device) - began

    equal = write(load.new_tokens, recorded) == write(load.new_tokens, recorded=False)
    firsts = [timed(2) for _ in range(ROUNDS)]  # of two, so that a record is made in both
    wholes = [timed(load.new_tokens) for _ in range(ROUNDS)]
    first, whole = statistics.median(firsts), statistics.median(wholes)
    return Result(
        first=first,
        gap=(whole - first) / (load.new_tokens - 2),
        bytes=moved(config, load, weight.element_size()),
        equal=equal,
    )


def show(names: Sequence[str] | None, sizes: Sequence[str] | None, device: str) -> int:
    """Print the table for the named decoders (default: gpt2 and llama) in the named sizes."""
    for option, given, known in (("model", names, ZOO), ("size", sizes, SIZES)):
        for name in given or ():
            if name not in known:
                raise ValueError(f"--{option} {name}: known are {', '.join(known)}")
    for name in names or ():
        if not issubclass(ZOO[name], DecoderConfig):
            raise ValueError(f"--model {name}: only decoders with keys and values are measured")
    found, kind = limits(device), device.split(":")[0]
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    print(found)
    print(f"greedy, weights and cache in {str(dtype).removeprefix('torch.')}")
    print(
        f"{'model':<10} {'size':<5} {'rows':>5} {'way':<9} {'first ms':>9} {'ms / token':>11} "
        f"{'tokens / s':>11} {'GB/s':>8} {'MBU':>7}  tokens"
    )
    for size in sizes or DEFAULT_SIZES[kind]:
        for name in names or MODELS:
            torch.manual_seed(0)
            model = shaped(ZOO[name], size).build().to(device, dtype).eval()
            for batch in BATCHES[kind]:
                _both(name, size, model, Load.of(batch, model.config.context), found)
    return 0


def _both(name: str, size: str, model: Model, load: Load, found: Limits) -> None:
    for way in ("eager", "recorded"):
        result = measure(model, load, recorded=way == "recorded")
        rate = result.bytes / result.gap
        print(
            f"{name:<10} {size:<5} {load.batch:5} {way:<9} {1e3 * result.first:9.1f} "
            f"{1e3 * result.gap:11.3f} {load.batch / result.gap:11,.0f} {rate / 1e9:8,.1f} "
            f"{rate / found.most_bytes:7.1%}  {'equal' if result.equal else 'other'}",
            flush=True,
        )
