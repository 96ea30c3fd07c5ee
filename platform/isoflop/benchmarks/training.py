"""How close is the training loop to what its arithmetic costs anyway?

The floor is measured, not assumed: while a model takes one step, every matrix product and every
attention kernel that torch dispatches is recorded with its operands; replaying just those calls is
the least any implementation of the same step could do with the same kernels. Between two steps of
the real loop (data loader, optimizer, clipping and reporting included) the floor is replayed once,
so that each ratio is a pair taken within seconds. CPU time of one thread.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop import objectives, targets
from isoflop.data.loader import Batches
from isoflop.data.rows import sample
from isoflop.data.shards import TokenFile, write
from isoflop.run import AdamW, Evaluation, Run, Text
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import HeldOut
from isoflop.training.loop import Hooks, Inputs, Record, train
from isoflop.training.process import settle
from models import ZOO
from models.interface import Config

# width, depth, heads, context, vocabulary, tokens per step: sizes at which peers were measured
SHAPES = {
    "4 x 128": (128, 4, 4, 128, 256, 4096),
    "6 x 256": (256, 6, 8, 256, 4096, 2048),
    "8 x 512": (512, 8, 8, 256, 8192, 1024),
}
# Pairs measured of a shape: the longer they take, the less they differ
PAIRS = {"4 x 128": 12, "6 x 256": 6, "8 x 512": 3}
USUAL = ("4 x 128", "6 x 256")  # where none is asked for; the largest takes as long as these two
WARM = 2  # steps before any is measured: memory and the optimizer's moments are new to the first
Call = Callable[[], Any]


# Matrix products, and the kernels of recurrent layers, which are made of them. No fused kernel of
# torch takes a bias that is trained (T5's): such attention is products, with a softmax between.
PRODUCTS = (
    "mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward",
    "_softmax", "_softmax_backward_data",
)  # fmt: skip


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the calls that do a step's arithmetic: matrix products and fused attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in PRODUCTS or "scaled_dot_product" in name:
            self.calls.append(lambda: func(*args, **kwargs))
        return func(*args, **kwargs)


def floor(run: Run) -> list[Call]:
    """The matrix products and attention kernels of one forward and backward pass of the run."""
    model = run.model.build()
    objective = objectives.build(run.objective, run.model)
    batch = objective.batch(sample(run.rows, run.model.context, run.model.text_vocab))
    with _Recorder() as recorder:
        objective.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    calls: list[Call] = recorder.calls
    return calls


def config(kind: type[Config], shape: str) -> tuple[Config, int]:
    """A model of the zoo in one of the shapes, and the tokens of a step."""
    width, depth, heads, context, vocab, tokens = SHAPES[shape]
    known = {field.name for field in dataclasses.fields(kind)}  # a recurrent model has no heads
    asked = {"width": width, "depth": depth, "heads": heads}
    fields: dict[str, Any] = {name: value for name, value in asked.items() if name in known}
    return kind(context=context, vocab=vocab, **fields), tokens


def measure(kind: type[Config], shape: str, pairs: int) -> tuple[float, list[float]]:
    """(tokens per CPU second of the loop, floor / loop of each of so many `pairs`)."""
    plain, batch_tokens = config(kind, shape)
    objective = targets.suiting(plain)()
    model = objective.prepare(plain, plain.vocab)
    run = Run(
        model=model,
        objective=objective,
        optimizer=AdamW(lr=1e-3),
        batch_tokens=batch_tokens,
        tokens=batch_tokens * (WARM + pairs + 1),  # the last step evaluates, and is not measured
        data=Text(fingerprint="benchmark"),
        evaluation=Evaluation(tokens=model.context, times=1),
    )
    calls, clock = floor(run), time.process_time
    found: list[tuple[float, float]] = []
    left = clock()

    def report(records: list[Record]) -> None:
        nonlocal left
        loop, began = clock() - left, clock()
        if WARM <= len(found) <= WARM + pairs:
            with torch.no_grad():
                for call in calls:
                    call()
        found.append((clock() - began, loop))
        left = clock()

    with tempfile.TemporaryDirectory() as folder:
        inputs = _inputs(run, Path(folder))
        train(run, inputs, Ranks(), Path(folder) / "checkpoints", Hooks(report=report))
    kept = found[1 + WARM : 1 + WARM + pairs]  # the first is that of step 0
    speed = batch_tokens / statistics.median(loop for _, loop in kept)
    return speed, [low / loop for low, loop in kept]


def _inputs(run: Run, folder: Path) -> Inputs:
    context, vocab = run.model.context, run.model.text_vocab
    ids = np.random.default_rng(0).integers(vocab, size=200_000).astype(np.uint16)
    write(folder, "train", [ids], np.uint16)
    batches = Batches(TokenFile.open(folder, "train"), context=context, rows=run.rows, seed=0)
    one = HeldOut(sample(1, context, vocab), torch.ones(vocab))
    return Inputs(batches=batches, held_out=one)


def show(names: list[str] | None, shapes: list[str] | None = None, pairs: int | None = None) -> int:
    """Print the table for the named models of the zoo (all by default), shape after shape.

    Raises ValueError for unknown names and for too few pairs, before anything is measured.
    """
    for name in names or ():
        if name not in ZOO:
            raise ValueError(f"--model {name}: known models are {', '.join(ZOO)}")
    if pairs is not None and pairs < 2:
        raise ValueError(f"--steps {pairs}: quartiles need at least 2")
    wanted = [_shape(shape) for shape in shapes or USUAL]
    settle(threads=1)
    print("training loop against its matrix products and attention, one thread, float32, CPU time")
    columns = f"{'tokens / CPU s':>15} {'floor / loop':>13} {'(quartiles)':>15}"
    print(f"{'model':<10} {'shape':<8} {columns}")
    for shape in wanted:
        for name in names or ZOO:
            print(f"{name:<10} {shape:<8}", end=" ", flush=True)  # what is being measured
            speed, ratios = measure(ZOO[name], shape, pairs or PAIRS[shape])
            low, middle, high = statistics.quantiles(ratios, n=4)
            quartiles = f"({low:.2f}-{high:.2f})"
            print(f"{speed:15,.0f} {middle:13.2f} {quartiles:>15}", flush=True)
    return 0


def _shape(asked: str) -> str:
    """Layers x width, with or without spaces."""
    known = {shape.replace(" ", ""): shape for shape in SHAPES}
    found = known.get(asked.replace(" ", ""))
    if found is None:
        raise ValueError(f"--shape {asked}: known shapes are {', '.join(known)}")
    return found
