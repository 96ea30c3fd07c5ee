"""Do laws and their resamples keep to bounds, and lose as little as they must by it?"""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.scaling.bounds import parse, patterns
from isoflop.scaling.parametric import ParametricFit, bootstrap, fit


def runs(noise: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(4)
    size, tokens = np.exp(random.uniform(16, 22, 40)), np.exp(random.uniform(20, 26, 40))
    loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.28
    return size, tokens, loss * np.exp(noise * random.normal(size=40))


def law(**options: object) -> ParametricFit:
    found = fit(*runs(), **options)  # type: ignore[arg-type]
    assert isinstance(found, ParametricFit)
    return found


def test_wide_bounds_change_nothing() -> None:
    free, bounded = law(), law(bounds={"alpha": (0.01, 2.0), "E": (0.0, np.inf)})
    assert bounded.objective == pytest.approx(free.objective, rel=1e-9)
    assert bounded.alpha == pytest.approx(free.alpha, rel=1e-6)


def test_a_bound_that_bites_is_where_the_law_lies() -> None:
    free = law()
    low = free.alpha + 0.05
    bounded, pinned = law(bounds={"alpha": (low, 1.0)}), law(pinned={"alpha": low})
    assert bounded.alpha == pytest.approx(low, abs=1e-9)
    assert free.objective < bounded.objective
    assert bounded.objective == pytest.approx(pinned.objective, rel=1e-8)
    drawn = bootstrap(bounded, resamples=60)
    alphas = drawn.draws("alpha")
    assert (alphas >= low - 1e-8).all() and (alphas > low + 1e-3).any()
    assert (np.abs(alphas - low) < 1e-6).mean() > 0.3


def test_two_bounds_at_once() -> None:
    free = law()
    bounds = {"alpha": (free.alpha + 0.05, 1.0), "E": (0.0, free.E * 0.95)}
    found = law(bounds=bounds)
    assert found.alpha >= bounds["alpha"][0] - 1e-9 and bounds["E"][1] + 1e-9 >= found.E
    random = np.random.default_rng(0)
    for _ in range(40):  # no law within the bounds is better
        at = {"alpha": bounds["alpha"][0] + abs(random.normal()) * 0.02,
              "E": bounds["E"][1] * (1 - abs(random.normal()) * 0.02)}  # fmt: skip
        assert law(pinned=at).objective >= found.objective * (1 - 1e-7)


def test_words_become_bounds() -> None:
    assert parse(["alpha=0.2:0.5", "E=:2", "B=10:"]) == {
        "alpha": (0.2, 0.5), "E": (0.0, 2.0), "B": (10.0, np.inf),
    }  # fmt: skip
    assert patterns({"alpha": (0.2, 0.5)}) == [{}, {"alpha": 0.2}, {"alpha": 0.5}]
    for wrong in ("alpha", "alpha=1", "=1:2", "alpha=a:b"):
        with pytest.raises(ValueError, match="must be NAME=LOW:HIGH"):
            parse([wrong])


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"gamma": (0.0, 1.0)}, "cannot bound 'gamma'"),
        ({"alpha": (1.0, 0.5)}, "must be 0 or above and ascend"),
        ({n: (0.1, 9.0) for n in ("E", "A", "B", "alpha")}, "at most 3 can be"),
    ],
)
def test_wrong_bounds_are_refused(bounds: dict[str, tuple[float, float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        law(bounds=bounds)
