"""What are a law's parameters as reported, and which of them vanished or left their range?"""

from __future__ import annotations

import numpy as np

from isoflop.scaling.forms import CHINCHILLA, Centre, Form
from isoflop.scaling.interval import Array
from isoflop.scaling.minimise import PowerSum
from isoflop.scaling.optimum import FLATTEST
from isoflop.scaling.smooth import Smooth

BLOCK = 128  # laws side by side
VANISHING = 1e-4  # share of the loss below which a term counts as zero
STEEPEST = 3.0  # above, the end of the start grid, its term explains only the smallest runs


def plain(form: Form, theta: Array, centre: Centre) -> dict[str, float]:
    """The reported parameters by name at theta (P,); inf where one overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return {
            name: float(np.exp(value[0]) if name in form.logarithmic else value[0])
            for name, value in form.natural(theta[None], centre).items()
        }


def boundaries(
    form: Form, problem: PowerSum | Smooth, theta: Array, centre: Centre
) -> list[tuple[str, ...]]:
    """What vanished or left its range in each law of theta (S, P)."""
    if isinstance(problem, Smooth):
        if not form.exponents:
            return [()] * len(theta)
        simple = CHINCHILLA.problem(problem.points, problem.target, problem.objective)
        return boundaries(CHINCHILLA, simple, theta[:, :5], centre)
    largest = np.concatenate(
        [problem.shares(theta[i : i + BLOCK]).max(axis=2) for i in range(0, len(theta), BLOCK)]
    )
    exponents = {n: theta[:, form.coordinates.index(n)] for n in form.exponents}
    steepest = STEEPEST if form.power is None else form.ranges[0][1]
    flags = {
        term.coefficient: largest[:, index] < VANISHING for index, term in enumerate(form.terms)
    } | {n: ~((k >= FLATTEST) & (k <= steepest)) for n, k in exponents.items()}
    return [tuple(name for name, flag in flags.items() if flag[s]) for s in range(len(theta))]
