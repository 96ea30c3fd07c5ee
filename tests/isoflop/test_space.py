"""Do distributions, aims and bounds mean what they say, and is nonsense refused?"""

from __future__ import annotations

import pytest

from isoflop.design import search
from isoflop.space import Choice, Constraint, Numbers, Pruning, choice, integer, log, uniform


def test_values_that_can_be_counted_are() -> None:
    assert integer(2, 8, step=3).values == (2, 5, 8)
    assert uniform(0.0, 0.3, step=0.1).values == pytest.approx((0.0, 0.1, 0.2, 0.3))
    assert choice("a", None, True).values == ("a", None, True)
    assert log(1e-4, 1e-2).values is None


@pytest.mark.parametrize(
    ("value", "end"), [(1.05e-4, "lower"), (1e-3, None), (9.5e-3, "upper"), (2e-4, None)]
)
def test_the_end_of_a_range_is_seen_in_its_own_scale(value: float, end: str | None) -> None:
    assert log(1e-4, 1e-2).edge(value) == end


def test_two_values_have_no_end_to_lie_at() -> None:
    assert integer(1, 2).edge(1) is None


def test_a_condition_looks_at_other_axes() -> None:
    experts = integer(2, 8).when(arch="moe", width=(32, 64))
    assert experts.holds({"arch": "moe", "width": 32})
    assert not experts.holds({"arch": "moe", "width": 16})
    assert not experts.holds({"arch": "llama", "width": 32})
    assert str(experts) == "whole numbers 2 to 8 (where arch is moe and width is 32 or 64)"


@pytest.mark.parametrize("text", ["rollout/loop<=0.2", " rollout/loop  <= 2e-1 "])
def test_a_bound_is_read(text: str) -> None:
    bound = Constraint.parse(text)
    assert bound == Constraint("rollout/loop", True, 0.2)
    assert bound.excess(0.3) == pytest.approx(0.1)
    assert Constraint.parse("flops >= 5").excess(7.0) == -2.0


@pytest.mark.parametrize("text", ["loop < 0.2", "loop <= much", "<= 1", "a b <= 1"])
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a constraint is"):
        Constraint.parse(text)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: log(0.0, 1.0), "above 0"),
        (lambda: uniform(2, 1), "upwards"),
        (lambda: integer(1, 4, step=9), "step is 9"),
        (lambda: integer(1, 4, step=2, log=True), "one of them"),
        (lambda: choice("a"), "at least two"),
        (lambda: choice([1], [2]), "at least two|unhashable|must be of numbers"),
        (lambda: Pruning(first=0), "pruning.first is 0"),
        (lambda: Pruning(kind="best", first=9), "pruning is 'best'"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_distribution_is_refused(make: object, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampler": "best"}, "one of tpe, gp"),
        ({"trials": 0}, "0 trials"),
        ({"minimise": ()}, "at least one metric"),
        ({"maximise": ("val/loss",)}, "each once"),
        ({"minimise": ("loss",)}, "'loss'; known are val/loss"),
        ({"near": ("flops",), "minimise": ()}, "no value on held-out text"),
        ({"constraints": ("loss <= 1",)}, "'loss'; known are"),
        ({"sampler": "cmaes", "maximise": ("rollout/entropy",)}, "cmaes is after one"),
        ({"maximise": ("flops",), "pruning": Pruning(first=9)}, "by one metric"),
        ({"minimise": ("flops",), "pruning": Pruning(first=9)}, "cannot go by flops"),
        (
            {"minimise": ("rollout/loop",), "pruning": Pruning(first=9, kind="asha")},
            "must be by the median",
        ),
        ({"sampler": "grid"}, "lr is 0.0001 to 0.01"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        search(lr=log(1e-4, 1e-2)).by(**settings)


def test_a_space_without_anything_free_is_a_grid() -> None:
    with pytest.raises(ValueError, match=r"use grid\("):
        search(arch="llama")
    with pytest.raises(ValueError, match="'arch', which must be an axis"):
        search(experts=integer(2, 8).when(arch="moe"), arch=choice("moe", "llama"))


def test_rungs_lie_below_the_end() -> None:
    assert Pruning(first=100, factor=3).rungs(900) == [100, 300]
    assert Pruning(first=100, factor=3).rungs(901) == [100, 300, 900]


def test_a_search_is_a_grid_of_what_was_chosen() -> None:
    points = search(lr=log(1e-4, 1e-2), arch="llama")
    assert points.axes == {"lr": (), "arch": ("llama",)}
    assert points.varied == {"lr"}
    assert len(points) == 0
    assert isinstance(points.space["lr"], Numbers)
    assert not isinstance(points.space["arch"], Choice)
    assert points.described()[-1] == "  20 trials by tpe: minimise val/loss"
