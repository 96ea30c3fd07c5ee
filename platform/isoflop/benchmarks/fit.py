"""Is the fit as good as the best of the grid that the papers search, and how much cheaper is it?

The reference is scipy's L-BFGS-B on the same objective with its exact slope, from the 4,500 starts
of Hoffmann et al. 2022 and Besiroglu et al. 2024; by default from a stated fraction of them, drawn
once. CPU seconds of this process; runs are made here, so that nothing needs a download.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np

from isoflop.benchmarks import peer
from isoflop.scaling.forms import FORMS
from isoflop.scaling.interval import Array
from isoflop.scaling.minimise import evaluate
from isoflop.scaling.parametric import ParametricFit, bootstrap, fit

ALL_STARTS = 4500
SAME = 1e-6  # relative difference of objectives that counts as the same optimum
Made = TypeVar("Made")


@dataclass(frozen=True)
class Row:
    """One method's cost and what it reached."""

    method: str
    cpu: float  # seconds
    best: float  # objective
    reached: float  # share of starts that end at the best objective of all methods; -1: unknown


def show(runs: int, share: float, resamples: int, seed: int) -> int:
    """Print the comparison; 1 where the grid found a better objective."""
    if runs < 10 or not 0 < share <= 1 or resamples < 1:
        raise ValueError(
            f"--runs {runs} --share {share} --resamples {resamples}: they must be at least 10, "
            "in (0, 1] and at least 1"
        )
    size, tokens, loss = world(runs, seed)
    found, own = _timed(lambda: fit(size, tokens, loss))
    assert isinstance(found, ParametricFit), "the made runs hold a law"
    resampled, drawn = _timed(lambda: bootstrap(found, resamples=resamples, seed=seed))
    chosen = _some(grid(found), share, seed)
    values, searched = _timed(lambda: search(found, chosen))
    other = _peer(found, (size, tokens, loss), len(chosen))
    best = min(found.objective, float(values.min()), *(row.best for row in other))
    ours = np.array([found.objective])
    rows = [
        Row("isoflop fit", own, found.objective, found.agreeing / found.starts),
        Row(f"scipy, {len(chosen)} starts", searched, float(values.min()), _reached(values, best)),
        *other,
    ]
    print(f"{runs} runs, Huber delta 1e-3, form {found.form.name}; CPU seconds")
    for row in rows:
        reached = f"   {100 * row.reached:5.1f} % of starts reach it" if row.reached >= 0 else ""
        print(f"  {row.method:26} {row.cpu:9.3f} s   objective {row.best:.10e}{reached}")
    if not other:
        print("  the package chinchilla is not installed, so it is not in this comparison")
    whole = searched * ALL_STARTS / len(chosen)
    print(
        f"  all {ALL_STARTS} starts would take scipy {whole:.0f} s (from {len(chosen)} of them): "
        f"{whole / own:.0f} times the fit"
    )
    print(
        f"  {resamples} resamples {drawn:.2f} s; {resampled.unconverged} did not converge, "
        f"{resampled.at_boundary} at the boundary"
    )
    worse = float(ours[0] / best - 1)
    print(f"  the fit's objective lies {worse:.1e} (relative) above the best of both")
    return int(worse > SAME)


def _peer(found: ParametricFit, runs: tuple[Array, Array, Array], starts: int) -> list[Row]:
    """The package `chinchilla` on the same runs, its law at our objective; none where it is not."""
    if not peer.installed():
        return []
    peer.prepare()
    law, cpu = _timed(lambda: peer.search(*runs, starts, found.loss.delta))
    matrix, shift = FORMS["chinchilla"].uncentred(found.centre)
    plain = [np.log(law.values["A"]), np.log(law.values["B"]), np.log(law.values["E"])]
    whole = np.array([*plain, law.values["alpha"], law.values["beta"]])
    theta: Array = np.asarray(np.linalg.solve(matrix, whole - shift), dtype=np.float64)
    value = float(evaluate(found.problem, found.weights[None], theta[None])[0])
    return [Row(f"chinchilla, {law.starts} starts", cpu, value, -1.0)]


def world(runs: int, seed: int) -> tuple[Array, Array, Array]:
    """Sizes, tokens and losses of runs over four decades of compute about Hoffmann's law."""
    random = np.random.default_rng(seed)
    flops = 10 ** random.uniform(18, 22, runs)
    size = np.sqrt(flops / 120) * np.exp(random.uniform(-1.5, 1.5, runs))
    tokens = flops / (6 * size)
    law = 1.82 + 482 * size**-0.348 + 2085 * tokens**-0.366
    return size, tokens, law * np.exp(0.005 * random.standard_t(4, runs))


def grid(found: ParametricFit) -> Array:
    """The papers' starts (4500, 5) in the fit's centred coordinates."""
    axes = {
        "a": np.arange(0, 26, 5.0),
        "b": np.arange(0, 26, 5.0),
        "e": np.arange(-1, 1.1, 0.5),
        "alpha": np.arange(0, 2.1, 0.5),
        "beta": np.arange(0, 2.1, 0.5),
    }
    starts = np.array(list(product(*axes.values())))
    matrix, shift = FORMS["chinchilla"].uncentred(found.centre)
    inside: Array = (starts - shift) @ np.linalg.inv(matrix).T
    return inside


def _some(starts: Array, share: float, seed: int) -> Array:
    count = max(1, round(share * len(starts)))
    chosen: Array = np.random.default_rng(seed).permutation(starts)[:count]
    return chosen


def search(found: ParametricFit, starts: Array) -> Array:
    """The objective (S,) at which scipy stops from each start (S, 5)."""
    from scipy.optimize import minimize

    problem, weights = found.problem, found.weights[None]
    matrix, shift = FORMS["chinchilla"].uncentred(found.centre)
    inverse = np.linalg.inv(matrix)

    def cost(plain: Array) -> tuple[float, Array]:
        """In the papers' own, uncentred parameters."""
        local = problem.local((inverse @ (plain - shift))[None], weights, True)
        return float(local.value[0]), inverse.T @ local.gradient[0]

    ends = []
    for start in starts:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            ends.append(minimize(cost, matrix @ start + shift, jac=True, method="L-BFGS-B").fun)
    return np.array(ends, dtype=float)


def _reached(values: Array, best: float) -> float:
    return float((values <= best * (1 + SAME)).mean())


def _timed(work: Callable[[], Made]) -> tuple[Made, float]:
    began = time.process_time()
    made = work()
    return made, time.process_time() - began
