"""Where should a fit start, so that its result owes nothing to luck?

For fixed exponents a sum of powers is linear in its coefficients (variable projection): a small
grid over one or two exponents, each with its least squares in closed form, replaces thousands of
starts over five parameters. The best cells are polished in `minimise`.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from isoflop.scaling.interval import Array
from isoflop.scaling.minimise import PowerSum, evaluate

GRID = 24  # cells per axis of the grid
STARTS = 8  # cells that are polished
MORE = 64  # where most of those end in different places


def starts(
    problem: PowerSum,
    weights: Array,
    coefficients: tuple[int, ...],
    axes: dict[int, Array],
    count: int = STARTS,
) -> Array:
    """The `count` most promising cells of the grid as theta (count, P), best first.

    `coefficients`: the parameter that is the logarithm of each term's coefficient; `axes`: the
    values to try for each other parameter. Local minima of the grid come before the neighbours of
    the best cell: a small noisy study can have two basins, and eight starts in one of them would
    say nothing about the other.
    """
    theta = _project(problem, weights, coefficients, axes)
    shape = tuple(len(axis) for axis in axes.values())
    value = evaluate(problem, weights[None], theta)
    padded = np.pad(value.reshape(shape), 1, constant_values=np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3,) * len(shape))
    around = tuple(range(-len(shape), 0))
    lowest = (windows.min(axis=around) == value.reshape(shape)).ravel()
    order = np.lexsort((value, ~lowest))
    chosen: Array = theta[order[:count]]
    return chosen


def _project(
    problem: PowerSum, weights: Array, coefficients: tuple[int, ...], axes: dict[int, Array]
) -> Array:
    """For each cell the non-negative least squares on relative errors, as theta (S, P)."""
    cells = np.array(list(product(*axes.values())))
    theta = np.zeros((len(cells), problem.size))
    theta[:, list(axes)] = cells
    power = 1.0 if problem.power is None else np.exp(theta[:, problem.power])[:, None, None]
    # In units of the measured loss (raised to the power that makes the law a sum), all are 1.
    columns = np.exp(problem.terms(theta) - problem.target / power)
    columns *= np.sqrt(weights)
    norms = np.sqrt((columns**2).sum(axis=2))
    columns /= norms[:, :, None]
    found = _non_negative(columns, np.sqrt(weights)) / norms
    floor = 1e-4 * found.max(axis=1, keepdims=True) + 1e-300  # logarithms start above 0
    theta[:, list(coefficients)] = np.log(np.maximum(found, floor))
    return theta


def _non_negative(columns: Array, target: Array) -> Array:
    """Least squares on (S, K, n) with no negative coefficient: the best feasible set of terms."""
    gram = columns @ columns.transpose(0, 2, 1)
    moment = columns @ target
    best = np.zeros(moment.shape)
    best_gain = np.zeros(len(moment))
    for kept in product((1.0, 0.0), repeat=moment.shape[1]):
        mask = np.array(kept)
        system = gram * np.outer(mask, mask) + np.diag(1 - mask + 1e-12)
        solution = np.linalg.solve(system, (moment * mask)[:, :, None])[:, :, 0]
        gain = (solution * moment).sum(axis=1)  # how far the squares fall below those of zero
        use = (solution >= 0).all(axis=1) & (gain > best_gain)
        best[use], best_gain[use] = solution[use], gain[use]
    return best
