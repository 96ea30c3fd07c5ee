from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from isoflop.scaling.forms import FORMS, Points
from isoflop.scaling.interval import Refusal
from isoflop.scaling.minimise import PowerSum, evaluate
from isoflop.scaling.objective import Objective, named
from isoflop.scaling.parametric import PARAMETERS, ParametricFit, bootstrap, fit

World = Callable[..., pd.DataFrame]
SIZE = "params_without_input_embedding"


def law_of(size: np.ndarray, tokens: np.ndarray, B: float) -> np.ndarray:
    loss: np.ndarray = 1.8 + 25 * size**-0.33 + B * tokens**-0.34
    return loss


def fitted(table: pd.DataFrame, **options: float) -> ParametricFit:
    found = fit(table[SIZE], table["tokens"], table["loss"], **options)
    assert isinstance(found, ParametricFit)
    return found


def problem(form: str, objective: Objective, runs: int = 40) -> tuple[PowerSum, np.ndarray]:
    """Runs scattered about a law, and two points theta near it."""
    random = np.random.default_rng(0)
    points = Points(*random.normal(size=(4, runs)))
    law = FORMS[form]
    theta = random.uniform(0.1, 0.9, size=(2, len(law.coordinates)))
    target = law.log_loss(theta[:1], points)[0] + 0.01 * random.normal(size=runs)
    return law.problem(points, target, objective), theta


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["huber", "l2", "asymmetric"])
def test_slope_and_curvature_equal_finite_differences(form: str, name: str) -> None:
    runs, theta = problem(form, named(name, delta=10.0))  # a wide delta: the objective is smooth
    weights = np.linspace(0.5, 2, 40)[None]
    local = runs.local(theta, weights, False)
    step = 1e-5
    for i in range(theta.shape[1]):
        shift = step * np.eye(theta.shape[1])[i]
        ahead, behind = (runs.local(theta + s, weights, False) for s in (shift, -shift))
        slope = evaluate(runs, weights, theta + shift) - evaluate(runs, weights, theta - shift)
        assert local.gradient[:, i] == pytest.approx(slope / (2 * step), rel=1e-5, abs=1e-7)
        bend = (ahead.gradient - behind.gradient) / (2 * step)
        # The asymmetric objective bends where a residual changes its sign within the step.
        assert local.curvature[:, i] == pytest.approx(bend, rel=1e-4, abs=1e-5)


def test_noise_free_runs_give_the_law_back(world: World) -> None:
    found = fitted(world({"a": {}}, noise=0.0))
    truth = {"E": 1.8, "A": 25.0, "B": 120.0, "alpha": 0.33, "beta": 0.34}
    for name, value in truth.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4)
    assert found.boundary == ()
    assert found.agreeing >= 1
    best = found.optimum(1e12)
    assert not isinstance(best, Refusal)
    assert 6 * best.size.value * best.tokens.value == pytest.approx(1e12)
    around = best.size.value * np.array([0.9, 1.0, 1.1])
    losses = found.predict(around, 1e12 / 6 / around)
    assert losses.argmin() == 1 and losses[1] == pytest.approx(best.loss.value)


def test_known_truths_lie_in_their_intervals(world: World) -> None:
    inside = []
    for seed in range(25):
        table = world({"a": {}}, seed=seed, budgets=(1e10, 1e11, 1e12, 1e13), noise=0.003)
        resampled = bootstrap(fitted(table), resamples=120, seed=seed)
        best = resampled.optimum(1e12)
        assert not isinstance(best, Refusal)
        power = 1 / 0.67
        truth = (0.33 * 25 / (0.34 * 120)) ** power * (1e12 / 6) ** (0.34 * power)
        inside.append(best.size.low <= truth <= best.size.high)
        for name, value in (("alpha", 0.33), ("beta", 0.34), ("E", 1.8)):
            interval = resampled.interval(name)
            inside.append(interval.low <= value <= interval.high)
    assert 0.85 <= np.mean(inside) <= 1.0


def test_published_runs_no_start_of_a_general_minimiser_does_better(
    published: pd.DataFrame,
) -> None:
    found = fit(published["N"], published["D"], published["loss"])
    assert isinstance(found, ParametricFit)
    runs, ones = found.problem, np.ones((1, found.points))

    def scaled(theta: np.ndarray) -> tuple[float, np.ndarray]:
        local = runs.local(theta[None], ones, False)
        return 1e3 * float(local.value[0]), 1e3 * local.gradient[0]

    best = np.inf
    for alpha in (0.2, 0.5, 1.0):
        for beta in (0.2, 0.5, 1.0):
            for level in (-1.0, 0.0, 0.5):
                start = np.array([-1.0, -1.0, level, alpha, beta])
                result = minimize(scaled, start, jac=True, method="BFGS", options={"gtol": 1e-9})
                best = min(best, 1e-3 * float(result.fun))
    assert found.objective <= best * (1 + 1e-9)
    assert found.agreeing >= 4
    # Read off the same figure by others: E 1.82, alpha 0.35, beta 0.37 (Besiroglu et al. 2024).
    assert 1.7 < found.E < 1.9 and 0.3 < found.alpha < 0.4 and 0.3 < found.beta < 0.4
    assert pytest.approx(1.78389, abs=1e-4) == found.E


