"""What does the PyPI package `chinchilla` make of the same runs, where it is installed?

It is no dependency: its rows are missing where it is not there. It minimises the same objective
(log-Huber) by BFGS without slopes from a grid of starts, here the papers' grid or an even part of
it, in one process.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from isoflop.scaling.interval import Array

AXES = {
    "e": np.arange(-1, 1.1, 0.5),
    "a": np.arange(0, 26, 5.0),
    "b": np.arange(0, 26, 5.0),
    "alpha": np.arange(0, 2.1, 0.5),
    "beta": np.arange(0, 2.1, 0.5),
}
SILENT = 50  # its logging level


@dataclass(frozen=True)
class Found:
    """The law that the package ended at."""

    values: dict[str, float]
    starts: int


def installed() -> bool:
    return importlib.util.find_spec("chinchilla") is not None


def prepare() -> None:
    """Its imports, which are not what is measured."""
    importlib.import_module("chinchilla")


def search(size: Array, tokens: Array, loss: Array, starts: int, delta: float) -> Found:
    """Its fit from about so many starts, at most the papers' 4,500."""
    package: Any = importlib.import_module("chinchilla")
    huber = importlib.import_module("chinchilla._metrics").log_huber
    axes = part(starts)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        law = package.Chinchilla(
            folder, param_grid=axes, loss_fn=partial(huber, delta=delta), log_level=SILENT
        )
        runs = pd.DataFrame({"C": 6 * size * tokens, "N": size, "D": tokens, "loss": loss})
        law.database.df = runs
        law.fit(parallel=False)
    values = {name: float(getattr(law, name)) for name in ("E", "A", "B", "alpha", "beta")}
    return Found(values, int(np.prod([len(axis) for axis in axes.values()])))


def part(starts: int) -> dict[str, list[float]]:
    """As many evenly spaced values per axis as make about so many starts, two at least. Fewer than
    all are taken from inside: the ends of the papers' axes are the worst places to start from."""
    everything = int(np.prod([len(axis) for axis in AXES.values()]))
    each = max(2, round(starts ** (1 / len(AXES)))) if starts < everything else everything
    chosen = {}
    for name, axis in AXES.items():
        inside = np.linspace(0, len(axis) - 1, each + 2)[1:-1].round().astype(int)
        chosen[name] = [float(x) for x in (axis if each >= len(axis) else axis[np.unique(inside)])]
    return chosen
