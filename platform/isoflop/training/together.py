"""How do several small runs of one shape train as one? Step by step, side by side.

    N batches -> one forward and backward pass of all N models -> one update of all N rows

A GPU waits for its kernels to be launched while a model is small, and N models together launch
little more than one. The runs may differ in learning rate and its schedule, in weight decay, betas,
seed and text, but not in shape and length: `shape` says which belong together. What happens between
two steps (evaluation, rollouts, checkpoints, an early end) happens to each run by itself, through
the code that it trains alone with, and a checkpoint goes on either way. Losses agree with those of
runs trained alone to rounding (Wang et al. 2021, HFTA, is the idea).

Letters: N runs, B rows of each, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.objectives import Batch
from isoflop.run import AdamW, Run
from isoflop.targets import Autoregressive
from isoflop.training.distributed import Ranks
from isoflop.training.feeder import Feeder, ahead
from isoflop.training.loop import Hooks, Inputs, Outcome, Session, session
from isoflop.training.optimizer import learning_rate
from isoflop.training.precision import autocast
from isoflop.training.shelf import Shelf
from isoflop.training.stacked import Stacked, Unstackable
from models.interface import Config, Model


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a group, as `loop.train` takes it."""

    run: Run
    inputs: Inputs
    folder: Path
    hooks: Hooks = Hooks()  # noqa: RUF009  # frozen


def shape(run: Run) -> Hashable | None:
    """Resolved runs of equal shape can train together; None: this one trains alone."""
    plain = type(run.optimizer) is AdamW and isinstance(run.objective, Autoregressive)
    plain = plain and run.precision != "float16"  # whose loss has a scale for each run
    if not plain or run.objective.any or refusal(replace(run.model, vocab=min(run.model.vocab, 8))):
        return None
    own = (run.steps, run.batch_tokens, run.precision, run.data.rows, run.objective)
    return (run.model, run.parametrisation, run.optimizer.clip, run.optimizer.epsilon, *own)


@cache
def refusal(config: Config) -> str | None:
    """Why models of this configuration cannot compute as one; None: they can. Nothing is computed,
    and no memory taken."""
    with torch.device("meta"):
        model = config.build()
        ids = torch.zeros(2, 2, dtype=torch.long)
        weights = {name: torch.stack((p, p)) for name, p in model.named_parameters()}
    if type(model).auxiliary is not Model.auxiliary:
        return "it adds to the loss of its own accord"
    try:
        with _Drawing():  # type: ignore[no-untyped-call]
            functional_call(model, _stacked(weights), (ids,))
    except (Unstackable, RuntimeError) as error:  # of a model that cannot run without its numbers
        return str(error)
    return None


class _Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises Unstackable for what draws random numbers, which models that compute as one would
    share. Attention could (dropout), but this zoo's never does."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.name()
        if torch.Tag.nondeterministic_seeded in function.tags and "attention" not in name:
            raise Unstackable(f"it draws random numbers while it trains ({name})")
        return function(*args, **(kwargs or {}))


def train_together(members: Sequence[Member], ranks: Ranks) -> list[Outcome]:
    """The outcome of each member, as `loop.train` would give it. Members of one `shape` that have
    come equally far go on together; the others after them.

    Raises ValueError for members of several shapes, or on several ranks.
    """
    shapes = {shape(member.run) for member in members}
    if len(shapes) != 1 or None in shapes or ranks.world != 1:
        raise ValueError("runs that train together have one shape and one process")
    sessions = [session(m.run, m.inputs, ranks, m.folder, m.hooks) for m in members]
    outcomes: dict[int, Outcome] = {}
    for step in sorted({each.progress.step for each in sessions}):
        level = [i for i, each in enumerate(sessions) if each.progress.step == step]
        group = _Group([sessions[i] for i in level], ranks)
        outcomes |= zip(level, group.go(), strict=True)
    return [outcomes[i] for i in range(len(members))]


