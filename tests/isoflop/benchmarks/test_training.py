"""Is the floor of a training step made of its products, for every model of the zoo?"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from isoflop import targets
from isoflop.benchmarks.training import SHAPES, config, floor
from isoflop.run import AdamW, Run, Text
from models import ZOO
from models.interface import Config


@pytest.mark.parametrize("kind", ZOO.values(), ids=list(ZOO))
def test_a_step_of_every_model_has_a_floor(kind: type[Config]) -> None:
    shaped, tokens = config(kind, "4 x 128")
    assert tokens == SHAPES["4 x 128"][-1]
    small = dataclasses.replace(shaped, context=16, width=32)  # type: ignore[call-arg]
    objective = targets.suiting(small)()
    run = Run(
        model=objective.prepare(small, small.vocab),
        objective=objective,
        optimizer=AdamW(lr=1e-3),
        batch_tokens=32,
        tokens=64,
        data=Text(fingerprint="benchmark"),
    )
    calls = floor(run)
    with torch.no_grad():
        for call in calls:
            call()
    assert len(calls) >= 2 * 4, "each of the four layers, forwards and backwards"
