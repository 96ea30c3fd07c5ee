"""Is the budget of rollouts kept, and does a run still get all that it was to be asked?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from isoflop.orchestration import capturing
from isoflop.orchestration.capturing import Capturing
from isoflop.orchestration.job import Job, execute, result
from isoflop.orchestration.later import carry_out, waits
from isoflop.rollouts.capture import Capture, Captured, read
from isoflop.rollouts.timing import Budget
from isoflop.run import Rollouts, Run, Spec
from isoflop.training.checkpoint import Progress
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]

SETS = (
    Spec(name="trained", kind="train_prefix", count=3, prefix_tokens=6, seeds=1, new_tokens=8),
    Spec(name="mean", prompts=("def ",), seeds=2, new_tokens=8, weights="ema"),
)
ASKED = Rollouts(
    prompts=("", "def "), seeds=2, new_tokens=8, captures=4, specs=SETS, novelty=True, budget=0.02
)
KEY = ["step", "spec", "prompt_id", "sample_id"]


def quiet(records: list[Record]) -> None: ...


def rows(job: Job) -> pd.DataFrame:
    return read(job.folder / "rollouts").drop(columns="seconds").sort_values(KEY, ignore_index=True)


class Clock:
    """Goes on by what each thing is said to take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Callable[..., list[int]]:
    """Lets a run of 1,000 steps pass by that clock; the steps that were captured in it."""

    def go(run: Run, *, step: float, capture: float, probe: float = 0.0) -> list[int]:
        taken: list[int] = []

        def foretold(self: Capture, model: Any, clock: Clock) -> float:
            clock.now += probe
            return capture

        def asked(self: Capture, model: Any, *, step: int, **others: Any) -> Captured:
            clock.now += capture
            taken.append(step)
            return Captured(self.path(step), {}, capture, 1, False)

        monkeypatch.setattr(Capture, "foretold", foretold)
        monkeypatch.setattr(Capture, "__call__", asked)
        own = Capturing(run, [_capture(run)], Ranks(), clock)
        progress = Progress()
        for at in own.steps:
            progress.seconds, progress.step = at * step, at
            began = clock.now
            record = own(run.model.build(), step=at, progress=progress)
            progress.capture_seconds += clock.now - began
            progress.history.append({"step": at, **record})
        go.spent, go.waits = progress.capture_seconds, capturing.waiting(progress.history)  # type: ignore[attr-defined]
        return taken

    return go


def _capture(run: Run) -> Capture:
    from pathlib import Path

    from isoflop.data.tokenizers import named
    from isoflop.rollouts.prompts import written

    text = named("bytes")
    return Capture(
        run.rollouts.asked[0], (written("x", text),), text,
        folder=Path("nowhere"), context=run.model.context, run=run.identity,
    )  # fmt: skip


SIMPLE = Rollouts(prompts=("x",), new_tokens=8, captures=4, budget=0.02)


@pytest.mark.parametrize(
    ("seconds", "taken", "later"),
    [
        (1.0, [0, 10, 100, 1000], []),  # of 1,000 s of training 20 may go
        (6.0, [0, 10, 1000], []),  # with what must still come there is no time for another
        (8.0, [0, 1000], []),
        (15.0, [1000], [0]),
        (21.0, [], [0, 1000]),
    ],
)
def test_captures_stay_within_their_budget(
    make_run: MakeRun, timed: Any, seconds: float, taken: list[int], later: list[int]
) -> None:
    """Whatever a capture takes: the end comes before the start, and what passes comes last."""
    run = make_run(tokens=1000 * 128, rollouts=SIMPLE)
    found = timed(run, step=1.0, capture=seconds)
    assert (found, timed.waits) == (taken, later)
    assert timed.spent <= 0.02 * 1000


@pytest.mark.parametrize("probe", [0.1, 2.0])
def test_finding_out_what_a_capture_takes_counts(
    make_run: MakeRun, timed: Any, probe: float
) -> None:
    run = make_run(tokens=1000 * 128, rollouts=SIMPLE)
    found = timed(run, step=1.0, capture=6.4, probe=probe)
    assert found == ([0, 10, 1000] if probe < 1 else [0, 1000])
    assert timed.spent <= 0.02 * 1000


