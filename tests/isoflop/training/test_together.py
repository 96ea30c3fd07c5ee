"""Is a run the same trained beside others as alone? To rounding, in all that is recorded of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from isoflop.data import feed
from isoflop.data.prepare import Prepared
from isoflop.run import AdamW, Evaluation, Muon, Run, Schedule
from isoflop.targets import MaskedDiffusion, SpanDenoising
from isoflop.training.distributed import Ranks
from isoflop.training.evaluate import HeldOut
from isoflop.training.loop import Hooks, Inputs, Outcome, train
from isoflop.training.together import Member, refusal, shape, train_together
from models import ZOO, Config

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]
SHAPE: dict[str, int] = {"vocab": 8, "context": 32, "width": 16, "depth": 2, "heads": 2}
DECODERS = [ZOO[name](**{**SHAPE, "vocab": 0}) for name in ("gpt2", "llama", "lformer", "modern")]


def members(runs: list[Run], make_inputs: MakeInputs, folder: Path, **hooks: Any) -> list[Member]:
    return [
        Member(run=run, inputs=make_inputs(run), folder=folder / str(n), hooks=Hooks(**hooks))
        for n, run in enumerate(runs)
    ]


def differing(make_run: MakeRun, model: str | Config = "gpt2", **changes: Any) -> list[Run]:
    """In all that may differ."""
    return [
        make_run(model, optimizer=AdamW(lr=1e-3), **changes),
        make_run(model, optimizer=AdamW(lr=5e-3, weight_decay=0.0), seed=1, **changes),
        make_run(model, optimizer=AdamW(lr=3e-3, betas=(0.8, 0.99)), seed=2, **changes),
    ]


def assert_close(one: Outcome, other: Outcome) -> None:
    assert one.status == other.status
    left, right = one.progress.history, other.progress.history
    assert [record["step"] for record in left] == [record["step"] for record in right]
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in ("train/loss", "val/loss", "gradient_norm"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=2e-4), (name, a["step"])
        assert a.get("learning_rate") == b.get("learning_rate")
    for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("model", DECODERS, ids=lambda model: model.name)
def test_each_is_as_alone(
    model: Config, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    runs = differing(make_run, model)
    together = train_together(members(runs, make_inputs, tmp_path / "together"), Ranks())
    for n, (run, outcome) in enumerate(zip(runs, together, strict=True)):
        alone = train(run, make_inputs(run), Ranks(), tmp_path / "alone" / str(n))
        assert_close(outcome, alone)


def test_documents_and_averages(make_run: MakeRun, bytes_text: Prepared, tmp_path: Path) -> None:
    """Rows of unequally many predicted tokens; averaged weights that are judged."""
    data = replace(make_run().data, rows="packed")
    evaluation = Evaluation(tokens=512, times=2, weights="ema")
    sizes = torch.from_numpy(bytes_text.tokenizer().token_bytes())

    def inputs(run: Run) -> Inputs:
        held_out = HeldOut.of(feed.held_out(run, bytes_text), sizes, {"": 1.0})
        return Inputs(batches=feed.batches(run, bytes_text), held_out=held_out)

    runs = differing(make_run, data=data, ema=0.9, evaluation=evaluation)
    assert inputs(runs[0]).batches.batch(0).documents is not None
    together = train_together(members(runs, inputs, tmp_path / "together"), Ranks())
    for n, (run, outcome) in enumerate(zip(runs, together, strict=True)):
        alone = train(run, inputs(run), Ranks(), tmp_path / "alone" / str(n))
        assert_close(outcome, alone)


def test_a_checkpoint_goes_on_either_way(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """Stopped together, gone on with alone; and one that is ahead of the others goes on after them,
    together again."""
    runs = differing(make_run)
    whole = train_together(members(runs, make_inputs, tmp_path / "whole"), Ranks())
    asked = iter([False] * 15)
    stopping = members(runs, make_inputs, tmp_path / "cut", stop=lambda: next(asked, True))
    cut = train_together(stopping, Ranks())
    assert {outcome.status for outcome in cut} == {"stopped"}
    alone = train(runs[0], make_inputs(runs[0]), Ranks(), tmp_path / "cut" / "0")
    assert_close(alone, whole[0])
    rest = train_together(members(runs, make_inputs, tmp_path / "cut"), Ranks())
    for outcome, other in zip(rest, whole, strict=True):
        assert outcome.progress.step == other.progress.step
        last, expected = outcome.progress.history[-1], other.progress.history[-1]
        assert last["val/loss"] == pytest.approx(expected["val/loss"], rel=2e-4)


def test_one_that_diverges_leaves_the_others_alone(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    runs = [make_run(), make_run(optimizer=AdamW(lr=1e30, clip=1.0)), make_run(seed=3)]
    ended = train_together(members(runs, make_inputs, tmp_path / "together"), Ranks())
    assert [outcome.status for outcome in ended] == ["finished", "diverged", "finished"]
    alone = train(runs[2], make_inputs(runs[2]), Ranks(), tmp_path / "alone")
    assert_close(ended[2], alone)


def test_what_belongs_together(make_run: MakeRun) -> None:
    one = make_run()
    assert shape(one) is not None
    for change in ({"seed": 5}, {"optimizer": AdamW(lr=0.5)}, {"schedule": Schedule(decay="wsd")}):
        assert shape(make_run(**change)) == shape(one)
    assert shape(make_run(tokens=2 * (one.tokens or 0))) != shape(one)
    assert shape(make_run("llama")) != shape(one)
    assert shape(make_run(optimizer=Muon(lr=1e-3))) is None
    assert shape(make_run("diffusion", objective=MaskedDiffusion())) is None
    assert shape(make_run("t5", objective=SpanDenoising())) is None


def test_what_cannot_is_named() -> None:
    for model in DECODERS:
        assert refusal(replace(model, vocab=8)) is None
    assert refusal(ZOO["moe"](**SHAPE)) == "it adds to the loss of its own accord"
    assert "on a parameter" in (refusal(ZOO["char_rnn"](vocab=8, width=16, depth=1)) or "")


def test_unlike_runs_are_refused(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="one shape"):
        train_together(members([make_run(), make_run("llama")], make_inputs, tmp_path), Ranks())
