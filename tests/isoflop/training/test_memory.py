"""Is the memory of a step counted as autograd keeps it, and as a process takes it?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isoflop import objectives
from isoflop.data.rows import sample
from isoflop.run import Run
from isoflop.targets import suiting
from isoflop.training.memory import MARGIN, STATE, memory, state
from models import (
    Config,
    DiffusionConfig,
    DiTConfig,
    GPT2Config,
    LlamaConfig,
    MoEConfig,
    T5Config,
)

ROOT = Path(__file__).resolve().parents[3]
SHAPES = [
    GPT2Config(vocab=257, context=32, width=16, depth=2, heads=2),
    LlamaConfig(vocab=257, context=32, width=16, depth=2, heads=2, tied=True),
]
OTHERS = [
    T5Config(context=32, width=16, depth=2, heads=2),
    DiffusionConfig(context=32, width=16, depth=2, heads=2),
    DiTConfig(context=32, width=16, depth=1, heads=2),
    MoEConfig(context=32, width=16, depth=2, heads=2),
]


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: c.name)
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_what_autograd_keeps(
    config: GPT2Config | LlamaConfig, rows: int, unresolved: Callable[..., Run]
) -> None:
    """Against a real forward pass; from one and two rows to seven by a straight line."""
    run = unresolved(config, batch_tokens=32 * rows)
    model = config.build()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(257, (rows, 33))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        batch = objectives.Batch(inputs={"tokens": ids[:, :-1]}, targets=ids[:, 1:])
        objectives.build(run.objective, run.model).loss(model, batch)
    saved = sum(bytes_ for place, (bytes_, _) in kept.items() if place not in own)
    logits = 2 * 4 * rows * 32 * 257
    found = memory(run)
    assert found.activations - logits == pytest.approx(saved, rel=0.02)
    assert found.state == STATE * sum(p.numel() for p in model.parameters())
    assert found.needed == round(MARGIN * (found.state + found.activations))


@pytest.mark.parametrize("config", OTHERS, ids=lambda c: c.name)
def test_every_family_is_counted(config: Config, unresolved: Callable[..., Run]) -> None:
    """As above, with the objective that the family learns."""
    objective = suiting(config)()
    run = unresolved(objective.prepare(config, 257), objective=objective, batch_tokens=32 * 4)
    model = run.model.build()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    built = objectives.build(run.objective, run.model)
    batch = built.batch(sample(4, 32, 257))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        built.loss(model, batch)
    saved = sum(size for place, (size, _) in kept.items() if place not in own)
    logits = 2 * 4 * 4 * 32 * run.model.vocab
    assert memory(run).activations - logits == pytest.approx(saved, rel=0.15)


def test_workers_share_the_activations(unresolved: Callable[..., Run]) -> None:
    run = unresolved(SHAPES[0], batch_tokens=32 * 8)
    alone, shared = memory(run), memory(run, workers=4)
    assert shared.state == alone.state
    assert shared.activations == pytest.approx(alone.activations / 4, rel=0.05)
    assert memory(replace(run, batch_tokens=32 * 2)).activations == shared.activations


def test_low_precision_keeps_less(unresolved: Callable[..., Run]) -> None:
    wide = GPT2Config(vocab=257, context=32, width=64, depth=2, heads=2)
    full = unresolved(wide, batch_tokens=32 * 8, precision="float32")
    low = replace(full, precision="bfloat16")
    assert memory(low).activations < memory(full).activations


def test_no_random_number_is_drawn(unresolved: Callable[..., Run]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    memory(unresolved(GPT2Config(vocab=99, context=32, width=24, depth=1, heads=2)))
    assert torch.equal(torch.get_rng_state(), before)


PEAK = """
import re, sys
import torch
from dataclasses import replace
from isoflop import objectives
from isoflop.data.rows import sample
from isoflop.training.memory import memory
from isoflop.run import AdamW, Run
from isoflop.training import optimizer
from isoflop.training.distributed import Ranks
from isoflop.training.step import update
from models import ZOO
torch.set_num_threads(1)

def peak():
    status = open("/proc/self/status").read()  # getrusage would begin with the parent's peak
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024

def steps(run):
    model = run.model.build()
    optim = optimizer.build(model, run.optimizer)
    objective = objectives.build(run.objective, run.model)
    batch = objective.batch(sample(run.rows, run.model.context, run.model.vocab))
    for _ in range(2):
        update(model, optim, objective, batch, run, Ranks())

kind = ZOO[sys.argv[1]]
large = kind(vocab=8192, context=256, width=256, depth=4, heads=8)
run = Run(model=large, optimizer=AdamW(lr=1e-3), batch_tokens=2048, tokens=2048)
small = kind(vocab=64, context=256, width=32, depth=1, heads=1)
steps(replace(run, model=small, batch_tokens=256))
before = peak()
steps(run)
taken = peak() - before
found = memory(run)
print(taken / (found.state + found.activations))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_process_takes_no_more_than_the_margin(kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    shown = subprocess.run(
        [sys.executable, "-c", PEAK, kind], env=environment, capture_output=True, text=True
    )
    assert not shown.returncode, shown.stderr
    assert 0.7 < float(shown.stdout) < MARGIN


def test_an_average_is_a_further_copy(make_run: Callable[..., Run]) -> None:
    plain, averaged = make_run("gpt2"), make_run("gpt2", ema=0.9)
    assert state(averaged) - state(plain) == 4 * plain.model.parameters().all
    assert state(plain) == 16 * plain.model.parameters().all
