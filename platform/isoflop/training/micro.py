"""How many rows go through the model at once? As many as the memory of the device holds.

A batch that does not fit whole goes through in parts (micro-batches), whose gradients are added up:
the global batch, and so the run, stays what it is. Their size is, in this order,

    given       --micro-batch
    remembered  what this run had before it was interrupted
    measured    on a GPU: the peaks of a few trial passes of this very model (`measured`)
    counted     on a CPU: `training.memory`, against this process's share of the machine's memory

and halved where memory runs out all the same: the step begins again, with the same rows and the
same random numbers. Where not even one row fits, the model computes its inside twice instead of
keeping it (`models.interface.Model.checkpointing`), if it can.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from isoflop.objectives import Batch, Objective
from isoflop.run import Run
from isoflop.training.checkpoint import write_json
from isoflop.training.distributed import Ranks, least
from isoflop.training.means import Means
from isoflop.training.memory import memory
from isoflop.training.step import gradients
from models.interface import Model

Result = TypeVar("Result")
Peak = Callable[[int], "int | None"]

NOTE = "micro.json"  # beside a run's checkpoints
ROOM = 0.9  # of a GPU's memory: the rest is for what no trial shows (fragments, kernels' own)
TRIALS = 3  # after those with one row and with two
# No model here keeps more than a byte for so many FLOPs of its step (19 and more were measured): a
# count, which takes seconds, is made only where a batch could come near the memory there is.
FLOPS_PER_BYTE = 4.0


@dataclass(kw_only=True)
class Micro:
    """How many rows this rank takes at once; it falls when memory runs out."""

    model: Model
    ranks: Ranks
    folder: Path  # where it is remembered
    share: int  # rows of a step that are this rank's
    rows: int  # of them, at once
    whole: bool = False  # the batch may not be split: its rows are compared with each other
    halved: list[int] = field(default_factory=list)  # what the size was each time that it fell

    @property
    def parts(self) -> int:
        """Passes in a step."""
        return -(-self.share // self.rows)

    @property
    def on_gpu(self) -> bool:
        return self.ranks.device.startswith("cuda")

    @property
    def checkpointing(self) -> bool:
        return bool(self.model.checkpointing)

    def evaluating(self, rows: int) -> int:
        """Rows of an evaluation at once, where `rows` would be with all the memory there is."""
        return rows if self.parts == 1 else min(rows, self.rows)

    def steadily(self, attempt: Callable[[], Result], warn: Callable[[str], None]) -> Result:
        """What `attempt` gives, tried again with less at once as long as memory runs out.

        It must be the same thing each time. Raises what the last attempt raised. In a group of
        several ranks the others wait for what this one cannot send: the smaller size is written
        down and the error raised, and the group starts again from its checkpoint with it.
        """
        while True:
            try:
                return attempt()
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is the former
                if not exhausted(error) or not self._yield(f"{error}".splitlines()[0][:200], warn):
                    raise
                if self.ranks.world > 1:
                    raise
            self._free()  # not before the error, which holds the tensors of its frames, is gone

    def _yield(self, why: str, warn: Callable[[str], None]) -> bool:
        """Take less at once; False if nothing less can be."""
        before = self.rows
        if self.rows > 1 and not self.whole:
            self.rows = -(-self.rows // 2)
        elif not self._recompute():
            return False
        self.halved.append(before)
        again = "" if self.rows < before else ", computing each layer twice"
        warn(f"out of memory with {before} rows at once, going on with {self.rows}{again}: {why}")
        self.remember()
        return True

    def _recompute(self) -> bool:
        """Keep less of each pass; False for a model that does already, or cannot."""
        can = self.model.checkpointing is False
        if can:
            self.model.checkpointing = True
        return can

    def _free(self) -> None:
        self.model.zero_grad(set_to_none=True)
        free(self.ranks.device)

    def remember(self) -> None:
        """A run that goes on does so with the same sizes, and so to the same bits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / NOTE, {"rows": self.rows, "checkpointing": self.checkpointing})

    def described(self) -> dict[str, Any]:
        """For the run's result."""
        return {
            "micro_batch": self.rows,
            "accumulated": self.parts,
            "out_of_memory": self.halved,
            "checkpointing": self.checkpointing,
        }


def choose(
    model: Model,
    objective: Objective,
    first: Callable[[], Batch],
    run: Run,
    ranks: Ranks,
    folder: Path,
    means: Means,
    *,
    moments: int = 0,
    sharded: bool = False,
) -> Micro:
    """The size to begin with, the same on every rank. `first` gives a batch of this rank to try
    with; `moments`: bytes that the optimizer and the ranks' exchange have yet to take.

    Raises ValueError where a split is asked for and the rows are compared with each other.
    """
    share = run.rows // ranks.world
    micro = Micro(
        model=model, ranks=ranks, folder=folder, share=share, rows=share,
        whole=run.objective.contrast > 0,
    )  # fmt: skip
    if means.micro_batch is not None:
        if micro.whole and means.micro_batch < share:
            raise ValueError(
                f"--micro-batch is {means.micro_batch}, but objective.contrast compares all rows "
                f"of a batch with each other: it must be left out, or at least {share}"
            )
        micro.rows = min(share, means.micro_batch)
    elif not _recall(micro):
        _fit(micro, objective, first, run, moments, sharded)
    return micro


