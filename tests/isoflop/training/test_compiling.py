"""Is a compiled model the model, and is it compiled only where that pays?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isoflop.run import Run
from isoflop.training import compiling
from isoflop.training.compiling import PAYS, prepared, wanted
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Inputs, Outcome, train
from isoflop.training.means import Means
from models import MoEConfig

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]


def losses(outcome: Outcome) -> list[float]:
    return [r["train/loss"] for r in outcome.progress.history if "train/loss" in r]


def test_where_it_pays(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda gpu: True)
    small = make_run("llama")
    steps = -(-PAYS // (small.training_flops / small.steps))
    long = replace(small, tokens=int(steps) * small.batch_tokens)
    assert long.training_flops >= PAYS > small.training_flops
    cpu, gpu, two = Ranks(), Ranks(device="cuda:0"), Ranks(device="cuda:0", world=2)
    assert [wanted(run, gpu, Means()) for run in (small, long)] == [False, True]
    assert not wanted(long, two, Means()), "each does half of it"
    assert not wanted(long, cpu, Means())
    assert wanted(small, cpu, Means(compile="on")) and not wanted(long, gpu, Means(compile="off"))


def test_without_a_compiler(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda gpu: False)
    with pytest.raises(ValueError, match="--compile is 'on', which needs a C"):
        wanted(make_run("llama"), Ranks(), Means(compile="on"))
    with pytest.raises(ValueError, match="--compile is 'sometimes'; it must be auto, on or off"):
        Means(compile="sometimes")  # type: ignore[arg-type]


def test_experts_stay_as_they_are(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile fails on their product in float32."""
    run = make_run(MoEConfig(context=32, width=16, depth=2, heads=2))
    model = run.model.build()
    with pytest.raises(ValueError, match="the experts of moe cannot be compiled"):
        prepared(model, run, Ranks(), Means(compile="on"))
    monkeypatch.setattr(compiling, "wanted", lambda *asked: True)
    assert prepared(model, run, Ranks(), Means()) is model


def agree(
    model: str, device: str, make_run: MakeRun, make_inputs: MakeInputs, folder: Path
) -> None:
    run = make_run(model, precision="float32", tokens=6 * 128)
    ranks = Ranks(device=device)
    eager = train(run, make_inputs(run), ranks, folder / "eager", means=Means(compile="off"))
    made = train(run, make_inputs(run), ranks, folder / "made", means=Means(compile="on"))
    assert (eager.computed["compiled"], made.computed["compiled"]) == (False, True)
    assert losses(made) == pytest.approx(losses(eager), rel=1e-4)
    assert made.model.state_dict().keys() == eager.model.state_dict().keys()
    ends = [outcome.progress.history[-1]["val/loss"] for outcome in (made, eager)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


MODELS = pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@MODELS
def test_compiled_and_eager_agree(
    model: str, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    agree(model, "cpu", make_run, make_inputs, tmp_path)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@MODELS
def test_compiled_and_eager_agree_on_a_gpu(
    model: str, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    assert torch.cuda.is_available()
    agree(model, "cuda", make_run, make_inputs, tmp_path)
