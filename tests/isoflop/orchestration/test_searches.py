"""Does a search learn, remember, go on where it was left, and end what is not worth it?"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.orchestration.searches import Searching, inside, preview
from isoflop.space import Pruning, Settings, choice, integer, log, uniform

# MLflow and Optuna share SQLAlchemy, whose 2.1 deprecates what both still use.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

SPACE = {"lr": log(1e-4, 1e-1), "width": choice(16, 32), "arch": "llama"}


def valley(point: dict[str, Any]) -> float:
    """A bowl in ln(lr) with its bottom at 3e-3, deeper for the wider model."""
    return (math.log(point["lr"] / 3e-3)) ** 2 / 10 + (0.2 if point["width"] == 16 else 0.0)


def go(searching: Searching, trials: int, value: Callable[[dict[str, Any]], float]) -> list[Any]:
    """Ask and tell so many trials, one at a time; the points asked for."""
    points = []
    for _ in range(trials):
        asked = searching.ask()
        run = f"run-{asked.number}"
        searching.begin(asked, run)
        searching.tell(run, "finished", {"val/loss": value(asked.point)})
        points.append(asked.point)
    return points


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_what_is_learnt_beats_chance(sampler: Any) -> None:
    """The later half of the trials, over three searches, against points drawn at random."""
    late = []
    for seed in range(3):
        searching = Searching(None, "s", SPACE, Settings(sampler=sampler, trials=24, seed=seed))
        late += [valley(point) for point in go(searching, 24, valley)[12:]]
    drawn = random.Random(0)
    chance = [
        valley({"lr": 10 ** drawn.uniform(-4, -1), "width": drawn.choice([16, 32])})
        for _ in range(1000)
    ]
    assert sum(late) / len(late) < 0.7 * sum(chance) / len(chance)


@pytest.mark.parametrize("sampler", ["random", "qmc", "grid"])
def test_samplers_that_learn_nothing_cover_the_space(sampler: Any) -> None:
    space = {"width": integer(1, 4), "arch": choice("a", "b"), "depth": 2}
    searching = Searching(None, "s", space, Settings(sampler=sampler, trials=8))
    points = go(searching, 8, lambda point: float(point["width"]))
    assert all(inside(space, point) for point in points)
    assert len({(point["width"], point["arch"]) for point in points}) >= (
        8 if sampler == "grid" else 3
    )


def test_cma_es_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package cmaes"):
        Searching(None, "s", SPACE, Settings(sampler="cmaes"))


def test_cma_es_finds_the_bottom() -> None:
    pytest.importorskip("cmaes")
    space = {"lr": log(1e-4, 1e-1), "decay": uniform(0.0, 1.0), "width": 32}
    searching = Searching(None, "s", space, Settings(sampler="cmaes", trials=40))
    points = go(searching, 40, lambda p: valley(p) + (p["decay"] - 0.3) ** 2)
    assert min(valley(p) + (p["decay"] - 0.3) ** 2 for p in points) < 0.05


def test_a_search_goes_on_where_it_was_left(tmp_path: Path) -> None:
    settings = Settings(trials=6, sampler="random")
    first = Searching(tmp_path, "s", SPACE, settings)
    before = go(first, 3, valley)
    asked = first.ask()
    first.begin(asked, "left")
    half = first.ask()  # the driver dies before it knows which run this is
    first.study.ask()  # ... or what it asked for
    again = Searching(tmp_path, "s", SPACE, settings)
    left = again.resume()
    assert [one.point for one in left[:2]] == [asked.point, half.point]
    assert inside(SPACE, left[2].point) and again.asked == 6
    for one in left:
        again.begin(one, f"left-{one.number}")
        again.tell(f"left-{one.number}", "finished", {"val/loss": 1.0})
    after = go(again, 1, valley)
    points = [*before, *(one.point for one in left), *after]
    assert len({point["lr"] for point in points}) == 7, "it draws the same again"
    assert again.resume() == []
    states = [one.status for one in again.findings().tried]
    assert states == ["finished"] * 7


def test_optuna_reads_it(tmp_path: Path) -> None:
    """As optuna-dashboard does: by the storage's address alone."""
    import optuna

    go(Searching(tmp_path, "lr-search", SPACE, Settings()), 4, valley)
    found = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert found.study_name.startswith("lr-search-")
    assert len(found.trials) == 4
    assert found.metric_names == ["val/loss"]
    assert set(found.best_params) == {"lr", "width"}