class _Group:
    """Runs that have come equally far. `go` is the loop."""

    def __init__(self, sessions: list[Session], ranks: Ranks) -> None:
        self.sessions, self.ranks = sessions, ranks
        self.step, self.steps = sessions[0].progress.step, sessions[0].run.steps
        self.shelf = Shelf([(each.model, each.optim) for each in sessions])
        self.weights = _stacked(self.shelf.weights)
        self.rates = self._rates().to(ranks.device)
        self.ended: dict[int, Outcome] = {}

    def go(self) -> list[Outcome]:
        with Feeder(
            self._frame,
            start=self.step,
            stop=self.steps,
            device=self.ranks.device,
            ahead=ahead(self.ranks.device),
        ) as feeder:
            for each in self.sessions:
                each.waited = lambda: feeder.waited / len(self.sessions)
            self._begin()
            while self.step < self.steps and len(self.ended) < len(self.sessions):
                self._look(self._advance(feeder))
        for row, each in self._going():
            self.ended[row] = each.end("finished")
        for each in self.sessions:
            del each.waited, each.fetch  # in which they hold each other
        size = len(self.sessions)
        about = {"together": size, "peak_bytes": None}  # no run's own
        return [
            replace(self.ended[row], computed={**self.ended[row].computed, **about})
            for row in range(size)
        ]

    def _begin(self) -> None:
        for row, each in enumerate(self.sessions):
            each.fetch = partial(self.shelf.put_back, row)
            each.begin()
        self.started = time.perf_counter()

    def _going(self) -> list[tuple[int, Session]]:
        rows = enumerate(self.sessions)
        return [(row, each) for row, each in rows if row not in self.ended]

    def _advance(self, feeder: Feeder) -> Tensor:
        """One step of all rows, those of ended runs too: they cost nothing more. Gives the norms of
        the gradients (N,)."""
        batch = feeder.batch(self.step).to(self.ranks.device)
        losses = self._losses(batch)
        self.shelf.differentiate(losses)
        norms = self.shelf.clip(self.sessions[0].run.optimizer.clip)
        self.shelf.update(self.rates[self.step])
        self.step += 1
        for row, each in self._going():
            each.losses.append(losses.detach()[row])
            each.progress.step = self.step
            each.rate = self._rate(each.run, self.step - 1)
            if each.average:
                self.shelf.put_back(row, moments=False)
                each.average.update(each.model)
        return norms

    def _losses(self, batch: Batch) -> Tensor:
        """Mean loss of each run in nats per predicted token, (N,)."""
        first, N = self.sessions[0], len(self.sessions)
        with autocast(first.run.precision, self.ranks.device):
            logits = functional_call(first.model, self.weights, kwargs=batch.inputs)
        known = logits.flatten(0, -2)[:, : first.objective.vocab or None].float()
        each = F.cross_entropy(known, batch.targets.flatten(), reduction="none").view(N, -1)
        if batch.weights is None:
            return each.mean(dim=1)
        weights = batch.weights.view(N, -1)
        return (each * weights).sum(dim=1) / weights.sum(dim=1)

    def _look(self, norms: Tensor) -> None:
        """What is due between two steps, of each run. The time of the steps is shared out equally;
        that of one run's looks is nobody else's training."""
        due = [(row, each) for row, each in self._going() if each.due]
        if not due:
            return
        norms = norms.cpu()  # the device has come here, so that the clock says the truth
        now = time.perf_counter()
        share = (now - self.started) / len(self.sessions)
        for _, each in self._going():
            each.progress.seconds += share
        for row, each in due:
            each.started = time.perf_counter()
            if outcome := each.look(norms[row]):
                self.ended[row] = outcome
        self.started = time.perf_counter()

    def _frame(self, step: int) -> Batch:
        """The batches of all runs below one another."""
        batches = [each.frame(step) for each in self.sessions]
        weights = [batch.weights for batch in batches]
        return Batch(
            inputs={
                name: torch.cat([batch.inputs[name] for batch in batches])
                for name in batches[0].inputs
            },
            targets=torch.cat([batch.targets for batch in batches]),
            weights=None if weights[0] is None else torch.cat(weights),  # type: ignore[arg-type]
        )

    def _rates(self) -> Tensor:
        """Learning rates (steps, N)."""
        runs = [each.run for each in self.sessions]
        return torch.tensor([[self._rate(r, step) for r in runs] for step in range(self.steps)])

    @staticmethod
    def _rate(run: Run, step: int) -> float:
        return learning_rate(run.schedule, step, run.steps, run.optimizer.lr)


def _stacked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: Stacked.of(values) for name, values in weights.items()}
