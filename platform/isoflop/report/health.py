"""Were the runs of a family trained alike? Their loss curves tell, before any law is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoflop.scaling.collapse import Collapse, LossCurve, collapse, curve, ladder_of
from isoflop.scaling.interval import Array, Refusal
from isoflop.scaling.schedules import AnnealingLaw, fit_curve

SEEN = 0.8  # share of a run from which its end is predicted


@dataclass(frozen=True)
class Health:
    """What the curves of one family say."""

    family: str
    collapse: Collapse | Refusal
    foreseen: Foreseen | None = None


@dataclass(frozen=True)
class Foreseen:
    """How well the end of each run follows from its first 80 % and its learning rates."""

    runs: tuple[str, ...]
    error: Array  # (R,): predicted / measured - 1 of the last recorded training losses

    @property
    def typical(self) -> float:
        return float(np.median(np.abs(self.error)))


def health(
    family: str,
    runs: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    budget: str | None,
    floor: float | None,
) -> Health:
    """The collapse of the best runs of each budget, and how foreseeable every run's end was."""
    known: dict[str, LossCurve] = {}
    for name, frame in curves.items():
        if {"tokens", "train/loss"} <= set(frame) and name in set(runs["run"]):
            made = curve(name, frame["tokens"], frame["train/loss"])
            known.update({name: made} if made else {})
    compute = runs[budget] if budget else runs["tokens"]
    sizes = {
        str(run): (float(amount), float(loss))
        for run, amount, loss in zip(runs["run"], compute, runs["loss"], strict=True)
    }
    return Health(
        family,
        collapse(ladder_of(sizes, known), floor=floor, repeats=_repeats(runs, known)),
        _foreseen(known, curves),
    )


def _repeats(runs: pd.DataFrame, known: Mapping[str, LossCurve]) -> list[list[LossCurve]]:
    """Groups of runs that differ in the seed alone."""
    axes = [c for c in runs if str(c).startswith("axis.") and c != "axis.seed"]
    if "axis.seed" not in runs or not axes:
        return []
    groups = [group["run"] for _, group in runs.groupby(axes, dropna=False)]
    found = [[known[run] for run in group if run in known] for group in groups]
    return [group for group in found if len(group) > 1]


def _foreseen(
    known: Mapping[str, LossCurve], curves: Mapping[str, pd.DataFrame]
) -> Foreseen | None:
    errors = {}
    for run in known:
        frame = curves[run]
        if not {"step", "learning_rate"} <= set(frame):
            continue
        frame = frame.dropna(subset=["train/loss", "learning_rate"])
        steps = frame["step"].to_numpy(int)
        loss = frame["train/loss"].to_numpy(float)
        every = np.arange(1, steps[-1] + 1)
        rates = np.interp(every, steps, frame["learning_rate"].to_numpy(float))
        law = fit_curve(steps, loss, rates, until=int(SEEN * steps[-1]))
        if isinstance(law, AnnealingLaw):
            last = steps > 0.95 * steps[-1]
            predicted = law.predict(rates)[steps[last] - 1]
            errors[run] = float(predicted.mean() / loss[last].mean() - 1)
    if not errors:
        return None
    return Foreseen(tuple(errors), np.array(list(errors.values())))
