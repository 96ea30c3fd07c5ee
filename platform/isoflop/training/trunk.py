"""Which part of a run is another's too? Up to its cool-down, a shorter run is the longer one.

With a constant rate between warm-up and cool-down (`Schedule(decay="wsd", warmup_steps=...)`) runs
that differ in length alone are branches of one trunk: the longest leaves a checkpoint where each of
the others begins to cool down, and they go on from there (Hu et al. 2024, "MiniCPM"; Hägele et al.
2024). Data and random numbers are functions of (seed, step), so a branch ends with the very bits of
the same run trained alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from isoflop.run import Evaluation, Rollouts, Run, Schedule
from isoflop.training.optimizer import cooldown_start

if TYPE_CHECKING:
    from isoflop.training.averaging import Average
    from isoflop.training.checkpoint import Progress
    from models.interface import Model


def stem(run: Run) -> str | None:
    """What runs of one trunk have in common, as 16 hex digits; None where the rate depends on a
    run's length from the beginning, so that it shares nothing."""
    schedule = run.schedule
    if schedule.decay != "wsd" or (schedule.warmup and not schedule.warmup_steps):
        return None
    plain = replace(
        run,
        tokens=run.batch_tokens,
        schedule=replace(schedule, warmup=0.0, final=Schedule.final, cooldown=Schedule.cooldown),
        evaluation=Evaluation(),
        rollouts=Rollouts(),
    )

    return plain.identity


def leaves(run: Run) -> int:
    """After how many steps a run leaves its trunk; at most its warm-up: it never was on one."""
    return cooldown_start(run.schedule, run.steps)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """One run's part in a trunk. Travels to workers with its job."""

    folder: Path  # of the trunk's checkpoints
    stem: str
    forks: tuple[int, ...] = ()  # steps after which others go their own way

    def keep(
        self,
        run: Run,
        progress: Progress,
        model: Model,
        optimizer: torch.optim.Optimizer,
        averaged: Model | None,
    ) -> None:
        """A checkpoint for those that leave here. Raises OSError where it cannot be written."""
        from isoflop.training import checkpoint

        checkpoint.save(
            self.folder, run, progress, model, optimizer, averaged, identity=self.stem, kept=None
        )

    def begin(
        self,
        run: Run,
        model: Model,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        warn: Callable[[str], None],
    ) -> Progress | None:
        """Bring a run that has not begun to where it leaves the trunk, or to the last fork before.
        None where there is none: it begins at its first step."""
        from isoflop.training import checkpoint

        progress = checkpoint.load(
            self.folder, run, model, optimizer, warn, average,
            identity=self.stem, most=leaves(run),
        )  # fmt: skip
        if progress.step == 0:
            return None
        progress.shared_steps, progress.shared_seconds = progress.step, progress.seconds
        return progress

    def has(self, step: int) -> bool:
        return (self.folder / f"step-{step:08d}").exists()