def test_the_bootstrap_is_deterministic_and_starts_do_not_matter(published: pd.DataFrame) -> None:
    found = fit(published["N"], published["D"], published["loss"])
    assert isinstance(found, ParametricFit)
    one, two = (bootstrap(found, resamples=20, seed=42) for _ in range(2))
    assert (one.theta == two.theta).all()
    counts = np.random.default_rng(42).multinomial(234, np.full(234, 1 / 234), size=20)
    for theta, weights in list(zip(one.theta, counts, strict=True))[:4]:
        drawn = published.loc[np.repeat(published.index, weights)]
        fresh = fit(drawn["N"], drawn["D"], drawn["loss"])
        assert isinstance(fresh, ParametricFit)
        warm = evaluate(found.problem, weights[None].astype(float), theta[None])[0]
        assert warm == pytest.approx(fresh.objective, rel=1e-7)


def test_weights_count_as_repeats(world: World) -> None:
    table = world({"a": {}}, noise=0.01)
    repeats = np.arange(len(table)) % 3 + 1
    weighted = fit(table[SIZE], table["tokens"], table["loss"], weights=repeats)
    repeated = table.loc[np.repeat(table.index, repeats)]
    assert isinstance(weighted, ParametricFit)
    assert weighted.objective == pytest.approx(fitted(repeated).objective, rel=1e-8)


def test_refusals_name_their_reason(world: World) -> None:
    table = world({"a": {}})

    def reason(rows: pd.DataFrame) -> str:
        found = fit(rows[SIZE], rows["tokens"], rows["loss"])
        assert isinstance(found, Refusal)
        return found.reason

    assert reason(table.head(5)) == "too few points"
    assert reason(table.assign(**{SIZE: 1e6})) == "one size only"
    assert reason(table.assign(tokens=1e6)) == "one token count only"
    assert reason(table.head(7)) == "one line only"


def test_a_law_without_a_floor_is_flagged(world: World) -> None:
    found = fitted(world({"a": {"E": 0.0}}, noise=0.0))
    assert found.boundary == ("E",)
    assert found.alpha == pytest.approx(0.33, rel=1e-3)
    assert not isinstance(found.optimum(1e12), Refusal)


def test_a_vanished_term_refuses_the_optimum(world: World) -> None:
    table = world({"a": {}})
    table["loss"] = law_of(table[SIZE].to_numpy(), table["tokens"].to_numpy(), B=0.0)
    found = fitted(table)
    assert "B" in found.boundary or "beta" in found.boundary
    best = found.optimum(1e12)
    assert isinstance(best, Refusal) and best.reason == "law at its boundary"


def test_hopeless_runs_are_flagged_and_never_overflow(world: World) -> None:
    """With so much noise some fits run away; warnings are errors here."""
    flagged = 0
    for seed in range(12):
        table = world({"a": {}}, seed=seed, sizes=4, budgets=(1e11, 3e11), noise=0.1)
        found = fitted(table)
        resampled = bootstrap(found, resamples=40, seed=seed)
        for name in PARAMETERS:
            interval = resampled.interval(name)
            assert interval.low <= interval.value <= interval.high
        assert resampled.predict(1e6, 1e8).high > 0
        flagged += isinstance(resampled.optimum(1e12), Refusal)
    assert flagged > 0


def test_integers_beyond_int64_products(world: World) -> None:
    table = world({"a": {}}, budgets=(1e22, 1e23, 1e24), noise=0.0)
    whole = {name: table[name].round().astype("int64") for name in (SIZE, "tokens")}
    found = fitted(table.assign(**whole))
    best = found.optimum(6e26)
    assert not isinstance(best, Refusal)
    assert best.size.value * best.tokens.value == pytest.approx(1e26)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_value_that_has_no_logarithm_is_named(world: World, bad: float) -> None:
    table = world({"a": {}})
    table.loc[3, "loss"] = bad
    with pytest.raises(ValueError, match=r"loss\[3\] is .*finite and above 0"):
        fitted(table)


def test_unknown_parameter_is_named(world: World) -> None:
    resampled = bootstrap(fitted(world({"a": {}})), resamples=2)
    with pytest.raises(ValueError, match=f"'gamma'; it must be one of {', '.join(PARAMETERS)}"):
        resampled.interval("gamma")


def test_fitting_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, isoflop.scaling.parametric, isoflop.scaling.isoflop\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'matplotlib') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    path = f"import sys; sys.path[:0] = [{str(root / 'platform')!r}, {str(root)!r}]\n"
    command = [sys.executable, "-c", path + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_a_floor_of_nothing_is_a_boundary_and_no_failure() -> None:
    """Without a floor the logarithm of E falls without end in about half of the resamples."""
    random = np.random.default_rng(4)
    size, tokens = np.exp(random.uniform(14, 21, 60)), np.exp(random.uniform(18, 25, 60))
    loss = (10 * size**-0.1 + 20 * tokens**-0.12) * np.exp(0.005 * random.normal(size=60))
    law = fit(size, tokens, loss)
    assert isinstance(law, ParametricFit)
    drawn = bootstrap(law, resamples=100)
    assert drawn.at_boundary > 10 and drawn.unconverged <= 3
    best = law.optimum(1e20)
    assert not isinstance(best, Refusal)  # sizes and tokens still oppose each other


def test_losses_that_are_all_the_same_refuse_a_law() -> None:
    size, tokens = np.geomspace(1e6, 1e9, 12), np.tile([1e9, 1e10, 1e11], 4)
    law = fit(size, tokens, np.full(12, 3.0))
    assert isinstance(law, Refusal) and law.reason == "nothing to explain"
