"""Is the floor of a training step made of its products, for every model of the zoo?"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from isoflop import targets
from isoflop.benchmarks import training
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


def test_as_many_pairs_as_asked_for_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "SHAPES", {"1 x 16": (16, 1, 2, 16, 64, 32)})
    speed, ratios = training.measure(ZOO["gpt2"], "1 x 16", pairs=3)
    assert speed > 0
    assert len(ratios) == 3 and all(ratio > 0 for ratio in ratios)
    assert training.show(["gpt2", "t5"], ["1x16"], pairs=2) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:4] for row in rows] == [["gpt2", "1", "x", "16"], ["t5", "1", "x", "16"]]


def test_what_cannot_be_measured_is_refused_before_anything_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="--steps 1: quartiles need at least 2"):
        training.show(["gpt2"], None, pairs=1)
    with pytest.raises(ValueError, match="--shape 3x3: known shapes are 4x128, 6x256, 8x512"):
        training.show(["gpt2"], ["4x128", "3x3"])
    assert not capsys.readouterr().out
