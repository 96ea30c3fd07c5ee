"""Does a run in half precision learn what float32 learns, and go on with its scale?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from isoflop.run import Muon, Run
from isoflop.training import precision
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Hooks, Inputs, Outcome, train
from isoflop.training.precision import LossScale, autocast, has, refusal

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]


def losses(outcome: Outcome) -> list[float]:
    return [r["train/loss"] for r in outcome.progress.history if "train/loss" in r]


def test_products_are_in_the_precision_that_is_asked_for() -> None:
    product = torch.ones(2, 2)
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        with autocast(name, "cpu"):
            assert (product @ product).dtype == dtype


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
def test_float16_trains_float32_weights(
    model: str, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    half, full = (make_run(model, precision=name) for name in ("float16", "float32"))
    low = train(half, make_inputs(half), Ranks(), tmp_path / "low")
    high = train(full, make_inputs(full), Ranks(), tmp_path / "high")
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert losses(low) != losses(high)
    assert losses(low) == pytest.approx(losses(high), rel=0.03)
    last = low.progress.history[-1]
    assert last["steps_left_out"] == low.computed["steps_left_out"] <= 2
    assert last["loss_scale"] >= 2**14
    assert "loss_scale" not in high.progress.history[-1]


def test_a_step_that_overflows_is_left_out_and_counted(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a scale of 2^30 nothing fits: it is halved until it does, and the weights wait."""
    of = LossScale.of

    def enormous(run: Run, device: str, state: dict[str, object]) -> LossScale | None:
        made = of(run, device, state)
        if made is not None and not state:
            made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
        return made

    monkeypatch.setattr(precision.LossScale, "of", staticmethod(enormous))
    run = make_run("gpt2", precision="float16")
    said: list[str] = []
    found = train(run, make_inputs(run), Ranks(), tmp_path, Hooks(warn=said.append))
    left_out = found.computed["steps_left_out"]
    assert 3 <= left_out < 20
    assert [line for line in said if f"{left_out} of 20 steps were left out" in line]
    history = found.progress.history
    assert "gradient_norm" not in history[1] and "gradient_norm" in history[-1]
    assert history[-1]["loss_scale"] == 2.0 ** (30 - left_out)
    assert losses(found)[-1] < losses(found)[0] - 0.1
    assert json.dumps(history, allow_nan=False)


@pytest.mark.parametrize("muon", [False, True])
def test_a_half_precision_run_goes_on_with_its_scale(
    muon: bool, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    changes = {"optimizer": Muon(lr=1e-2)} if muon else {}
    run = make_run("llama", precision="float16", **changes)
    whole = train(run, make_inputs(run), Ranks(), tmp_path / "whole")
    looks = iter(range(8))
    hooks = Hooks(stop=lambda: next(looks, None) is None)
    stopped = train(run, make_inputs(run), Ranks(), tmp_path / "a", hooks)
    assert stopped.status == "stopped"
    state = json.loads((tmp_path / "a" / "step-00000009" / "state.json").read_text())
    assert state["progress"]["scale"]["scaler"]["scale"] > 1
    assert state["progress"]["scale"]["scaler"]["_growth_tracker"] > 0
    found = train(run, make_inputs(run), Ranks(), tmp_path / "a")
    assert losses(found) == losses(whole)
    assert found.progress.scale == whole.progress.scale


def test_what_a_device_only_emulates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("auto", "cpu") is None and refusal("float32", "cpu") is None
    monkeypatch.setattr(precision, "has", lambda name, device: False)
    said = refusal("float16", "cpu")
    assert said is not None and "'float16', which this machine only emulates" in said
    assert has("float32", "cuda"), "asks no device"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_on_a_gpu(
    name: str, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    assert torch.cuda.is_available()
    half, full = (make_run("llama", precision=each) for each in (name, "float32"))
    device = Ranks(device="cuda")
    low = train(half, make_inputs(half), device, tmp_path / "low")
    high = train(full, make_inputs(full), device, tmp_path / "high")
    assert losses(low) != losses(high)
    assert losses(low) == pytest.approx(losses(high), rel=0.03)
    assert ("loss_scale" in low.progress.history[-1]) == (name == "float16")
    assert refusal(name, "cuda") is None, "of any GPU that tests run on"
