from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.interval import Refusal
from isoflop.scaling.joint import Family, Joint, bootstrap_together, fit_together
from isoflop.scaling.minimise import evaluate
from isoflop.scaling.parametric import ParametricFit, fit

World = Callable[..., pd.DataFrame]
SIZE = "params_without_input_embedding"
TWO = {"a": {}, "b": {"A": 40.0, "alpha": 0.36}}


def families(table: pd.DataFrame) -> dict[str, Family]:
    return {
        str(name): Family(*(rows[c].to_numpy(float) for c in (SIZE, "tokens", "loss")))
        for name, rows in table.groupby("axis.arch")
    }


def together(table: pd.DataFrame, *shared: str) -> Joint:
    found = fit_together(families(table), shared=shared)
    assert isinstance(found, Joint)
    return found


def test_noise_free_families_give_their_laws_back(world: World) -> None:
    joint = together(world(TWO, noise=0.0), "E", "B", "beta")
    a, b = (joint.fits[name] for name in "ab")
    assert a.E == b.E == pytest.approx(1.8, rel=1e-4)
    assert a.beta == b.beta == pytest.approx(0.34, rel=1e-4) and pytest.approx(b.B) == a.B
    assert (a.alpha, b.alpha) == pytest.approx((0.33, 0.36), rel=1e-3)
    assert pytest.approx((25, 40), rel=1e-2) == (a.A, b.A)


def test_sharing_costs_something_and_separate_fits_bound_it(world: World) -> None:
    table = world(TWO, noise=0.004)
    joint = together(table, "E")
    apart = 0.0
    for family in families(table).values():
        alone = fit(family.size, family.tokens, family.loss)
        assert isinstance(alone, ParametricFit)
        apart += alone.objective
    assert joint.objective >= apart * (1 - 1e-9)
    assert joint.objective == pytest.approx(sum(f.objective for f in joint.fits.values()))
    step = 1e-4 * np.eye(len(joint.theta))
    around = evaluate(joint.problem, joint.weights[None], joint.theta + np.vstack([step, -step]))
    assert (around >= joint.objective).all()


def test_a_shared_floor_is_known_better_and_holds_the_truth(world: World) -> None:
    inside, narrower = [], []
    for seed in range(10):
        table = world(TWO, noise=0.003, seed=seed, budgets=(1e10, 1e11, 1e12, 1e13))
        drawn = bootstrap_together(together(table, "E"), resamples=100, seed=seed)
        shared = drawn["a"].interval("E")
        assert shared == drawn["b"].interval("E")
        inside += [shared.low <= 1.8 <= shared.high]
        inside += [drawn["b"].interval("alpha").low <= 0.36 <= drawn["b"].interval("alpha").high]
        narrower.append(shared.high - shared.low)
    assert 0.75 <= np.mean(inside) <= 1.0


def test_what_cannot_be_shared_is_said(world: World) -> None:
    groups = families(world(TWO))
    with pytest.raises(ValueError, match="cannot share 'gamma'; it can share E, A, B, alpha, beta"):
        fit_together(groups, shared=["gamma"])
    with pytest.raises(ValueError, match="A can be shared only together with alpha"):
        fit_together(groups, shared=["A"])
    with pytest.raises(ValueError, match="takes two families or more"):
        fit_together({"a": groups["a"]})
    few = {
        **groups,
        "b": Family(*(v[:3] for v in (groups["b"].size, groups["b"].tokens, groups["b"].loss))),
    }
    refused = fit_together(few)
    assert isinstance(refused, Refusal) and refused.explanation.startswith("b: 3 runs")