def _recall(micro: Micro) -> bool:
    """Take up what was written down, if all ranks have it."""
    try:
        noted = json.loads((micro.folder / NOTE).read_text())
    except (OSError, ValueError):
        noted = {}
    rows = least(int(noted.get("rows", 0)), micro.ranks)
    plain = least(0 if noted.get("checkpointing") else 1, micro.ranks)
    if rows and not micro.whole:
        micro.rows = min(micro.share, rows)
    if not plain:
        micro._recompute()
    return bool(rows)


def _fit(
    micro: Micro,
    objective: Objective,
    first: Callable[[], Batch],
    run: Run,
    moments: int,
    sharded: bool,
) -> None:
    ranks = micro.ranks
    if _light(run, ranks):
        return
    tried = ranks.device.startswith("cuda") and not sharded  # a rank of shards cannot try alone
    if tried:
        batch, room = first(), round(ROOM * usable(ranks.device))
        peak = trial(micro.model, objective, batch, run, ranks.device, moments)
    else:
        room = round(ROOM * usable(ranks.device)) if micro.on_gpu else own_share()
        peak = counted(run, ranks.world if sharded else 1)
    rows = least(largest(peak, micro.share, room), ranks)
    if rows == 0 and micro._recompute():
        rows = least(largest(peak, micro.share, room), ranks) if tried else 0
    if not micro.whole:
        micro.rows = max(1, rows)
    if micro.rows < micro.share or micro.checkpointing:
        micro.remember()


def largest(peak: Peak, share: int, room: int) -> int:
    """The most rows, up to `share`, whose pass takes at most `room` bytes; 0 if not even one.

    `peak` says what a number of rows takes; None: more than there is. It is asked a few times only:
    what passes take grows by a line, or slower where logits are held in chunks.
    """
    known = [(rows, took) for rows in (1, 2)[:share] if (took := _within(peak, rows, room))]
    if len(known) < 2:
        return len(known)
    most = share
    for _ in range(TRIALS):
        (few, less), (rows, took) = known[-2:]
        slope = max(1.0, (took - less) / (rows - few))
        target = min(most, rows + int((room - took) / slope))
        if target == rows:
            break
        found = _within(peak, target, room)
        if found:
            known.append((target, found))
        else:
            most = (rows + target) // 2
    return known[-1][0]


def _within(peak: Peak, rows: int, room: int) -> int | None:
    took = peak(rows)
    return took if took is not None and took <= room else None


def counted(run: Run, shards: int = 1) -> Peak:
    """What a pass takes without trying, where a rank holds one of so many shards of the state."""

    def peak(rows: int) -> int:
        found = memory(replace(run, batch_tokens=rows * run.model.context))
        return replace(found, state=found.state // shards).needed

    return peak


def trial(
    model: Model, objective: Objective, batch: Batch, run: Run, device: str, moments: int
) -> Peak:
    """What a pass takes on a GPU, by trying. Weights and the run's random numbers stay: each step
    seeds them anew."""

    def peak(rows: int) -> int | None:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            part = batch.some(slice(rows))
            gradients(model, objective, part, run, Ranks(device=device))
            return torch.cuda.max_memory_allocated(device) + moments
        except torch.OutOfMemoryError:
            return None
        finally:
            model.zero_grad(set_to_none=True)

    def cleared(rows: int) -> int | None:
        model.train()
        found = peak(rows)
        free(device)
        return found

    return cleared


def exhausted(error: BaseException) -> bool:
    """Is it that there is not enough memory? A CPU's allocator says so in words only."""
    words = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        each in str(error) for each in words
    )


def free(device: str) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _light(run: Run, ranks: Ranks) -> bool:
    """Is a step too small to come near half of the memory, whatever the model is?"""
    flops = run.batch_tokens / ranks.world * run.model.flops_per_token().training
    room = usable(ranks.device) if ranks.device.startswith("cuda") else own_share()
    return bool(least(int(flops / FLOPS_PER_BYTE < room / 2), ranks))


def usable(device: str) -> int:
    """Bytes of a GPU that this process may hold: what others leave, within its fraction."""
    free, total = torch.cuda.mem_get_info(device)
    fraction = torch.cuda.get_per_process_memory_fraction(torch.device(device).index)
    limit = fraction * total
    return int(min(free + torch.cuda.memory_reserved(device), limit))


def own_share() -> int:
    """Bytes of this machine's memory, or of what its container may take of it, that belong to as
    many of its cores as this process computes on."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such limit: another system, or the word "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    cores = os.cpu_count() or 1
    return total * min(cores, torch.get_num_threads()) // cores
