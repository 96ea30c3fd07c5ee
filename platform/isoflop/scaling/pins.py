"""Which parameters are held at a value, and how does a fit keep them there?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isoflop.scaling.forms import Centre, Form
from isoflop.scaling.interval import Array

NOTHING = -80.0  # the logarithm that stands for a floor pinned at 0


def pins_of(form: Form, pinned: Mapping[str, float]) -> dict[str, float]:
    for name, value in pinned.items():
        if name not in form.pinnable:
            allowed = ", ".join(form.pinnable)
            raise ValueError(f"{form.name} cannot pin {name!r}; it can pin {allowed}")
        if not (value > 0 or (value == 0 and name == "E")) or not np.isfinite(value):
            raise ValueError(f"{name} is pinned at {value}; it must be above 0 (E: at least 0)")
    return {name: float(value) for name, value in pinned.items()}


def onto(
    form: Form, theta: Array, centre: Centre, pins: Mapping[str, float]
) -> tuple[Array, Array]:
    """theta (S, P) moved the shortest way to where the pinned parameters have their values, and
    the directions (P, Q) along which they keep them: every pin is one linear equation."""
    matrix, shift = form.uncentred(centre)
    rows = [form.coordinates.index(name) for name in pins]
    wanted = [_coordinate(form, name, value) for name, value in pins.items()]
    equations, values = matrix[rows], np.array(wanted) - shift[rows]
    moved = theta + (values - theta @ equations.T) @ np.linalg.pinv(equations).T
    _, _, right = np.linalg.svd(equations)
    return moved, right[len(rows) :].T


def _coordinate(form: Form, name: str, value: float) -> float:
    if name in form.exponents:
        return value
    return float(np.log(value)) if value > 0 else NOTHING
