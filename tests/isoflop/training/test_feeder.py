"""Does the thread only work earlier? To the bit the same, errors told, and nothing left running."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from isoflop.data import feed
from isoflop.data.prepare import Prepared
from isoflop.data.rows import Rows
from isoflop.objectives import Batch
from isoflop.run import Run, Text
from isoflop.training.distributed import Ranks
from isoflop.training.feeder import Feeder, ahead
from isoflop.training.loop import Batches, Hooks, Inputs, Outcome, train
from models import GPT2Config

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]


def numbered(step: int) -> Batch:
    return Batch(inputs={}, targets=torch.full((1, 1), step))


def feeders() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("isoflop-feeder")]


def facts(outcome: Outcome) -> list[dict[str, float]]:
    clocks = ("seconds", "tokens_per_second", "data/waited")
    return [{k: v for k, v in r.items() if k not in clocks} for r in outcome.progress.history]


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("steps_ahead", [0, 1, 2, 9])
def test_every_step_gets_its_own_batch(steps_ahead: int, steps: int) -> None:
    with Feeder(numbered, start=3, stop=3 + steps, ahead=steps_ahead) as feeder:
        found = [int(feeder.batch(step).targets) for step in range(3, 3 + steps)]
    assert found == list(range(3, 3 + steps))
    assert not feeders()


def test_it_works_so_far_ahead_and_no_further() -> None:
    made: list[int] = []

    def frame(step: int) -> Batch:
        made.append(step)
        return numbered(step)

    with Feeder(frame, start=0, stop=10, ahead=2) as feeder:
        feeder.batch(0)
        deadline = time.monotonic() + 30
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert made == [0, 1, 2]


def test_waiting_is_counted_and_batches_made_ahead_cost_none() -> None:
    def slow(step: int) -> Batch:
        time.sleep(0.05)
        return numbered(step)

    with Feeder(slow, start=0, stop=4, ahead=0) as feeder:
        for step in range(4):
            feeder.batch(step)
        assert feeder.waited >= 0.2
    with Feeder(slow, start=0, stop=4, ahead=3) as feeder:
        feeder.batch(0)
        first = feeder.waited
        assert first >= 0.05
        while not all(one.done() for one in feeder._waiting):
            time.sleep(0.01)  # the loop computes
        for step in range(1, 4):
            feeder.batch(step)
        assert feeder.waited - first < 0.05


def test_batches_are_framed_on_another_thread() -> None:
    names: list[str] = []

    def frame(step: int) -> Batch:
        names.append(threading.current_thread().name)
        return numbered(step)

    for steps_ahead in (2, 0):
        with Feeder(frame, start=0, stop=1, ahead=steps_ahead) as feeder:
            feeder.batch(0)
    assert names[0].startswith("isoflop-feeder")
    assert names[1] == threading.current_thread().name


def test_leaving_by_an_error_waits_for_what_was_begun_and_begins_no_more() -> None:
    begun, go = threading.Event(), threading.Event()
    made: list[int] = []

    def frame(step: int) -> Batch:
        if step == 1:
            begun.set()
            assert go.wait(30)
        made.append(step)
        return numbered(step)

    with (
        pytest.raises(RuntimeError, match="the step failed"),
        Feeder(frame, start=0, stop=9, ahead=3) as feeder,
    ):
        feeder.batch(0)
        assert begun.wait(30)
        threading.Timer(0.05, go.set).start()
        raise RuntimeError("the step failed")
    assert made == [0, 1]
    assert not feeders()


def test_only_a_gpu_is_fed_ahead_by_default() -> None:
    assert (ahead("cpu"), ahead("cuda:3")) == (0, 2)
    with pytest.raises(ValueError, match="ahead is -1; it must be at least 0"):
        Feeder(numbered, start=0, stop=1, ahead=-1)


@pytest.mark.parametrize("model", ["gpt2", "diffusion", "t5"])
def test_a_fed_run_is_the_same_run_to_the_bit(
    model: str, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run(model)
    plain, fed = (
        train(run, replace(make_inputs(run), ahead=n), Ranks(), tmp_path / str(n)) for n in (0, 2)
    )
    assert facts(plain) == facts(fed)
    for name, weights in plain.model.state_dict().items():
        assert torch.equal(weights, fed.model.state_dict()[name]), name
    assert not feeders()


def test_a_fed_run_that_was_stopped_goes_on_as_if_it_had_not(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run()
    inputs = replace(make_inputs(run), ahead=2)
    whole = train(run, inputs, Ranks(), tmp_path / "whole")
    looks = iter([False] * 6)
    stopping = Hooks(stop=lambda: next(looks, True))
    stopped = train(run, inputs, Ranks(), tmp_path / "parts", stopping)
    assert (stopped.status, stopped.progress.step) == ("stopped", 7)
    assert not feeders()
    assert facts(train(run, inputs, Ranks(), tmp_path / "parts")) == facts(whole)


class Broken:
    """Batches that cannot be read at one step."""

    def __init__(self, inner: Batches, step: int) -> None:
        self.inner, self.step = inner, step

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows:
        if step == self.step:
            raise OSError(f"the disk is gone at step {step}")
        return self.inner.batch(step, rank, world)


def test_an_error_comes_in_the_loop_at_the_step_that_needs_the_batch(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run()
    inputs = make_inputs(run)
    broken = replace(inputs, batches=Broken(inputs.batches, 5), ahead=2)
    steps: list[float] = []
    hooks = Hooks(report=lambda records: steps.extend(r["step"] for r in records))
    with pytest.raises(OSError, match="the disk is gone at step 5"):
        train(run, broken, Ranks(), tmp_path, hooks)
    assert steps == [0, 1, 2, 3, 4, 5], "the steps before it were taken"
    assert not feeders()


@pytest.mark.gpu
def test_batches_for_a_gpu_are_pinned() -> None:
    with Feeder(numbered, start=0, stop=2, device="cuda:0", ahead=2) as feeder:
        assert feeder.batch(0).targets.is_pinned()
        assert int(feeder.batch(1).to("cuda:0").targets) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("rows", ["stream", "packed", "best-fit", "slide-in"])
def test_a_gpu_does_not_wait_for_its_batches(
    rows: Literal["stream", "packed", "best-fit", "slide-in"],
    make_run: MakeRun,
    make_inputs: MakeInputs,
    bytes_text: Prepared,
    tmp_path: Path,
) -> None:
    """The smallest model that anybody would put on one: no steps are shorter for their tokens."""
    run = make_run(
        GPT2Config(context=256, width=64, depth=2, heads=2),
        data=Text(source="somewhere", tokenizer="bytes", validation=0.1, rows=rows),
        batch_tokens=64 * 256,
        tokens=400 * 64 * 256,
    )
    inputs = replace(make_inputs(run), batches=feed.batches(run, bytes_text))
    history = train(run, inputs, Ranks(device="cuda:0"), tmp_path).progress.history
    later = history[len(history) // 2 :]  # once kernels are chosen
    assert statistics.median(record["data/waited"] for record in later) < 0.1, later
