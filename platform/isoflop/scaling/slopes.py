"""What are the slopes of the smooth laws, in closed form?

`smooth` finds them by complex steps, which needs nothing but the law, and costs one complex
evaluation for each parameter. Written out they cost one real evaluation for all. Letters as there.
"""

from __future__ import annotations

import numpy as np

from isoflop.scaling.forms import Points
from isoflop.scaling.interval import Array

SHARP = 4.0  # inverse smoothness of a break


def _shares(*terms: Array) -> list[Array]:
    """The share of each term (S, n) in the sum of their exponentials."""
    top = np.maximum.reduce(terms)
    grown = [np.exp(term - top) for term in terms]
    total = sum(grown)
    return [each / total for each in grown]


def broken(theta: Array, at: Points) -> Array:
    """The slopes (S, P, n) of ln L at theta (S, P)."""
    a, b, e, alpha, beta, where, change = theta.T[:, :, None]
    steep = SHARP * (at.y - where)
    bend = np.logaddexp(0.0, steep) / SHARP
    size, data, floor = _shares(
        a - alpha * at.x, b - beta * at.y - change * bend, e + np.zeros_like(at.x)
    )
    past = np.exp(steep - np.logaddexp(0.0, steep))  # the logistic function
    found = (size, data, floor, -size * at.x, -data * at.y, data * change * past, -data * bend)
    return np.stack(found, axis=1)


def _bent(x: Array, slope: Array, power: Array) -> tuple[Array, Array, Array]:
    """slope (exp(power x) - 1) / power, and its slopes with both."""
    safe = np.where(np.abs(power) < 1e-6, 1e-6, power)
    steep = safe * x
    inside = steep < 50
    grown = np.exp(np.where(inside, steep, 50.0))
    by_slope = (grown - 1) / safe
    by_power = slope * (np.where(inside, x * grown, 0.0) - by_slope) / safe
    # Below, `power` does not enter the law at all (see `smooth`).
    return slope * by_slope, by_slope, np.where(np.abs(power) < 1e-6, 0.0, by_power)


def farseer(theta: Array, at: Points) -> Array:
    """The slopes (S, P, n) of ln L at theta (S, P)."""
    level3, slope3, gamma, level2, slope2, beta, level1, slope1, alpha = theta.T[:, :, None]
    grown, grown_slope, grown_power = _bent(at.x, slope1, alpha)
    grown = level1 + grown
    decay = np.exp(np.minimum(grown, 5.0))
    third, third_slope, third_power = _bent(at.x, slope3, gamma)
    second, second_slope, second_power = _bent(at.x, slope2, beta)
    floor, data = _shares(level3 + third, level2 + second - decay * at.y)
    fall = np.where(grown < 5.0, -data * decay * at.y, 0.0)
    found = (
        floor, floor * third_slope, floor * third_power,
        data, data * second_slope, data * second_power,
        fall, fall * grown_slope, fall * grown_power,
    )  # fmt: skip
    return np.stack(found, axis=1)
