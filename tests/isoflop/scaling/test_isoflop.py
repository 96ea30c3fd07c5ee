from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.interval import Refusal
from isoflop.scaling.isoflop import Minimum, exponents, minima

World = Callable[..., pd.DataFrame]


def reason(minimum: Minimum) -> str:
    assert isinstance(minimum.status, Refusal)
    assert minimum.size is minimum.tokens is minimum.loss is None
    return minimum.status.reason


def test_an_exact_parabola_gives_its_own_minimum(world: World) -> None:
    table = world({"a": {}}, sizes=5, budgets=(1e11,))
    x = np.log(table["params_without_input_embedding"])
    table["loss"] = 3.0 + 0.05 * (x - 10.0) ** 2
    (found,) = minima(table)
    assert found.size and found.loss and found.tokens and found.parabola
    assert found.size.value == pytest.approx(np.exp(10.0), rel=1e-9)
    assert found.loss.value == pytest.approx(3.0, rel=1e-12)
    assert found.tokens.value == pytest.approx(1e11 / 6 / np.exp(10.0), rel=1e-6)
    assert np.polyval(found.parabola, x) == pytest.approx(table["loss"].to_numpy(), rel=1e-9)
    assert found.flops_6nd == pytest.approx(1e11, rel=1e-6)
    assert found.interior == 1.0


def test_the_truth_lies_in_the_intervals_at_the_nominal_rate(world: World) -> None:
    covered = []
    for seed in range(100):
        table = world({"a": {}}, seed=seed, sizes=6, budgets=(1e11,), noise=0.002, width=1.0)
        (found,) = minima(table, resamples=400)
        if found.size and found.loss:
            size = table["params_without_input_embedding"]
            truth = np.exp(np.log(size).mean())
            covered.append(found.size.low <= truth <= found.size.high)
    assert len(covered) > 80
    assert 0.88 <= np.mean(covered) <= 1.0


def test_exponents_recover_the_law(world: World) -> None:
    found = exponents(minima(world({"a": {}}, noise=0.0005, budgets=(1e10, 1e11, 1e12, 1e13))))
    (family,) = found
    assert family.status == "fitted" and family.a and family.b and family.budgets == 4
    assert family.a.value == pytest.approx(0.34 / 0.67, abs=0.02)
    assert family.a.low < family.a.value < family.a.high
    assert family.a.value + family.b.value == pytest.approx(1.0, abs=1e-6)


def test_exponents_by_6nd_need_not_equal_the_exact_ones(world: World) -> None:
    table = world({"a": {}}, noise=0.0)
    table["flops"] = table["axis.flops"] ** 1.1  # attention and head grow otherwise than 6ND
    (exact,), (rule,) = (exponents(minima(table), compute=c) for c in ("exact", "6ND"))
    assert exact.a and rule.a
    assert rule.a.value == pytest.approx(1.1 * exact.a.value, rel=1e-6)


def test_refusals_name_their_reason(world: World) -> None:
    table = world({"a": {}}, budgets=(1e11,), noise=0.0)
    assert reason(minima(table.head(3))[0]) == "too few points"
    assert reason(minima(table.tail(4))[0]) == "optimum at the edge"
    assert reason(minima(table.head(4))[0]) == "optimum at the edge"
    bent = table.assign(loss=[3.0, 3.1, 3.2, 2.99, 3.2, 3.1, 3.0])
    assert reason(minima(bent)[0]) == "no interior minimum"
    (refused,) = exponents(minima(table))
    assert isinstance(refused.status, Refusal) and refused.status.reason == "too few budgets"


def test_sizes_too_far_off_are_left_out(world: World) -> None:
    """The best size lies inside, the vertex of a parabola through all of them does not."""
    table = world({"a": {}}, budgets=(1e11,), sizes=6, noise=0.0)
    table["loss"] = [5.2, 5.16, 5.22, 6.0, 6.2, 6.3]
    (found,) = minima(table)
    assert found.points == 5 and found.size is not None
    size = table["params_without_input_embedding"].to_numpy()
    assert size[0] < found.size.value < size[2]


def test_too_few_sizes_about_the_best_are_cured_by_more(world: World) -> None:
    table = world({"a": {}}, budgets=(1e11,), sizes=4, noise=0.0)
    table["loss"] = [5.16, 5.159, 6.2, 6.5]
    refusal = minima(table)[0].status
    assert isinstance(refusal, Refusal) and refusal.reason == "no interior minimum"
    assert "have the lowest loss" in refusal.explanation
    size = table["params_without_input_embedding"].to_numpy()
    asked = [run.size for run in refusal.runs]
    assert asked == pytest.approx(np.sqrt(size[:2] * size[1:3]))
    assert all(run.flops == pytest.approx(1e11) for run in refusal.runs)


def test_runs_that_did_not_finish_do_not_count(world: World) -> None:
    table = world({"a": {}}, budgets=(1e11,))
    table.loc[0, ["status", "loss"]] = ["diverged", np.nan]
    table.loc[1, "status"] = "failed"
    table.loc[2, "loss"] = np.inf
    assert minima(table)[0].points == 4


def test_the_same_seed_gives_the_same_intervals_whatever_else_is_fitted(world: World) -> None:
    one = world({"a": {}})
    other = world({"b": {}}, seed=1)
    alone = minima(one)
    together = [m for m in minima(pd.concat([other, one])) if m.family == "a"]
    assert [m.loss for m in alone] == [m.loss for m in together]
    assert [m.loss for m in alone] != [m.loss for m in minima(one, seed=1)]


def test_large_integers_do_not_overflow(world: World) -> None:
    table = world({"a": {}}, budgets=(1e24,), noise=0.0)
    for name in ("params_without_input_embedding", "tokens"):
        table[name] = table[name].round().astype("int64")
    (found,) = minima(table)
    assert found.flops_6nd == pytest.approx(1e24, rel=0.01)  # above the 9.2e18 of an int64


def test_a_study_without_families_is_one(world: World) -> None:
    assert {m.family for m in minima(world({"a": {}}), family=None)} == {"all runs"}


def test_a_missing_column_is_named(world: World) -> None:
    with pytest.raises(ValueError, match=r"no column 'axis\.tempo'; it has .*axis\.arch"):
        minima(world({"a": {}}), budget="axis.tempo")
