"""How is a parameter kept within bounds, when the runs alone would carry it outside?

A law within bounds has each bounded parameter free, at its lower or at its upper bound. All of
these laws are fitted (a parameter at a bound is a pinned one) and the lowest objective wins among
those that keep to all bounds; so it is for every resample. Exact, where a penalty is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from isoflop.scaling.forms import Centre, Form
from isoflop.scaling.interval import Array

MOST = 3  # bounded parameters: each triples the fits
SLACK = 1e-9
Bounds = Mapping[str, tuple[float, float]]


def check(form: Form, bounds: Bounds, pins: Mapping[str, float]) -> None:
    """Raises ValueError for a parameter that cannot be bounded, and for bounds out of order."""
    if len(bounds) > MOST:
        raise ValueError(f"{len(bounds)} parameters are bounded; at most {MOST} can be")
    for name, (low, high) in bounds.items():
        if name not in form.pinnable or name in pins:
            allowed = ", ".join(each for each in form.pinnable if each not in pins)
            raise ValueError(f"{form.name} cannot bound {name!r}; it can bound {allowed}")
        if not 0 <= low < high:
            raise ValueError(f"{name} is bounded by {low} and {high}; they must be 0 or above and "
                             "ascend")  # fmt: skip


def patterns(bounds: Bounds) -> list[dict[str, float]]:
    """Which parameters stand at which bound; the first pattern is none at any. A floor of 0 is no
    wall for a parameter whose logarithm is estimated, nor is an infinite ceiling."""
    sides = [[None, *(bound for bound in pair if 0 < bound < np.inf)] for pair in bounds.values()]
    return [
        {name: bound for name, bound in zip(bounds, choice, strict=True) if bound is not None}
        for choice in product(*sides)
    ]


def within(form: Form, theta: Array, centre: Centre, bounds: Bounds) -> NDArray[np.bool_]:
    """Which laws theta (S, P) keep to all bounds."""
    natural = form.natural(theta, centre)
    inside = np.ones(len(theta), dtype=bool)
    for name, pair in bounds.items():
        with np.errstate(divide="ignore"):
            low, high = np.log(pair) if name in form.logarithmic else pair
        inside &= (natural[name] >= low - SLACK) & (natural[name] <= high + SLACK)
    return inside


def parse(words: Sequence[str]) -> dict[str, tuple[float, float]]:
    """`NAME=LOW:HIGH` words, either end left out where there is none. Raises ValueError."""
    found = {}
    for word in words:
        name, _, pair = word.partition("=")
        low, colon, high = pair.partition(":")
        try:
            if not (name and colon):
                raise ValueError
            found[name] = (float(low or 0.0), float(high or np.inf))
        except ValueError:
            raise ValueError(f"--bound is {word!r}; it must be NAME=LOW:HIGH") from None
    return found
