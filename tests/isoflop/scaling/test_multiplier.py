from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.forms import FORMS
from isoflop.scaling.interval import Interval, Refusal
from isoflop.scaling.joint import Family, Joint, bootstrap_together, fit_together
from isoflop.scaling.multiplier import best_loss, multiplier
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap, fit

World = Callable[..., pd.DataFrame]
SIZE = "params_without_input_embedding"
BUDGETS = (1e10, 1e11, 1e12, 1e13)


def laws(table: pd.DataFrame, form: str = "chinchilla", seed: int = 0) -> list[Resampled]:
    found = []
    for _, rows in table.groupby("axis.arch"):
        law = fit(rows[SIZE], rows["tokens"], rows["loss"], form=form)
        assert isinstance(law, ParametricFit)
        found.append(bootstrap(law, resamples=120, seed=seed))
    return found


def worth(first: Resampled, second: Resampled, flops: float = 1e13) -> Interval:
    found = multiplier(first, second, flops)
    assert isinstance(found, Interval)
    return found


def better(factor: float) -> dict[str, float]:
    """Changes to a law with which it needs `factor` times less compute for every loss."""
    return {
        "A": 25.0 * factor ** -(0.33 * 0.34 / 0.67),
        "B": 120.0 * factor ** -(0.33 * 0.34 / 0.67),
    }


def test_known_multipliers_are_found(world: World) -> None:
    """Both terms times k: the best loss at C equals the other's at C k^(-(1/alpha + 1/beta))."""
    first, second = laws(world({"a": better(2.0), "b": {}}, noise=0.0))
    assert worth(first, second).value == pytest.approx(2.0, rel=1e-3)
    assert worth(second, first).value == pytest.approx(0.5, rel=1e-3)
    assert worth(first, first).value == pytest.approx(1.0)


def test_the_truth_lies_in_the_interval_at_the_nominal_rate(world: World) -> None:
    inside, told = [], []
    for seed in range(30):
        table = world({"a": better(1.5), "b": {}}, seed=seed, noise=0.003, budgets=BUDGETS)
        found = worth(*laws(table, seed=seed), flops=1e12)
        inside.append(found.low <= 1.5 <= found.high)
        told.append(found.low > 1)
    assert 0.83 <= np.mean(inside) <= 1.0
    assert np.mean(told) > 0.5


def test_a_shared_floor_narrows_it(world: World) -> None:
    table = world({"a": better(1.5), "b": {}}, noise=0.003, budgets=BUDGETS)
    groups = {
        str(name): Family(*(rows[c].to_numpy(float) for c in (SIZE, "tokens", "loss")))
        for name, rows in table.groupby("axis.arch")
    }
    joint = fit_together(groups, shared=("E",))
    assert isinstance(joint, Joint)
    drawn = bootstrap_together(joint, resamples=120)
    one, other = worth(drawn["a"], drawn["b"], 1e15), worth(*laws(table), flops=1e15)
    assert one.low <= 1.5 <= one.high
    assert np.log(one.high / one.low) < np.log(other.high / other.low)


@pytest.mark.parametrize("form", FORMS)
def test_the_best_loss_is_the_optimums(world: World, form: str) -> None:
    (law,) = laws(world({"a": {}}, noise=0.002), form=form)
    best = law.fit.optimum(1e13)
    assert not isinstance(best, Refusal)
    found = best_loss(law.fit, law.fit.theta[None], np.log([1e13]))
    assert np.exp(found[0]) == pytest.approx(best.loss.value)
    said = law.fit.predict(best.size.value, best.tokens.value)
    assert float(said) == pytest.approx(best.loss.value)


def test_a_floor_that_is_never_reached_refuses(world: World) -> None:
    first, second = laws(world({"a": {"E": 1.0}, "b": {"E": 3.0}}, noise=0.0))
    found = multiplier(first, second, 1e13)
    assert isinstance(found, Refusal) and "floor" in found.explanation
    with pytest.raises(ValueError, match="flops is 0"):
        multiplier(first, second, 0)
