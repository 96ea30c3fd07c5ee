"""Which difference between two families could a design detect, before anything is run?

Many worlds are simulated in which a law is true: every run of the design draws its noise, the law
is fitted anew, and what the fits disagree about is what the design cannot tell. Two families fitted
apart differ by sqrt(2) of that; a true difference is found with 80 % power by a two-sided test at
5 % where it is 2.80 such deviations large. As a compute multiplier it is the difference of ln L
over the slope of the best loss with compute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from isoflop.scaling.forms import Points
from isoflop.scaling.gain import Belief
from isoflop.scaling.interval import Array
from isoflop.scaling.minimise import polish
from isoflop.scaling.objective import Objective

WORLDS = 200
LEAST_POWER, LEVEL = 0.8, 0.05
STEP = 0.05  # of ln C, for the slope


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """At one compute."""

    flops: float
    deviation: float  # of the fitted best ln L, over worlds
    difference: float  # of ln L between two families, detected with 80 % power
    multiplier: float  # the same as a factor of compute; inf where no compute makes up for it
    nats: float  # the same in nats per token at the law's loss
    worlds: int
    lost: int  # worlds whose fitted law has no optimum there


def simulate(
    law: Belief, points: Points, noise: float, *, worlds: int = WORLDS, seed: int = 0
) -> Array:
    """theta (W, P) of the law fitted to runs at `points` in each world, by the usual objective.

    Every fit starts from the truth, as a pilot would let it.
    """
    if worlds < 10:
        raise ValueError(f"worlds is {worlds}; it must be at least 10")
    centred, truth = points.less(law.centre), law.theta[:1]
    exact = law.form.log_loss(truth, centred)[0]
    random, ones = np.random.default_rng(seed), np.ones((1, len(exact)))
    problem = law.form.problem(centred, exact, Objective())
    found = [
        polish(replace(problem, target=exact + noise * random.normal(size=len(exact))), ones, truth)
        for _ in range(worlds)
    ]
    return np.concatenate([one.theta for one in found])


def detectable(
    law: Belief, fitted: Array, flops: float, factor: float, *, families: int = 2
) -> Detectable:
    """By the laws `fitted` in simulated worlds, at the best point of `flops` = factor N D."""
    from scipy.special import ndtri

    draws = _best(law, fitted, flops, factor)
    known = np.isfinite(draws)
    truth = float(_best(law, law.theta[:1], flops, factor)[0])
    ahead = float(_best(law, law.theta[:1], flops * np.exp(STEP), factor)[0])
    # Half the central 68 %: a runaway law in one world does not hide what the others say.
    low, high = np.quantile(draws[known], [0.1587, 0.8413]) if known.any() else (np.nan, np.nan)
    deviation = float(high - low) / 2
    quantiles = float(ndtri(1 - LEVEL / 2) + ndtri(LEAST_POWER))
    difference = quantiles * np.sqrt(families) * deviation
    return Detectable(
        flops=flops,
        deviation=deviation,
        difference=float(difference),
        multiplier=_multiplier(law, truth, float(difference), flops, factor, truth - ahead),
        nats=float(np.exp(truth) * difference),
        worlds=len(fitted),
        lost=int((~known).sum()),
    )


def _multiplier(
    law: Belief, truth: float, difference: float, flops: float, factor: float, fall: float
) -> float:
    """The compute that lowers the law's best ln L by `difference`: by bisection, since its slope
    falls towards the floor."""
    if not (np.isfinite(difference) and fall > 0):
        return float("inf")
    low, high = 0.0, 30.0
    goal = truth - difference
    if _best(law, law.theta[:1], flops * np.exp(high), factor)[0] > goal:
        return float("inf")
    for _ in range(60):
        middle = (low + high) / 2
        above = _best(law, law.theta[:1], flops * np.exp(middle), factor)[0] > goal
        low, high = (middle, high) if above else (low, middle)
    return float(np.exp(high))


def _best(law: Belief, theta: Array, flops: float, factor: float) -> Array:
    """ln L (S,) of each law at its own best size; nan where it has none."""
    budget = float(np.log(flops / factor)) - law.centre[0] - law.centre[1]
    x = law.form.split(theta, budget)
    c = np.full(len(x), np.log(flops) - law.centre[2])
    return law.form.along(theta, x, budget - x, c)
