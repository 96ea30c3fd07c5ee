"""Do the weights move by the stated rule, and as fast as stated?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isoflop.run import AdamW, Run, Schedule
from isoflop.training.optimizer import build, learning_rate, set_learning_rate

Decay = Literal["cosine", "linear", "constant"]
PEAK = 0.3


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [learning_rate(schedule, step, steps, PEAK) for step in range(steps)]


@pytest.mark.parametrize(("decay", "middle", "last"), [
    ("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)
])  # fmt: skip
def test_shapes_at_given_points(decay: Decay, middle: float, last: float) -> None:
    """1000 steps, 100 of warm-up: steps 1, 50, 100; halfway through the decay; the last."""
    found = rates(Schedule(decay=decay, warmup=0.1, final=0.1), 1000)
    assert found[0] == pytest.approx(PEAK / 100)
    assert found[49] == pytest.approx(PEAK / 2)
    assert found[99] == pytest.approx(PEAK)
    assert found[549] == pytest.approx(PEAK * middle)
    assert found[-1] == pytest.approx(PEAK * last)


def test_cosine_and_linear_part_at_a_quarter() -> None:
    cosine = rates(Schedule(decay="cosine", warmup=0.0, final=0.0), 1001)
    linear = rates(Schedule(decay="linear", warmup=0.0, final=0.0), 1001)
    assert cosine[250] == pytest.approx(PEAK * (1 + math.cos(math.pi / 4)) / 2)
    assert linear[250] == pytest.approx(PEAK * 0.75)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.25])
def test_the_shape_does_not_depend_on_the_length(decay: Decay, warmup: float) -> None:
    """The rate at a share of the run is the same for short and long runs, to a step."""
    schedule = Schedule(decay=decay, warmup=warmup, final=0.1)
    short, long = rates(schedule, 200), rates(schedule, 20_000)
    for share in (0.01, 0.1, 0.3, 0.5, 0.9, 1.0):
        one, other = short[round(share * 200) - 1], long[round(share * 20_000) - 1]
        assert one == pytest.approx(other, abs=0.03 * PEAK)


@given(
    decay=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.floats(0, 1, exclude_max=True),
    final=st.floats(0, 1),
    steps=st.integers(1, 300),
)
def test_rates_rise_then_fall_within_bounds(
    decay: Decay, warmup: float, final: float, steps: int
) -> None:
    found = rates(Schedule(decay=decay, warmup=warmup, final=final), steps)
    assert max(found) <= PEAK * (1 + 1e-9) and min(found) >= 0
    assert PEAK in [pytest.approx(rate) for rate in found], "the peak is reached"
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert found[0] > 0, "no step is wasted"


def test_one_step_is_at_the_peak() -> None:
    assert rates(Schedule(), 1) == [PEAK]


def test_groups_decay_matrices_only(make_run: Callable[..., Run]) -> None:
    for name in ("gpt2", "llama", "llama-tied"):
        model = make_run(name).model.build()
        decayed, others = build(model, AdamW(lr=0.1, weight_decay=0.7)).param_groups
        assert {p.ndim for p in decayed["params"]} == {2} and decayed["weight_decay"] == 0.7
        assert {p.ndim for p in others["params"]} == {1} and others["weight_decay"] == 0.0
        grouped = [id(p) for group in (decayed, others) for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
    model[0].weight.requires_grad_(False)
    (group,) = build(model, AdamW(lr=0.1)).param_groups
    assert [id(p) for p in group["params"]] == [id(model[1].weight)]


def test_the_values_arrive() -> None:
    config = AdamW(lr=0.1, betas=(0.7, 0.8), epsilon=1e-5, weight_decay=0.3)
    optimizer = build(nn.Linear(2, 2), config)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.7, 0.8), 1e-5)
    set_learning_rate(optimizer, 0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02]


def test_a_step_is_adamws_by_hand() -> None:
    """Loshchilov & Hutter 2019, algorithm 2: the first step is g/|g|, and the decay apart."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.fill_(0.5)
    optimizer = build(model, AdamW(lr=0.1, epsilon=0.0, weight_decay=0.2))
    model.weight.grad = torch.tensor([[3.0, -4.0]])
    model.bias.grad = torch.tensor([-2.0])
    optimizer.step()
    torch.testing.assert_close(
        model.weight.data, torch.tensor([[1.0 * 0.98 - 0.1, -2.0 * 0.98 + 0.1]])
    )
    torch.testing.assert_close(model.bias.data, torch.tensor([0.6]))
