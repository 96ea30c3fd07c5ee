"""How are rollouts captured while training goes on? By another process, on copies of the weights.

    trainer: copy the weights, offer them, go on        scribe: take the newest offer, capture

The trainer waits for the copy only. What is offered while a capture is under way waits, at most one
offer at a time: a newer one takes its place, so the scribe falls behind by one capture and never
further. Step 0 and the end are never dropped; at the end the trainer waits for what is left. The
rows are those that the trainer would have written itself. What a scribe has measured it writes down
at once (`beside.json`), and a run that goes on, with another scribe, offers step 0 again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isoflop.data.mixture import Mixed
from isoflop.data.prepare import Prepared
from isoflop.orchestration.capturing import NOTES, captures, dated, noted, recorded
from isoflop.orchestration.job import Job
from isoflop.rollouts.capture import schedule
from isoflop.training import sharding
from isoflop.training.checkpoint import Progress, write_json
from isoflop.training.distributed import Ranks, is_sharded
from isoflop.training.loop import Record, initial
from isoflop.training.process import settle
from models.interface import Model

Weights = dict[str, NDArray[Any]]
Written = dict[int, Record]  # by step


@dataclass(frozen=True, eq=False)
class Offer:
    """The weights of a step."""

    step: int
    weights: dict[str, Weights]  # "raw", and "ema" where the run keeps that
    kept: bool  # whatever comes after it


@dataclass(eq=False)
class Desk:
    """What waits for the scribe: offers that must be kept, and at most one other, the newest."""

    waiting: list[Offer] = field(default_factory=list)

    def put(self, offer: Offer) -> None:
        self.waiting = [*(old for old in self.waiting if old.kept), offer]

    def take(self) -> Offer | None:
        return self.waiting.pop(0) if self.waiting else None


class Scribe:
    """Captures what it is offered, one offer after the other, in a thread of its own."""

    def __init__(self, job: Job, prepared: Prepared | Mixed) -> None:
        settle(job.threads)
        run = job.run
        self.captures = captures(
            run, prepared, job.folder / "rollouts", Ranks(), study=job.study, axes=job.axes
        )
        self.models: dict[str, Model] = {"raw": run.model.build()}
        if run.ema:
            self.models["ema"] = run.model.build()
        self.tokens = run.batch_tokens
        self.flops = run.model.flops_per_token().training
        self.desk, self.changed = Desk(), threading.Condition()
        self.busy = False
        self.notes = job.folder / NOTES
        # Of every capture, by its step, another scribe's of this run too.
        self.records = {int(old["step"]): old for old in noted(job.folder, run, run.steps)}
        self.error: BaseException | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def offer(self, step: int, weights: dict[str, Weights], kept: bool) -> None:
        """Put the weights of a step on the desk, if it has not been captured."""
        if step in self.records:
            return
        with self.changed:
            self.desk.put(Offer(step, weights, kept))
            self.changed.notify_all()

    def finish(self) -> Written:
        """When nothing is left to do: every capture's record. Raises what a capture raised."""
        with self.changed:
            self.changed.wait_for(lambda: self.error or not (self.busy or self.desk.waiting))
            if self.error is not None:
                raise RuntimeError("a capture beside the training failed") from self.error
            return self.records

    def _work(self) -> None:
        while self.error is None:
            with self.changed:
                self.changed.wait_for(lambda: bool(self.desk.waiting))
                offer = self.desk.take()
                self.busy = True
            assert offer is not None
            try:
                self.records[offer.step] = self._captured(offer)
                write_json(self.notes, self.records)
            except BaseException as error:  # told to whoever asks in `finish`
                self.error = error
            with self.changed:
                self.busy = False
                self.changed.notify_all()

    def _captured(self, offer: Offer) -> Record:
        for kind, model in self.models.items():
            copied = offer.weights[kind].items()
            model.load_state_dict({name: torch.tensor(values) for name, values in copied})
        tokens = offer.step * self.tokens
        record: Record = {}
        for capture in self.captures:
            found = capture(
                self.models[capture.spec.weights],
                step=offer.step,
                tokens=tokens,
                flops=float(tokens) * self.flops,
            )
            assert found is not None, "a scribe works alone"
            record |= recorded(capture.spec.name, found)
        return record


class Beside:
    """What the loop calls at the capture steps, where a scribe does the work.

    `offer` must return at once, `finish` when all is written: an actor's methods, or a `Scribe`'s.
    The record of the last step holds the values of the end. Those of earlier captures, which were
    not known in their time, go into the history before it, each with its own step.
    """

    def __init__(
        self,
        job: Job,
        ranks: Ranks,
        offer: Callable[[int, dict[str, Weights], bool], object],
        finish: Callable[[], Written],
    ) -> None:
        self.run, self.folder, asked = job.run, job.folder, job.run.rollouts
        self.steps = schedule(job.run.steps, asked.captures, asked.every)
        self.last = job.run.steps
        self.begun = False
        self.ranks, self.offer, self.finish = ranks, offer, finish

    def __call__(
        self, model: Model, *, step: int, progress: Progress, averaged: Model | None = None
    ) -> Record:
        began = time.perf_counter()
        if is_sharded(model):
            model, _ = sharding.gathered(self.run, model, None, self.ranks)
            if averaged is not None:
                averaged, _ = sharding.gathered(self.run, averaged, None, self.ranks)
        if not self.ranks.leads:
            return {}
        copied = {"raw": weights(model)}
        if averaged is not None:
            copied["ema"] = weights(averaged)
        if not self.begun and step > 0 and not noted(self.folder, self.run, 0):
            drawn = weights(initial(self.run))  # the run goes on, and step 0 was lost on the way
            self.offer(0, dict.fromkeys(copied, drawn), True)
        self.begun = True
        self.offer(step, copied, step in (0, self.last))
        record: Record = {"capture/copy_seconds": time.perf_counter() - began}
        if step == self.last:
            found = dict(self.finish())
            dropped = set(self.steps) - set(found)
            record |= {**found.pop(step, {}), "capture/dropped": float(len(dropped))}
            progress.history += [dated(self.run, *item) for item in sorted(found.items())]
        return record


def weights(model: Model) -> Weights:
    """A copy on the host: the trainer changes its own at the next step."""
    return {
        name: np.array(values.detach().cpu().numpy()) for name, values in model.state_dict().items()
    }


def beside(job: Job, ranks: Ranks, cpus: float = 0.0) -> Beside:
    """A scribe of the run as a Ray actor that reserves so many cores, and its end in the trainer.

    It needs a Ray cluster that this process is part of. It goes when the trainer does.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def nothing(step: int, weights: dict[str, Weights], kept: bool) -> None: ...

    if not ranks.leads:
        return Beside(job, ranks, nothing, dict)
    place = None
    if job.mirror:  # what it writes is sent to the URL by the trainer, from the disk they share
        here = ray.get_runtime_context().get_node_id()
        place = NodeAffinitySchedulingStrategy(here, soft=False)
    remote: Any = ray.remote(Scribe)
    actor = remote.options(num_cpus=cpus, scheduling_strategy=place).remote(job, job.prepared)

    def offer(step: int, weights: dict[str, Weights], kept: bool) -> None:
        actor.offer.remote(step, ray.put(weights), kept)  # in order: an actor has one thread

    def finish() -> Written:
        found: Written = ray.get(actor.finish.remote())
        return found

    return Beside(job, ranks, offer, finish)