def test_one_seed_one_search() -> None:
    points = [
        go(Searching(None, "s", SPACE, Settings(seed=seed)), 12, valley) for seed in (0, 0, 1)
    ]
    assert points[0] == points[1]
    assert points[0] != points[2]


def test_an_axis_that_depends_on_another_is_none_without_it() -> None:
    space = {
        "arch": choice("moe", "llama"),
        "experts": integer(2, 8).when(arch="moe"),
        "top": integer(1, 2).when(arch="moe"),
    }
    points = go(Searching(None, "s", space, Settings(trials=30)), 30, lambda p: p["top"] or 0.5)
    assert {point["arch"] for point in points} == {"moe", "llama"}
    for point in points:
        assert (point["experts"] is None) == (point["arch"] == "llama")
        assert inside(space, point)


def test_what_finished_before_is_learnt_from(tmp_path: Path) -> None:
    searching = Searching(None, "s", SPACE, Settings(trials=20))
    for power in range(-40, -10):
        point = {"lr": 10 ** (power / 10), "width": 32, "arch": "llama"}
        assert searching.warm(f"w{power}", point, {"val/loss": valley(point)})
    outside = {"lr": 0.5, "width": 32, "arch": "llama"}
    assert not searching.warm("o", outside, {"val/loss": 0.0})
    assert not searching.warm("p", {**outside, "lr": 1e-3, "arch": "gpt2"}, {"val/loss": 0.0})
    assert not searching.warm("q", {**outside, "lr": 1e-3}, {"val/loss": None})
    assert not searching.warm("w-20", {**outside, "lr": 1e-2}, {"val/loss": 0.0}), "known"
    assert searching.asked == 0
    points = go(searching, 6, valley)
    assert sum(map(valley, points)) / 6 < 0.3  # chance: 0.9


def test_several_aims_have_a_front_and_bounds_are_kept_out_of_it() -> None:
    settings = Settings(
        minimise=("val/loss", "flops"), constraints=("rollout/loop <= 0.5",), trials=30
    )
    searching = Searching(None, "s", {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)}, settings)
    for _ in range(30):
        asked = searching.ask()
        x, y = asked.point["x"], asked.point["y"]
        searching.begin(asked, f"r{asked.number}")
        values = {"val/loss": x + y, "flops": 1 - x + y, "rollout/loop": x}
        searching.tell(f"r{asked.number}", "finished", values)
    found = searching.findings()
    front = [one for one in found.tried if one.run in found.best]
    assert len(front) >= 2
    assert all(one.kept and one.point["x"] <= 0.5 for one in front)
    for one in front:
        for other in found.tried:
            if other.kept and other.run != one.run:
                assert not all(a <= b for a, b in zip(other.values, one.values, strict=True))
    explained = found.importance[1]
    assert sum(explained.values()) == pytest.approx(1.0)


def test_a_bound_steers_the_search() -> None:
    """The loss falls towards x = 1; beyond 0.6 the bound is broken."""
    late = {}
    for bounds in ((), ("rollout/loop <= 0.2",)):
        searching = Searching(
            None, "s", {"x": uniform(0.0, 1.0)}, Settings(constraints=bounds, trials=40)
        )
        asked = []
        for _ in range(40):
            trial = searching.ask()
            run, x = f"r{trial.number}", trial.point["x"]
            searching.begin(trial, run)
            values = {"val/loss": 1 - x, "rollout/loop": max(0.0, x - 0.4)}
            searching.tell(run, "finished", values)
            asked.append(x)
        late[bounds] = sum(asked[20:]) / 20
        found = searching.findings()
    best = next(one.point["x"] for one in found.tried if one.run in found.best)
    assert 0.5 < best <= 0.6
    assert late[()] > 0.8
    assert late["rollout/loop <= 0.2",] < 0.7


