"""How much of a device does training use? Model FLOPs utilisation (Chowdhery et al. 2022, appendix
B): the FLOPs that the model's formula counts, per second, as a share of what the device could do.

What is timed is the step of the training loop (`training.step.update`: forward, backward, clipping,
AdamW) on one batch, in the precision that the loop takes on the device: bfloat16 products with
float32 weights on a GPU. FLOPs are exact, three times the forward pass, with the whole T x T square
of attention although a causal kernel skips half of it.

    compiling   layers   each layer by itself, and the loss: layers alike are compiled once
                whole    the model with its loss as one graph: slower to compile
                none     as it stands
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoflop import objectives, targets
from isoflop.benchmarks.device import Limits, check, limits, settled
from isoflop.data.rows import sample
from isoflop.objectives import Batch
from isoflop.objectives.interface import Forward
from isoflop.objectives.loss import nats
from isoflop.run import AdamW, Run, Text
from isoflop.training import optimizer
from isoflop.training.distributed import Ranks
from isoflop.training.step import update
from models import ZOO
from models.attention import BACKENDS, Backend
from models.interface import Config, Model

# width, depth, heads, context, vocabulary; "tiny" is for a CPU, to try the command itself
SIZES = {
    "tiny": (64, 2, 2, 64, 256),
    "125M": (768, 12, 12, 1024, 50304),
    "350M": (1024, 24, 16, 1024, 50304),
}
MODELS, DEFAULT_SIZES = ("gpt2", "llama"), {"cuda": ("125M", "350M"), "cpu": ("tiny",)}
COMPILING = ("layers", "whole", "none")
WARM = 3  # steps before any is timed: the first ones compile
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the device is to do it."""

    device: str
    rows: int = 16  # of a step
    compiling: str = "layers"
    backend: Backend = "sdpa"
    steps: int = 8  # of a round

    def __post_init__(self) -> None:
        check(self.device)
        for name, known in (("compiling", COMPILING), ("backend", BACKENDS)):
            if getattr(self, name) not in known:
                option = "--compile" if name == "compiling" else "--backend"
                raise ValueError(
                    f"{option} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        for name in ("rows", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of one model."""

    parameters: int
    step: float  # seconds, the median of the rounds
    low: float  # of the fastest round
    high: float
    tokens: int  # per step
    flops: float  # per second
    first: float  # seconds until the steps that are timed: compiling
    memory: int  # bytes at most; 0 on a CPU
    loss: float


def shaped(kind: type[Config], size: str) -> Config:
    """A model of the zoo in one of the sizes, its head tied where it can be, as GPT-2's is."""
    width, depth, heads, context, vocab = SIZES[size]
    asked = {"width": width, "depth": depth, "heads": heads, "tied": True}
    known = {field.name for field in dataclasses.fields(kind)}
    fields: dict[str, Any] = {name: value for name, value in asked.items() if name in known}
    objective = targets.suiting(kind(context=context, **fields))()
    return objective.prepare(kind(context=context, **fields), vocab)


def run_of(config: Config, rows: int) -> Run:
    """A run whose steps are those of the benchmark."""
    return Run(
        model=config,
        objective=targets.suiting(config)(),
        optimizer=AdamW(lr=1e-4),
        batch_tokens=rows * config.context,
        tokens=rows * config.context,
        data=Text(fingerprint="benchmark"),
    )


class _FusedLoss:
    """The objective of models that read left to right, its cross entropy compiled by itself."""

    def __init__(self, objective: Any) -> None:
        self.vocab, self.batch = objective.vocab, objective.batch
        self.nats = torch.compile(nats, dynamic=False)

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        found: Tensor = self.nats(forward(**batch.inputs), batch.targets, batch.weights, self.vocab)
        return found


def compiled(model: Model, objective: Any, how: str) -> Any:
    """The objective; the model is compiled in place."""
    if how == "none":
        return objective
    if how == "whole":
        model.compile(dynamic=False)
        return objective
    stacks = [child for child in model.children() if isinstance(child, nn.ModuleList)]
    for layer in (layer for stack in stacks for layer in stack):
        layer.compile(dynamic=False)
    return _FusedLoss(objective)


def measure(config: Config, setting: Setting) -> Result:
    """Raises torch.OutOfMemoryError where the rows do not fit the device."""
    device, run = setting.device, run_of(config, setting.rows)
    torch.manual_seed(0)
    torch.compiler.reset()
    model = config.build().to(device).train()
    model.backend = setting.backend
    optim = optimizer.build(model, run.optimizer)
    plain = objectives.build(run.objective, config)
    batch = plain.batch(sample(setting.rows, config.context, config.text_vocab)).to(device)
    objective = compiled(model, plain, setting.compiling)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)

    def steps(count: int) -> tuple[float, Tensor]:
        began = settled(device)
        for _ in range(count):
            loss, _ = update(model, optim, objective, batch, run, Ranks(device=device))
        return (settled(device) - began) / count, loss

    first, _ = steps(WARM)
    rounds, losses = zip(*(steps(setting.steps) for _ in range(ROUNDS)), strict=True)
    step, tokens = statistics.median(rounds), run.batch_tokens
    return Result(
        parameters=config.parameters().all,
        step=step,
        low=min(rounds),
        high=max(rounds),
        tokens=tokens,
        flops=tokens * config.flops_per_token().training / step,
        first=first * WARM,
        memory=torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0,
        loss=float(losses[-1]),
    )


def show(names: Sequence[str] | None, sizes: Sequence[str] | None, setting: Setting) -> int:
    """Print the table for the named models (default: gpt2 and llama) in the named sizes."""
    for option, given, known in (("model", names, ZOO), ("size", sizes, SIZES)):
        for name in given or ():
            if name not in known:
                raise ValueError(f"--{option} {name}: known are {', '.join(known)}")
    found = limits(setting.device)
    print(found)
    precision = "bfloat16" if setting.device.startswith("cuda") else "float32"
    print(
        f"training in {precision}, attention by {setting.backend}, compiling: {setting.compiling}, "
        f"{setting.rows} rows a step"
    )
    print(
        f"{'model':<10} {'size':<5} {'parameters':>11} {'ms / step':>10} {'(range)':>15} "
        f"{'tokens / s':>11} {'TFLOP/s':>8} {'MFU':>6} {'GiB':>6} {'first s':>8} {'loss':>7}"
    )
    for size in sizes or DEFAULT_SIZES[setting.device.split(":")[0]]:
        for name in names or MODELS:
            print(_line(name, size, measure(shaped(ZOO[name], size), setting), found), flush=True)
    return 0


def _line(name: str, size: str, result: Result, found: Limits) -> str:
    spread = f"({1e3 * result.low:.1f}-{1e3 * result.high:.1f})"
    return (
        f"{name:<10} {size:<5} {result.parameters / 1e6:10.1f}M {1e3 * result.step:10.1f} "
        f"{spread:>15} {result.tokens / result.step:11,.0f} {result.flops / 1e12:8.2f} "
        f"{result.flops / found.most_flops:6.1%} {result.memory / 2**30:6.1f} "
        f"{result.first:8.1f} {result.loss:7.3f}"
    )
