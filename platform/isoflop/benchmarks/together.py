"""How much faster do several small runs train as one than one after another?

The same runs, on the same rows, both ways, several times: by the loop's own clock, of which
evaluation, rollouts and checkpoints are no part, and the whole with them. How far the training
losses of one run lie apart is shown beside: in float32, since half precision lets any rounding
grow, and over the first steps, since long training does too (as it does a change of weights by
1e-7).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from isoflop.data.rows import Rows, sample
from isoflop.run import AdamW, Evaluation, Run, Text
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import HeldOut
from isoflop.training.loop import Inputs, Outcome, train
from isoflop.training.together import Member, train_together
from models import ZOO

# width, depth, heads, context, vocabulary, rows per step
SHAPES = {
    "2 x 64": (64, 2, 2, 64, 256, 4),
    "4 x 128": (128, 4, 4, 128, 256, 32),
    "6 x 256": (256, 6, 8, 256, 4096, 8),
}

FIRST = 20  # steps in which losses are held against each other


@dataclass(frozen=True)
class Pair:
    """One round: seconds of the steps and of all, one after another and together."""

    alone: float
    together: float
    whole_alone: float
    whole_together: float
    difference: float  # the largest of two training losses of one run, in the first steps, in nats


@dataclass(frozen=True)
class Repeated:
    """A few batches of rows of random ids, over and over."""

    rows: tuple[Rows, ...]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows:
        return self.rows[step % len(self.rows)]


def show(models: Sequence[str], count: int, steps: int, rounds: int, device: str | None) -> int:
    """Print a table; always 0. Raises ValueError for a model that is not in the zoo."""
    if unknown := [name for name in models if name not in ZOO]:
        raise ValueError(f"--model {unknown[0]!r}; it must be one of {', '.join(ZOO)}")
    if min(count, steps, rounds) < 1:
        raise ValueError("--runs, --steps and --rounds must be at least 1")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{count} runs of {steps} steps on {device}, float32; medians of {rounds} rounds")
    print(
        f"{'model':<10}{'shape':<10}{'ms a step of all':>26}{'faster':>10}{'whole':>8}{'apart':>10}"
    )
    print(f"{'':<20}{'in turn':>14}{'as one':>12}{'':>10}{'':>8}{'nats':>10}")
    for name in models:
        for shape in SHAPES:
            pairs = [measure(runs(name, shape, count, steps), device) for _ in range(rounds)]
            print(_line(name, shape, steps, pairs), flush=True)
    return 0


def runs(name: str, shape: str, count: int, steps: int) -> list[Run]:
    """Runs of one shape that differ in learning rate and seed, resolved."""
    width, depth, heads, context, vocab, rows = SHAPES[shape]
    model = ZOO[name](context=context, width=width, depth=depth, heads=heads)  # type: ignore[call-arg]
    made = (
        Run(
            model=model,
            data=Text(source="made", tokenizer="bytes"),
            optimizer=AdamW(lr=1e-3 * (number + 1) / count),
            batch_tokens=rows * context,
            tokens=steps * rows * context,
            precision="float32",
            evaluation=Evaluation(tokens=rows * context, times=1),
            seed=number,
        )
        for number in range(count)
    )
    return [run.resolve(vocab=vocab, fingerprint="made") for run in made]


def measure(runs: list[Run], device: str) -> Pair:
    """One round."""
    inputs = [_inputs(run) for run in runs]
    ranks = Ranks(device=device)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(runs))]

        def in_turn() -> list[Outcome]:
            given = zip(runs, inputs, places, strict=True)
            return [train(run, own, ranks, place / "alone") for run, own, place in given]

        def as_one() -> list[Outcome]:
            given = zip(runs, inputs, places, strict=True)
            return train_together(
                [Member(run=r, inputs=i, folder=p / "together") for r, i, p in given], ranks
            )

        alone, whole_alone = _timed(in_turn)
        together, whole_together = _timed(as_one)
    return Pair(
        alone=sum(outcome.progress.seconds for outcome in alone),
        together=sum(outcome.progress.seconds for outcome in together),
        whole_alone=whole_alone,
        whole_together=whole_together,
        difference=max(
            abs(one - other)
            for pair in zip(alone, together, strict=True)
            for one, other in zip(*map(_losses, pair), strict=True)
        ),
    )


def _inputs(run: Run) -> Inputs:
    vocab, context = run.model.text_vocab, run.model.context
    batches = Repeated(tuple(sample(run.rows, context, vocab) for _ in range(4)))
    held_out = HeldOut(sample(run.rows, context, vocab), torch.ones(vocab))
    return Inputs(batches=batches, held_out=held_out)


def _timed(work: Callable[[], list[Outcome]]) -> tuple[list[Outcome], float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _losses(outcome: Outcome) -> list[float]:
    early = (record for record in outcome.progress.history if record["step"] <= FIRST)
    return [record["train/loss"] for record in early if "train/loss" in record]


def _line(name: str, shape: str, steps: int, pairs: list[Pair]) -> str:
    def median(of: Callable[[Pair], float]) -> float:
        return statistics.median(of(pair) for pair in pairs)

    in_turn = 1000 * median(lambda pair: pair.alone) / steps
    as_one = 1000 * median(lambda pair: pair.together) / steps
    faster = median(lambda pair: pair.alone / pair.together)
    whole = median(lambda pair: pair.whole_alone / pair.whole_together)
    apart = max(pair.difference for pair in pairs)
    return (
        f"{name:<10}{shape:<10}{in_turn:>14.2f}{as_one:>12.2f}{faster:>9.2f}x{whole:>7.2f}x"
        f"{apart:>10.1e}"
    )