def test_what_diverged_is_avoided_and_what_failed_is_forgotten() -> None:
    searching = Searching(None, "s", {"lr": log(1e-4, 1e-1)}, Settings(trials=40))
    asked = []
    for _ in range(40):
        trial = searching.ask()
        run, lr = f"r{trial.number}", trial.point["lr"]
        searching.begin(trial, run)
        if lr > 1e-2:
            searching.tell(run, "diverged", {})
        else:
            searching.tell(run, "finished", {"val/loss": -math.log(lr)})
        asked.append(lr)
    assert sum(lr > 1e-2 for lr in asked[20:]) <= 8  # about 7 by chance, and the optimum beside it
    found = searching.findings()
    assert {one.status for one in found.tried} == {"finished", "pruned"}
    failing = searching.ask()
    searching.begin(failing, "bad")
    searching.tell("bad", "failed", {})
    assert searching.findings().tried[-1].status == "failed"
    assert failing.number == 40


CURVE = [1, 100, 200, 400, 800, 1600]


def hear(searching: Searching, run: str, level: float, **more: Any) -> str | None:
    """Until it is told to end."""
    for tokens in CURVE:
        said = searching.heard(run, tokens, level + 1 / math.log(tokens + 2), **more)
        if said:
            return said
    return None


@pytest.mark.parametrize("kind", ["median", "asha", "hyperband"])
def test_bad_runs_are_ended_early_and_good_ones_are_not(kind: Any) -> None:
    pruning = Pruning(kind=kind, first=100, factor=2, spared=3)
    searching = Searching(
        None, "s", {"x": uniform(0.0, 1.0)}, Settings(pruning=pruning, sampler="random"),
        longest=1600,
    )  # fmt: skip
    ended = []
    levels = [1.0, 1.1, 1.2, 1.3, 0.9, 3.0, 3.1, 0.8, 3.2, 3.3, 3.0, 0.7, 3.1]
    for level in levels:
        asked = searching.ask()
        run = f"r{asked.number}"
        searching.begin(asked, run)
        said = hear(searching, run, level)
        ended.append(said is not None)
        searching.tell(run, "pruned" if said else "finished", {"val/loss": level})
    assert not any(ended[i] for i in (0, 4, 7, 11)), "each the best so far"
    assert sum(ended[i] for i in (5, 6, 8, 9, 10, 12)) >= 4
    pruned = [one for one in searching.findings().tried if one.status == "pruned"]
    assert len(pruned) == sum(ended)


def test_values_at_a_rung_lie_on_the_curve_between_evaluations() -> None:
    pruning = Pruning(first=400, factor=4, spared=1)
    searching = Searching(None, "s", {"x": uniform(0.0, 1.0)}, Settings(pruning=pruning))
    searching.begin(searching.ask(), "a")
    searching.heard("a", 200, 4.0)
    searching.heard("a", 800, 2.0)
    trial = searching.study.get_trials()[0]
    assert trial.intermediate_values == {400: pytest.approx(3.0)}


def test_a_rollout_metric_ends_a_run_only_beyond_its_interval() -> None:
    settings = Settings(
        minimise=("rollout/loop",), pruning=Pruning(first=100, spared=2), sampler="random"
    )
    for hope, ends in ((0.9, True), (0.1, False)):
        searching = Searching(None, "s", {"x": uniform(0.0, 1.0)}, settings)
        for run in ("a", "b", "c"):
            searching.begin(searching.ask(), run)
            for tokens in CURVE:
                assert searching.heard(run, tokens, 0.2, 0.19) is None
            searching.tell(run, "finished", {"rollout/loop": 0.2})
        searching.begin(searching.ask(), "bad")
        said = [searching.heard("bad", tokens, 0.95, hope) for tokens in CURVE]
        assert any(said) is ends


def test_a_preview_keeps_nothing_and_lies_in_the_space() -> None:
    points = preview(SPACE, Settings(sampler="gp"), 5)
    assert len(points) == 5
    assert all(inside(SPACE, point) for point in points)