def test_a_run_too_short_for_any_is_not_even_timed(make_run: MakeRun, timed: Any) -> None:
    run = make_run(tokens=1000 * 128, rollouts=SIMPLE)
    assert timed(run, step=0.001, capture=0.01, probe=9.0) == []
    assert timed.spent == 0


def test_who_insists_has_the_ends_at_once(make_run: MakeRun, timed: Any) -> None:
    run = make_run(tokens=1000 * 128, rollouts=replace(SIMPLE, beyond="now"))
    assert timed(run, step=1.0, capture=50.0) == [0, 1000]
    assert timed.waits == []
    assert run.identity == make_run(tokens=1000 * 128, rollouts=SIMPLE).identity


@pytest.fixture
def whole(make_run: MakeRun, make_job: MakeJob) -> Job:
    """A run that was asked everything in its time."""
    job = make_job(make_run("llama", ema=0.9, rollouts=replace(ASKED, beyond="now", budget=0.99)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "affords", lambda self, **times: True)
        assert execute(job, Ranks(), quiet)["status"] == "finished"
    return job


@pytest.fixture
def another(whole: Job, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """The same in a folder of its own, asked when there is time."""
    run = replace(whole.run, rollouts=replace(whole.run.rollouts, beyond="later"))
    assert run.identity == whole.run.identity
    yield replace(whole, run=run, folder=tmp_path_factory.mktemp("another"))


def losses(job: Job) -> list[tuple[float, float | None]]:
    history = json.loads((job.folder / "history.json").read_text())
    return [(r["step"], r.get("train/loss")) for r in history]


def test_step_0_is_asked_when_there_is_time_with_equal_rows(
    whole: Job, another: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "affords", lambda self, **times: True)
    values = execute(another, Ranks(), quiet)
    assert values["captures_waiting"] == [] and values["captures_skipped"] == 0
    pd.testing.assert_frame_equal(rows(whole), rows(another))
    assert losses(whole) == losses(another), "training does not notice"
    history = json.loads((another.folder / "history.json").read_text())
    assert history[0]["step"] == 0 and "rollout/entropy" in history[0]


def test_what_waits_is_made_after_the_run_with_equal_rows(
    whole: Job, another: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "affords", lambda self, **times: False)
    values = execute(another, Ranks(), quiet)
    assert (values["status"], values["captures_waiting"]) == ("finished", [0, 20])
    assert not len(read(another.folder / "rollouts")) and values["rollouts"] == {}
    assert waits(another) == [0, 20]
    told: list[Record] = []
    late = carry_out(replace(another, late=True), Ranks(), told.extend)
    assert late == result(another.folder)
    assert (late["captures_waiting"], late["captures_later"]) == ([], 2)
    assert late["later_seconds"] > 0 and late["loss"] == values["loss"]
    assert [record["step"] for record in told] == [0, 20]
    before, after = rows(whole), rows(another)
    kept = before[before["step"].isin([0, 20])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, after)
    assert losses(whole) == losses(another)
    same = result(whole.folder)
    assert same is not None and late["rollouts"] == same["rollouts"]
    assert not waits(another)
    again = carry_out(replace(another, late=True), Ranks(), told.extend)
    assert (again, len(told)) == (late, 2), "a process that comes to it late changes nothing"


def test_what_fails_after_the_run_leaves_it_finished(
    another: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "affords", lambda self, **times: False)
    execute(another, Ranks(), quiet)
    final = next((another.folder / "checkpoints").glob("step-*"))
    (final / "model.safetensors").write_bytes(b"torn")
    values = carry_out(replace(another, late=True), Ranks(), quiet)
    assert values["status"] == "finished"
    assert "rollouts that waited for the end of the study failed" in values["warnings"][0]
    assert waits(another) == [0, 20], "the next command tries again"
