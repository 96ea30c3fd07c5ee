"""Do runs get the workers that they need, and more only where all of them end sooner so?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.campaign import Campaign, Machine
from isoflop.design import grid
from isoflop.execution import Places
from isoflop.orchestration import staffing
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.job import result
from isoflop.orchestration.staffing import (
    LENGTH,
    MEMORY,
    Place,
    Staff,
    makespan,
    staffed,
    stages,
    taken,
    wall,
)
from isoflop.run import Evaluation, Run
from isoflop.training.means import Means
from isoflop.training.memory import STATE
from isoflop.training.sharding import FITS

from .conftest import tiny

MakeRun = Callable[..., Run]
HOUR = 3600.0


def runs(make_run: MakeRun, count: int) -> dict[str, Run]:
    """Batches of eight rows, which 2, 4 or 8 can share."""
    made = [make_run(seed=seed, batch_tokens=256, tokens=2560) for seed in range(count)]
    return {run.identity: run for run in made}


def test_small_runs_have_one_worker_each(make_run: MakeRun) -> None:
    made = runs(make_run, 16)
    found = staffed(made, dict.fromkeys(made, HOUR), Place(units=8, memory=80 * 10**9))
    assert set(found.values()) == {Staff(1)}


def test_a_long_run_is_shared_so_that_nobody_waits_for_it(make_run: MakeRun) -> None:
    """Eight hours and seven times one, on eight devices."""
    made = runs(make_run, 8)
    long, *others = made
    seconds = {long: 8 * HOUR, **dict.fromkeys(others, HOUR)}
    found = staffed(made, seconds, Place(units=8))
    assert found[long] == Staff(8, LENGTH) and str(found[long]) == "8, length"
    assert {found[name] for name in others} == {Staff(1)}
    numbers = {name: own.workers for name, own in found.items()}
    assert wall(numbers, seconds, 8) < 0.4 * makespan(seconds.values(), 8)
    assert list(stages(numbers)) == [8, 1], "those with most workers go first"


def test_what_is_short_is_not_worth_a_group(make_run: MakeRun) -> None:
    made = runs(make_run, 2)
    long, short = made
    found = staffed(made, {long: 40.0, short: 1.0}, Place(units=8))
    assert set(found.values()) == {Staff(1)}, "a group would take longer to start than it gains"


def test_what_one_device_cannot_hold_is_split_over_several(make_run: MakeRun) -> None:
    made = runs(make_run, 3)
    state = STATE * next(iter(made.values())).model.parameters().all
    seconds = dict.fromkeys(made, HOUR)
    third = Place(units=8, memory=int(state / FITS / 3))
    assert third.fewest(next(iter(made.values()))) == 4, "three cannot share eight rows"
    found = staffed(made, seconds, third)
    assert set(found.values()) == {Staff(4, MEMORY)}
    whole = staffed(made, seconds, third, Means(shard="off"))
    assert set(whole.values()) == {Staff(2, LENGTH)}, "eight devices, three runs"
    with pytest.raises(ValueError, match=r"2 workers with .* GB each cannot hold it"):
        staffed(made, seconds, replace(third, units=2))
    judged = Evaluation(noise_scale=True)
    measured = make_run(evaluation=judged, batch_tokens=256, tokens=2560)
    with pytest.raises(ValueError, match="noise_scale is True; for a model in shards"):
        third.fewest(measured)
    assert Place(units=8).fewest(measured, Means()) == 1
    assert Place(units=8).fewest(next(iter(made.values())), Means(shard="on")) == 2


@given(
    st.lists(st.floats(1.0, 1e5), min_size=1, max_size=12),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
)
def test_it_never_ends_later_than_with_one_worker_each(seconds: list[float], units: int) -> None:
    made = {str(index): EIGHT_ROWS for index in range(len(seconds))}
    known = {str(index): value for index, value in enumerate(seconds)}
    numbers = {n: own.workers for n, own in staffed(made, known, Place(units=units)).items()}
    assert all(8 % n == 0 and n <= units for n in numbers.values())
    assert wall(numbers, known, units) <= makespan(seconds, units)


class _Rows:
    """What `staffed` asks of a run whose memory is not bounded."""

    rows = 8

    class model:
        @staticmethod
        def parameters() -> object:
            return type("Count", (), {"all": 1})

    class objective:
        contrast = 0


EIGHT_ROWS: Run = _Rows()  # type: ignore[assignment]


def test_several_workers_have_their_price() -> None:
    assert taken(100.0, 1) == 100.0
    assert taken(1e6, 2) == pytest.approx(staffing.START_SECONDS + 5e5 * 1.15)


def test_sizes_decide_only_where_they_are_asked(corpus: Path, tmp_path: Path) -> None:
    """One core, or one GPU, each; what a user settles; and workers are no part of a run."""
    study = tiny(corpus)
    plain, two = (
        Campaign.prepare(study, Machine(storage=tmp_path, workers=n), list(study.points), [])
        for n in (None, 2)
    )
    cores = Resources(cpus=8, gpus=0)
    assert set(Places.of(plain, plain.chosen, None, cores).workers.values()) == {1}
    assert str(Places.of(plain, plain.chosen, None, cores)) == "8 at once"
    asked = Places.of(two, two.chosen, None, cores)
    assert set(asked.workers.values()) == {2} and str(asked) == "4 at once with 2 workers each"
    assert [job.run.identity for job in plain.jobs] == [job.run.identity for job in two.jobs]


@pytest.mark.slow
def test_a_long_point_is_shared_and_short_ones_follow(
    ray_cluster: Resources,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through Ray: the longest of three points by two workers, the others side by side."""
    monkeypatch.setattr(staffing, "START_SECONDS", 0.0)
    study = replace(tiny(corpus), points=grid(arch=["gpt2"], width=[4, 8, 64], tokens=[4_000]))
    machine = Machine(storage=tmp_path, workers="auto", at_once=2)
    made = Campaign.prepare(study, machine, list(study.points), [])
    monkeypatch.setattr("isoflop.plan.alone", lambda jobs, flops=None: {
        job.run.identity: float(job.axes["width"]) for job in jobs
    })  # fmt: skip
    assert made.go() == 0
    shown = capsys.readouterr().out
    assert "3 runs to train, 1 at once with 2 workers each, then 2 at once" in shown
    ended = {job.axes["width"]: result(job.folder) or {} for job in made.jobs}
    assert {width: values["workers"] for width, values in ended.items()} == {4: 1, 8: 1, 64: 2}
    assert {values["status"] for values in ended.values()} == {"finished"}
