from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from isoflop.scaling.catalogue import ALL, form_of
from isoflop.scaling.forms import Points
from isoflop.scaling.interval import Refusal
from isoflop.scaling.objective import Objective, named
from isoflop.scaling.parametric import ParametricFit, bootstrap, fit
from isoflop.scaling.smooth import BROKEN, FARSEER, SmoothForm

NAMES = ("broken", "farseer", "repetition")


def grid(*, epochs: tuple[int, ...] = (1,)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, tokens and distinct tokens of a full grid."""
    axes = (np.geomspace(1e7, 3e9, 7), np.geomspace(1e8, 1e11, 7), epochs)
    size, unique, times = (a.ravel() for a in np.meshgrid(*axes, indexing="ij"))
    return size, unique * times, unique


def fitted(*runs: np.ndarray, **options: object) -> ParametricFit:
    found = fit(*runs, objective=named("l2"), **options)  # type: ignore[arg-type]
    assert isinstance(found, ParametricFit)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_complex_steps_equal_finite_differences(name: str) -> None:
    random, form = np.random.default_rng(1), ALL[name]
    assert isinstance(form, SmoothForm)
    x, y, c = random.normal(size=(3, 30))
    problem = form.smooth(Points(x, y, c, y - 1), np.zeros(30), Objective())
    theta = random.uniform(0.2, 0.9, size=(2, len(form.coordinates)))
    slopes = problem.jacobian(theta)
    for i in range(theta.shape[1]):
        step = 1e-6 * np.eye(theta.shape[1])[i]
        rise = (problem.predict(theta + step) - problem.predict(theta - step)) / 2e-6
        assert slopes[:, i] == pytest.approx(rise, rel=1e-6, abs=1e-8)


def test_the_repetition_law_is_recovered() -> None:
    """With R_D* 15.4 and R_N* 5.3, as Muennighoff et al. 2023 found."""
    size, tokens, unique = grid(epochs=(1, 2, 4, 10, 30))
    form, points = ALL["repetition"], Points.of(size, tokens, None, unique)
    a, b = np.log(400) - 0.34 * points.x.mean(), np.log(900) - 0.3 * points.y.mean()
    theta = np.array([a, b, np.log(1.8), 0.34, 0.3, np.log(15.4), np.log(5.3)])
    clean = form.log_loss(theta[None], points.less(points.centre()))[0]
    loss = np.exp(clean + 0.002 * np.random.default_rng(0).normal(size=len(size)))
    law = fitted(size, tokens, loss, form="repetition", unique=unique)
    drawn = bootstrap(law, resamples=60)
    for name, truth in {"R_D": 15.4, "R_N": 5.3, "E": 1.8, "alpha": 0.34, "beta": 0.3}.items():
        interval = drawn.interval(name)
        spread = interval.high - interval.low
        assert interval.low - spread / 3 <= truth <= interval.high + spread / 3
        assert spread < 0.2 * truth
    simple = fitted(size, tokens, loss)
    assert law.objective < 0.1 * simple.objective
    refused = fit(size, tokens, loss, form="repetition")
    assert isinstance(refused, Refusal) and refused.reason == "nothing repeated"


def test_a_break_is_found() -> None:
    size, tokens, _ = grid()
    bend = (1 + (tokens / 2e9) ** 4) ** (-0.15 / 4)
    loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.3 * bend
    law = fitted(size, tokens, loss, form="broken")
    assert law.values["D_b"] == pytest.approx(2e9, rel=1e-2)
    assert law.values["c"] == pytest.approx(0.15, rel=1e-2)
    best = law.optimum(1e22)
    assert not isinstance(best, Refusal)
    along = best.size.value * np.array([0.8, 1, 1.25])
    losses = law.predict(along, 1e22 / 6 / along)
    assert losses.argmin() == 1 and losses[1] == pytest.approx(best.loss.value, rel=1e-6)


def test_farseer_contains_chinchilla_where_sizes_are_close() -> None:
    size, tokens, _ = grid()
    loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.3
    law = fitted(size, tokens, loss, form="farseer")
    assert np.abs(np.log(law.predict(size, tokens) / loss)).max() < 2e-3
    best, truth = law.optimum(1e21), fitted(size, tokens, loss).optimum(1e21)
    assert not isinstance(best, Refusal) and not isinstance(truth, Refusal)
    assert best.size.value == pytest.approx(truth.size.value, rel=0.2)
    v, at = law.values, (1e8, 1e10)
    fall = np.exp(v["a_1"] * at[0] ** v["alpha"] + v["b_1"])
    middle = np.exp(law.centre[1])
    said = np.exp(v["a_3"] * at[0] ** v["gamma"] + v["b_3"])
    said += np.exp(v["a_2"] * at[0] ** v["beta"] + v["b_2"]) * (at[1] / middle) ** -fall
    assert said == pytest.approx(float(law.predict(*at)), rel=1e-9)


def test_a_pinned_floor_holds_in_an_extended_law() -> None:
    size, tokens, _ = grid()
    loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.3
    law = fitted(size, tokens, loss, form="broken", pinned={"E": 1.7})
    assert pytest.approx(1.7) == law.E and law.free == 6


def test_unknown_forms_are_named() -> None:
    with pytest.raises(ValueError, match="form is 'cubic'; it must be one of chinchilla, tied"):
        form_of("cubic")


@pytest.mark.parametrize("form", [BROKEN, FARSEER], ids=["broken", "farseer"])
def test_slopes_in_closed_form_are_those_of_complex_steps(form: SmoothForm) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 25)) * 2
    points = Points(x, y, x + y, y)
    theta = random.normal(size=(40, len(form.coordinates))) * 0.7
    exact = form.smooth(points, np.zeros(25), Objective())
    assert exact.slopes is not None
    by_steps = dataclasses.replace(exact, slopes=None).jacobian(theta)
    assert np.allclose(exact.jacobian(theta), by_steps, rtol=1e-8, atol=1e-10)
