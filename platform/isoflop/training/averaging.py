"""What are the weights, averaged over the last steps? A model beside the one that trains.

The average forgets by `run.ema` a step, and begins as the weights after the first step (Polyak &
Juditsky 1992; Tarvainen & Valpola 2017). Evaluation and rollouts that ask for "ema" get this model;
training never reads it, so it changes no bit of the loss.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from isoflop.run import Run
from isoflop.training.distributed import is_sharded
from models.interface import Model


class Average:
    """The moving average of a model's weights. Built before the model is wrapped for its ranks, and
    cut up with it where it is (see `sharding`)."""

    def __init__(self, model: Model, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    @staticmethod
    def of(run: Run, model: Model) -> Average | None:
        """None where the run keeps none."""
        return Average(model, run.ema) if run.ema else None

    @property
    def model(self) -> Model:
        return cast(Model, self._averaged.module)

    def goes_on(self, updates: int) -> None:
        """Its weights were loaded: they are the average of so many steps."""
        self._averaged.n_averaged.fill_(updates)

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """After a step."""
        if is_sharded(self.model):  # what an evaluation brought together and did not let go
            cast(Any, self.model).reshard()
        self._averaged.update_parameters(model)
