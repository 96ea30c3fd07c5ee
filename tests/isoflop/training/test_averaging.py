"""Are averaged weights what the paper says, kept over a restart, and used where they are asked?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from isoflop.orchestration.backfill import backfill
from isoflop.orchestration.job import Job, execute
from isoflop.rollouts.capture import read
from isoflop.run import Evaluation, Rollouts, Run, Spec, Text
from isoflop.training.averaging import Average
from isoflop.training.checkpoint import AVERAGED, Progress
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Hooks, Inputs, Record, train
from models import ZOO
from models.interface import Model

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]
MakeJob = Callable[..., Job]


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


class Seen:
    """A capture at every step that keeps both models' weights."""

    def __init__(self, steps: int) -> None:
        self.steps = tuple(range(steps + 1))
        self.raw: list[Tensor] = []
        self.averaged: list[Tensor] = []

    def __call__(
        self, model: Model, *, step: int, progress: Progress, averaged: Model | None
    ) -> Record:
        assert averaged is not None
        self.raw.append(vector(model))
        self.averaged.append(vector(averaged))
        return {}


@pytest.mark.parametrize("model", ["gpt2", "llama-tied"])
def test_it_is_the_exponential_average_of_the_weights(
    model: str, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run(model, ema=0.8)
    seen = Seen(run.steps)
    train(run, make_inputs(run), Ranks(), tmp_path, Hooks(capture=seen))
    expected = seen.raw[1]
    assert torch.equal(seen.averaged[0], seen.raw[0])
    assert torch.equal(seen.averaged[1], seen.raw[1]), "it begins as the first step's"
    for raw, averaged in zip(seen.raw[2:], seen.averaged[2:], strict=True):
        expected = 0.8 * expected + 0.2 * raw
        torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-6)


def test_training_does_not_know_of_it(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    with_it, without = make_run("llama", ema=0.9), make_run("llama")
    first = train(with_it, make_inputs(with_it), Ranks(), tmp_path / "with")
    second = train(without, make_inputs(without), Ranks(), tmp_path / "without")
    assert torch.equal(vector(first.model), vector(second.model))
    assert without.identity != with_it.identity
    assert second.averaged is None


def test_a_stopped_run_goes_on_with_the_same_average(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("llama-tied", ema=0.9, evaluation=Evaluation(tokens=512, times=3, weights="ema"))
    whole = train(run, make_inputs(run), Ranks(), tmp_path / "whole")
    looks = iter(range(5))
    stopping = Hooks(stop=lambda: next(looks) == 4)
    stopped = train(run, make_inputs(run), Ranks(), tmp_path / "parts", stopping)
    assert stopped.status == "stopped"
    resumed = train(run, make_inputs(run), Ranks(), tmp_path / "parts")
    assert resumed.averaged is not None and whole.averaged is not None
    assert torch.equal(vector(resumed.averaged), vector(whole.averaged))
    losses = [
        [r["val/loss"] for r in outcome.progress.history if "val/loss" in r]
        for outcome in (whole, resumed)
    ]
    assert losses[0] == losses[1]


def test_the_averaged_weights_are_judged_where_that_is_asked(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    found = {}
    for weights in ("raw", "ema"):
        run = make_run(
            "gpt2", ema=0.95, evaluation=Evaluation(tokens=512, times=2, weights=weights)
        )
        outcome = train(run, make_inputs(run), Ranks(), tmp_path / weights)
        found[weights] = [r["val/loss"] for r in outcome.progress.history if "val/loss" in r]
    assert found["raw"][0] == found["ema"][0], "before the first step they are the same"
    assert found["ema"][-1] > found["raw"][-1] + 0.05, "20 steps: the average lags behind"


def test_a_checkpoint_without_its_average_is_not_read(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("gpt2", ema=0.9)
    train(run, make_inputs(run), Ranks(), tmp_path)
    (final,) = tmp_path.glob("step-*")
    (final / AVERAGED).unlink()
    warnings: list[str] = []
    again = train(run, make_inputs(run), Ranks(), tmp_path, Hooks(warn=warnings.append))
    assert again.status == "finished"
    assert any(AVERAGED in line or "ema" in line for line in warnings)


def test_rollouts_of_averaged_weights(
    make_run: MakeRun, make_job: MakeJob, text_folder: Path, cache: Path
) -> None:
    """Captured while it trains or afterwards: the same rows, and others than the raw weights'."""
    asked = Rollouts(
        specs=(
            Spec(name="raw", prompts=("def ",), seeds=4, new_tokens=16),
            Spec(name="ema", prompts=("def ",), seeds=4, new_tokens=16, weights="ema"),
        ),
        captures=2,
        budget=1e6,
    )
    text = Text(source=str(text_folder), tokenizer="bytes", validation=0.1)
    run = make_run("llama", ema=0.9, rollouts=asked, data=text)
    job = make_job(run)
    values = execute(job, Ranks(), lambda records: None)
    assert values["status"] == "finished", values.get("traceback")
    rows = read(job.folder / "rollouts")
    last = rows[rows["step"] == run.steps]
    texts = {name: list(group["text"]) for name, group in last.groupby("spec")}
    assert texts["raw"] != texts["ema"]
    assert (rows["weights"] == rows["spec"]).all()
    first = rows[rows["step"] == 0]
    begun = {name: list(group["text"]) for name, group in first.groupby("spec")}
    assert begun["raw"] == begun["ema"]
    for file in (job.folder / "rollouts").glob(f"*{run.steps:08d}*.parquet"):
        file.unlink()
    backfill(job.folder, ZOO, cache)
    again = read(job.folder / "rollouts")
    again = again[again["step"] == run.steps]
    assert {name: list(group["text"]) for name, group in again.groupby("spec")} == texts


def test_what_is_not_kept_cannot_be_asked(make_run: MakeRun) -> None:
    with pytest.raises(ValueError, match="no averaged weights"):
        make_run("gpt2", evaluation=Evaluation(weights="ema"))
    asked = Rollouts(specs=(Spec(name="ema", prompts=("a",), weights="ema"),))
    with pytest.raises(ValueError, match="no averaged weights"):
        make_run("gpt2", rollouts=asked)
    with pytest.raises(ValueError, match=r"ema is 1\.0"):
        make_run("gpt2", ema=1.0)


def test_it_counts_on_from_what_was_loaded(make_run: MakeRun) -> None:
    run = replace(make_run("gpt2"), ema=0.5)
    model = run.model.build()
    average = Average.of(run, model)
    assert average is not None
    average.goes_on(7)
    before = vector(average.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update(model)
    torch.testing.assert_close(vector(average.model), before + 0.5)
