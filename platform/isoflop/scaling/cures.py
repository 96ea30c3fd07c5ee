"""Which runs would let a refused question be answered?

Every cure names runs by parameters, tokens and FLOPs, so that they can be bought. They stay within
the compute of the runs at hand (the most of any of them), except where only more compute cures.
"""

from __future__ import annotations

import numpy as np

from isoflop.scaling.interval import Array, Wanted

STEP = float(np.log(4.0))  # how far a size or a token count must be from the others to tell
CELLS = 9  # per axis of the grid of candidates


def run(x: float, y: float, log_factor: float) -> Wanted:
    """The run at ln N = x and ln D = y, with exp(log_factor) FLOPs per parameter and token."""
    return Wanted(float(np.exp(x)), float(np.exp(y)), float(np.exp(x + y + log_factor)))


def apart(x: Array, y: Array, c: Array, count: int) -> tuple[Wanted, ...]:
    """`count` runs that lie as far as can be from the runs at hand, and from each other, in ln N
    and ln D, none dearer than the dearest run (maximin distance; Johnson et al. 1990)."""
    log_factor = float((c - x - y).mean())
    axes = [np.linspace(v.min() - STEP / 2, v.max() + STEP / 2, CELLS) for v in (x, y)]
    grid = np.array(np.meshgrid(*axes)).reshape(2, -1).T
    grid = grid[grid.sum(axis=1) + log_factor <= c.max() + 1e-9]
    near = np.min(((grid[:, None] - np.column_stack([x, y])) ** 2).sum(axis=2), axis=1)
    chosen = []
    for _ in range(min(count, len(grid))):
        best = int(near.argmax())
        chosen.append(run(grid[best, 0], grid[best, 1], log_factor))
        near = np.minimum(near, ((grid - grid[best]) ** 2).sum(axis=1))
    return tuple(chosen)


def other_sizes(x: Array, y: Array, c: Array) -> tuple[Wanted, ...]:
    """Two smaller sizes on the median tokens: the law needs at least two sizes, better three."""
    log_factor, tokens = float((c - x - y).mean()), float(np.median(y))
    return tuple(run(float(x.min()) - k * STEP, tokens, log_factor) for k in (1, 2))


def other_lengths(x: Array, y: Array, c: Array) -> tuple[Wanted, ...]:
    """Two shorter runs of the median size."""
    log_factor, size = float((c - x - y).mean()), float(np.median(x))
    return tuple(run(size, float(y.min()) - k * STEP, log_factor) for k in (1, 2))


def off_the_line(x: Array, y: Array, c: Array) -> tuple[Wanted, ...]:
    """The smallest size on four times its tokens, and the largest on a fourth of its own."""
    log_factor, small, large = float((c - x - y).mean()), int(x.argmin()), int(x.argmax())
    return (run(x[small], y[small] + STEP, log_factor), run(x[large], y[large] - STEP, log_factor))


def beyond(x: Array, y: Array, c: Array, *, below: int = 0, above: int = 0) -> tuple[Wanted, ...]:
    """Sizes of the same budget below the smallest and above the largest, spaced as the others."""
    log_factor, budget = float((c - x - y).mean()), float(c.mean())
    sizes = np.unique(x)
    step = float(np.median(np.diff(sizes))) if len(sizes) > 1 else STEP / 2
    places = [float(sizes[0]) - step * k for k in range(below, 0, -1)]
    places += [float(sizes[-1]) + step * k for k in range(1, above + 1)]
    return tuple(run(place, budget - log_factor - place, log_factor) for place in places)


def between(x: Array, y: Array, c: Array, best: float) -> tuple[Wanted, ...]:
    """Sizes of the same budget halfway from ln N = `best` to its neighbours on either side."""
    log_factor, budget = float((c - x - y).mean()), float(c.mean())
    sizes = np.unique(x)
    sides = [sizes[sizes < best][-1:], sizes[sizes > best][:1]]
    places = [(best + float(side[0])) / 2 for side in sides if len(side)]
    return tuple(run(place, budget - log_factor - place, log_factor) for place in places)


def another_budget(log_size: float, log_flops: float, log_factor: float) -> tuple[Wanted, ...]:
    """Five sizes about the optimum of a fourth of the compute, where N* grows about as C^1/2."""
    centre, budget = log_size - STEP / 2, log_flops - STEP
    places = centre + np.linspace(-1.0, 1.0, 5) * STEP
    return tuple(run(float(x), budget - log_factor - float(x), log_factor) for x in places)
