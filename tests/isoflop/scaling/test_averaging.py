from __future__ import annotations

import numpy as np
import pytest

from isoflop.scaling.averaging import average, predict
from isoflop.scaling.holdout import Outcome, rolling, score
from isoflop.scaling.interval import Refusal
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap, fit


def outcome(miss: np.ndarray) -> Outcome:
    return Outcome(3.0 * np.exp(miss), np.full(len(miss), 3.0), 2.0)


def test_opposite_errors_cancel_and_a_bad_form_has_no_weight() -> None:
    random = np.random.default_rng(0)
    miss = 0.01 * np.abs(random.normal(size=40))
    held = {"high": [outcome(miss)], "low": [outcome(-miss)], "bad": [outcome(miss + 0.1)]}
    found = average(held)
    assert found is not None and sum(found.weights.values()) == pytest.approx(1)
    assert found.weights["high"] == pytest.approx(0.5, abs=0.02) and found.weights["bad"] < 0.02
    assert found.score.error < 0.1 * miss.mean()


def test_the_same_form_twice_shares_its_weight() -> None:
    miss = 0.01 * np.random.default_rng(1).normal(size=30)
    found = average({"a": [outcome(miss)], "b": [outcome(miss)], "c": [outcome(miss + 0.2)]})
    assert found is not None and found.weights["a"] == pytest.approx(found.weights["b"], abs=1e-3)


def test_one_form_alone_has_no_average() -> None:
    assert average({"a": [outcome(np.zeros(3))]}) is None and average({}) is None
    partial = {"a": [outcome(np.zeros(3))] * 2, "b": [outcome(np.zeros(3))]}
    assert average(partial) is None


def test_the_average_never_predicts_worse_than_the_best_form_where_it_was_chosen() -> None:
    random = np.random.default_rng(2)
    size, tokens = np.exp(random.uniform(16, 22, 80)), np.exp(random.uniform(20, 26, 80))
    loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.28
    loss = loss * np.exp(0.003 * random.normal(size=80))
    flops = 6 * size * tokens
    from isoflop.scaling.holdout import outcomes

    held, laws = {}, {}
    for form in ("chinchilla", "kaplan"):

        def lay(kept: np.ndarray, form: str = form) -> ParametricFit | Refusal:
            return fit(size[kept], tokens[kept], loss[kept], form=form)

        found = outcomes(lay, rolling(flops), size, tokens, flops, loss)
        assert not isinstance(found, Refusal)
        held[form] = found
        law = lay(np.ones(80, bool))
        assert isinstance(law, ParametricFit)
        laws[form] = bootstrap(law, resamples=50)
        one = score(lay, rolling(flops), size, tokens, flops, loss)
        assert not isinstance(one, Refusal)
    mean = average(held)
    assert mean is not None
    misses = {k: np.concatenate([np.log(o.predicted / o.measured) for o in v])
              for k, v in held.items()}  # fmt: skip
    mixed = sum(mean.weights[k] * m for k, m in misses.items())
    assert np.square(mixed).mean() <= 1.01 * min(np.square(m).mean() for m in misses.values())
    kept: dict[str, Resampled] = laws
    plain, wide = (predict(kept, mean.weights, 1e9, 2e10, widen=w) for w in (1.0, 2.0))
    assert plain.low <= plain.value <= plain.high and wide.high > plain.high
    assert np.log(wide.high / wide.value) == pytest.approx(2 * np.log(plain.high / plain.value))
