"""Where is the minimum of a curve of losses, when the curve is not quite a parabola?

Along a budget a power law in N and one in D make L = E + s (beta exp(-alpha u) + alpha exp(beta
u)), u = ln N - ln N*: steeper on one side unless alpha = beta. A parabola laid through it by least
squares has its vertex off N*, the more so the wider the sizes. `unbias` inverts that: it finds the
N* for which the parabola through such a curve, at the very sizes of the study, has the vertex that
was seen. It needs the exponents only. `akima` asks for no shape at all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoflop.scaling.interval import Array

HALVINGS = 50
FINE = 400  # points of a spline that are looked at


def unbias(x: Array, curves: Array, alpha: float, beta: float) -> tuple[Array, Array]:
    """ln N* and the loss there, both (R,), from parabolas (R, 3) laid through sizes x = ln N (n,).

    Parabolas without an upward bend, or whose vertex no such curve within the sizes explains, give
    nan. Raises ValueError for exponents that are not above 0.
    """
    if not (alpha > 0 and beta > 0):
        raise ValueError(f"alpha is {alpha} and beta is {beta}; both must be above 0")
    second, slope, level = curves.T
    safe = np.where(second > 0, second, 1.0)
    vertex = -slope / (2 * safe)
    low, high = np.full(len(curves), x.min()), np.full(len(curves), x.max())
    start, end = (_parabola(x, edge, alpha, beta)[0] for edge in (low, high))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        before = _parabola(x, middle, alpha, beta)[0] < vertex
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    best = (low + high) / 2
    _, bottom, bend = _parabola(x, best, alpha, beta)
    loss = level - slope**2 / (4 * safe) - safe / bend * bottom
    explained = (second > 0) & (start <= vertex) & (vertex <= end)
    return np.where(explained, best, np.nan), np.where(explained, loss, np.nan)


def _parabola(x: Array, best: Array, alpha: float, beta: float) -> tuple[Array, Array, Array]:
    """Vertex, value there less the true minimum's, and second coefficient (R,) of the parabola
    through curves of unit scale with their minimum at `best` (R,)."""
    u = x - best[:, None]
    curve = (beta * np.exp(-alpha * u) + alpha * np.exp(beta * u)) / (alpha + beta) - 1
    centre = x.mean()
    second, slope, level = np.linalg.pinv(np.vander(x - centre, 3)) @ curve.T
    offset = -slope / (2 * second)
    return centre + offset, level + slope * offset / 2, second


def akima(x: Array, losses: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """ln N (R,), loss (R,) and whether it lies inside, of the minimum of Akima's spline (1970)
    through losses (R, n) at ascending sizes x = ln N; runs of one size are averaged."""
    from scipy.interpolate import Akima1DInterpolator

    sizes, place = np.unique(x, return_inverse=True)
    share = np.zeros((len(x), len(sizes)))
    share[np.arange(len(x)), place] = 1.0
    means = losses @ (share / share.sum(axis=0))
    fine = np.linspace(sizes[0], sizes[-1], FINE)
    values: Array = np.asarray(Akima1DInterpolator(sizes, means, axis=1)(fine), dtype=float)
    lowest = values.argmin(axis=1)
    inside = (lowest > 0) & (lowest < FINE - 1)
    return fine[lowest], values[np.arange(len(values)), lowest], inside
