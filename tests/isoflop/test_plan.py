"""Is the plan's arithmetic right, and are its rates measured?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop import plan
from isoflop.orchestration.job import Job
from isoflop.orchestration.staffing import makespan
from isoflop.plan import PLAN, Device, against_plan, said_and_took, show, throughput
from isoflop.progress import duration
from isoflop.run import Run, short
from isoflop.training import peak

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]


@pytest.mark.parametrize(("seconds", "slots", "expected"), [
    ([], 2, 0.0),
    ([5.0], 3, 5.0),
    ([1.0, 2.0, 3.0], 1, 6.0),
    ([3.0, 1.0, 2.0], 2, 3.0),
    ([4.0, 3.0, 3.0], 2, 6.0),
    ([1.0, 1.0, 2.0], 2, 2.0),
])  # fmt: skip
def test_makespan(seconds: list[float], slots: int, expected: float) -> None:
    assert makespan(seconds, slots) == expected


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30), st.integers(1, 9))
def test_makespan_is_near_the_best_possible(seconds: list[float], slots: int) -> None:
    """Graham 1966: whatever the order, at most 1 - 1/slots of the longest above the mean load."""
    found = makespan(seconds, slots)
    least = max(max(seconds), sum(seconds) / slots)
    most = sum(seconds) / slots + max(seconds) * (1 - 1 / slots)
    assert least * (1 - 1e-9) <= found <= most * (1 + 1e-9)


def test_rates_are_measured_for_every_model(make_run: MakeRun) -> None:
    runs = [make_run("gpt2"), make_run("gpt2", seed=1), make_run("llama")]
    rates = throughput(runs)
    assert set(rates) == {run.model for run in runs}
    assert all(1e6 < rate < 1e15 for rate in rates.values())


def test_models_too_large_to_try_take_the_rate_of_the_largest_tried(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = sorted(
        (make_run("gpt2"), make_run("llama")),
        key=lambda run: run.model.flops_per_token().training,
    )
    tried: list[Run] = []

    def measured(run: Run) -> float:
        tried.append(run)
        return 7.0

    monkeypatch.setattr(plan, "LARGEST_STEP", 1.0)
    monkeypatch.setattr(plan, "_measure", measured)
    assert throughput([large, small]) == {small.model: 7.0, large.model: 7.0}
    assert tried == [small], "the smallest is always tried"


def test_show_adds_up(
    make_run: MakeRun,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = [make_job(make_run(seed=seed), str(seed), seed=seed) for seed in range(3)]
    rate = jobs[0].run.training_flops / 60.0  # a minute each, and a third of one of evaluation
    monkeypatch.setattr(plan, "throughput", lambda runs: {jobs[0].run.model: rate})
    show(jobs, jobs[:2], workers=1, at_once=1)
    shown = capsys.readouterr().out
    assert shown.count("seed=") == 3 and shown.count("finished") == 1
    each = 60.0 * (1 + 512 * 3 / 3 / 2560)
    total = 2.0 * jobs[0].run.training_flops
    assert f"2 of 3 runs to train: {short(total)} FLOPs" in shown
    assert f"about {duration(2 * each)} with 1 at once" in shown
    show(jobs, jobs[:2], workers=1, at_once=2)
    assert f"about {duration(each)} with 2 at once" in capsys.readouterr().out
    show(jobs, [], workers=1, at_once=None)
    assert "0 of 3 runs to train: 0 FLOPs, about 0 s" in capsys.readouterr().out


def test_a_named_gpu_is_planned_for_without_measuring(
    make_run: MakeRun,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Steps that would take an H100 far less than it needs to be told of them are said."""
    monkeypatch.setattr(plan, "throughput", lambda runs: pytest.fail("nothing is measured"))
    jobs = [make_job(make_run())]
    device = Device.parse("H100:0.5")
    seconds = show(jobs, jobs, workers=2, at_once=None, price=3600.0, device=device)
    tokens = 2560 + 512 * 3 / 3
    expected = tokens * jobs[0].run.model.flops_per_token().training / (0.5 * 989e12)
    assert seconds[jobs[0].run.identity] == pytest.approx(expected)
    shown = capsys.readouterr().out
    assert "with 1 at once on 2 H100 at 50% of its peak" in shown
    assert "1 of 1 points have steps of less than 2 ms there" in shown


def test_workers_by_size_stand_in_the_plan(
    make_run: MakeRun, make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    """On several GPUs, where nobody settles their number: with the reason, of what is left."""
    done, *left = [make_job(make_run(seed=seed), str(seed), seed=seed) for seed in range(4)]
    long = make_job(make_run(tokens=2560 * 10**6), "long", seed=9)
    device = Device.parse("L4:1e-5")
    show([done, *left, long], [*left, long], None, 4, device=device)
    lines = {line.split()[0]: line.split()[-2:] for line in capsys.readouterr().out.splitlines()}
    assert lines["seed=9"] == ["4,", "length"]
    assert [lines[f"seed={n}"][-1] for n in (1, 2, 3)] == ["1", "1", "1"]
    assert lines["seed=0"][-1] == "finished"
    for workers, at_once in ((2, 4), (None, 1)):
        show([long], [long], workers, at_once, device=device)
        assert "workers" not in capsys.readouterr().out.splitlines()[0]


def test_every_listed_gpu_has_a_memory() -> None:
    assert peak.GIGABYTES.keys() == peak.SHEETS.keys()
    assert peak.capacity("NVIDIA H100 80GB HBM3") == 80 * 10**9 and peak.capacity("G1") is None


@pytest.mark.parametrize(("text", "said"), [
    ("H1000", "no GPU of that name is known; known are"), ("H100:2", "above 0, and at most 1"),
    ("H100:much", "could not convert"),
])  # fmt: skip
def test_a_gpu_that_cannot_be_planned_for(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Device.parse(text)


def test_what_was_said_stands_beside_what_it_took(
    make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    finished, missing = (make_job(make_run(seed=seed), str(seed)) for seed in (0, 1))
    assert against_plan(tmp_path, [finished]) == "", "nothing was planned"
    plans = {job.run.identity: 8.0 for job in (finished, missing)}
    (tmp_path / PLAN).write_text(json.dumps(plans))
    took = {"seconds": 21.0, "shared_seconds": 7.0, "evaluation_seconds": 2.0}
    finished.folder.mkdir()
    (finished.folder / "result.json").write_text(json.dumps({"status": "finished", **took}))
    assert said_and_took(tmp_path, [finished, missing]) == {finished.run.identity: (8.0, 16.0)}
    assert "planned 8 s" in against_plan(tmp_path, [finished, missing])
    assert "took 16 s, 2.00 times that" in against_plan(tmp_path, [finished, missing])


@pytest.mark.parametrize("model", ["diffusion", "t5"])
def test_every_family_of_models_can_be_timed(model: str, make_run: MakeRun) -> None:
    run = make_run(model)
    assert throughput([run])[run.model] > 0
