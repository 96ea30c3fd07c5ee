"""How does everything that models write move with scale, and are the best by loss the best at it?

`metric_laws` puts a law on every rollout metric of a run table, against compute, size and loss.
`agreement` is the rank correlation between the order of runs by loss and that by a metric: where it
is low, choosing by loss chooses other text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from isoflop.scaling.interval import Array, Refusal
from isoflop.scaling.isoflop import finished
from isoflop.scaling.metrics import Kind, MetricLaw, metric_law

SIZE = "params_without_input_embedding"
AGAINST = ("flops", "size", "loss")
RESAMPLES = 2000
FEWEST = 5  # runs

Direction = Literal["up", "down", "band"]


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two orders of the same runs: 1 the same, 0 unrelated, -1 reversed."""

    metric: str
    runs: int
    tau: float
    low: float  # 95 %, by bootstrap over runs
    high: float
    best_by_loss: str  # runs
    best_by_metric: str

    @property
    def same_choice(self) -> bool:
        return self.best_by_loss == self.best_by_metric


def rollout_metrics(table: pd.DataFrame) -> list[str]:
    """The rollout metrics among a run table's columns, without their bounds."""
    names = [str(name) for name in table.columns if str(name).startswith("rollout/")]
    return [name for name in names if not name.endswith((".low", ".high"))]


def metric_laws(
    table: pd.DataFrame, *, rates: Collection[str] = (), resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """One row per rollout metric and axis (flops, size, loss) over the finished runs of a table.

    `shape` of the law, its root mean square error on budgets held out (`held_out`) and that error
    as a share of the metric's spread over all runs (`relative`: at 1 the law tells nothing), the
    value that it predicts a factor of ten beyond (`beyond`; of a loss, a tenth below) with its
    interval, or why there is none (`refused`). Metrics among `rates` lie in [0, 1] and follow a
    logistic, the others a power without a break: a broken one, fitted to the noise of a few runs,
    has said 1e26 of a share beyond them.
    """
    runs = finished(table)
    rows = []
    for metric in rollout_metrics(runs):
        known = runs[runs[metric].notna() & runs["loss"].notna()]
        for against in AGAINST:
            kind: Kind = "rate" if metric in rates else "value"
            law = _law(known, metric, against, kind, resamples, seed) if len(known) else None
            x = known[_column(against)].to_numpy(float)
            rows.append({"metric": metric, "against": against, "runs": len(known),
                         **_described(law, known[metric].to_numpy(float), x, seed)})  # fmt: skip
    return pd.DataFrame(rows)


def _column(against: str) -> str:
    return {"flops": "flops", "size": SIZE, "loss": "loss"}[against]


def _law(
    runs: pd.DataFrame, metric: str, against: str, kind: Kind, resamples: int, seed: int
) -> MetricLaw | Refusal:
    value = runs[metric].to_numpy(float)
    groups = runs[SIZE if against == "size" else "flops"].to_numpy(float)
    loss = runs["loss"].to_numpy(float) if against == "loss" else None
    return metric_law(
        value, groups, loss=loss, kind=kind, breaks=False, resamples=resamples, seed=seed
    )


def _described(
    law: MetricLaw | Refusal | None, value: Array, x: Array, seed: int
) -> dict[str, object]:
    if not isinstance(law, MetricLaw):
        return {"refused": str(law) if law is not None else "no finished run has it"}
    shape = law.curve.shape.name
    error, spread = law.held_out.get(shape), float(np.std(value))
    at = float(x.min() * 0.9 if law.against == "loss" else x.max() * 10)
    beyond = law.predict(at, seed=seed)
    return {
        "shape": shape,
        "held_out": error,
        "relative": error / spread if error is not None and spread > 0 else None,
        "beyond": beyond.value,
        "low": beyond.low,
        "high": beyond.high,
        "refused": "",
    }


def agreement(
    table: pd.DataFrame,
    metric: str,
    *,
    direction: Direction = "up",
    reference: float | Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Agreement | Refusal:
    """How far the order of the finished runs by `loss` is that by `metric` (a column).

    `direction`: which end of the metric is best; for a band it is nearness to `reference`, the
    value of human text, or each run's own. Raises ValueError for a metric that the table lacks, and
    for a band without its reference.
    """
    if metric not in table:
        raise ValueError(f"the run table has no column {metric!r}")
    if direction == "band" and reference is None:
        raise ValueError(f"{metric} is a band: give the reference that it should be near to")
    runs = finished(table)
    runs = runs[runs[metric].notna() & runs["loss"].notna()]
    if isinstance(reference, Mapping):
        runs = runs[runs["run"].isin(reference.keys())]
    if len(runs) < FEWEST:
        why = f"{len(runs)} finished runs have {metric}"
        return Refusal("too few points", why, f"finish at least {FEWEST}")
    loss, value = runs["loss"].to_numpy(float), runs[metric].to_numpy(float)
    worse = {"up": -value, "down": value}.get(direction)
    worse = np.abs(value - _near(runs, reference)) if worse is None else worse
    tau = _tau(loss, worse)
    if tau is None:
        why = f"all runs have the same {metric}, or the same loss"
        return Refusal("nothing to explain", why, "add runs of more or less compute")
    draws = np.random.default_rng(seed).integers(len(runs), size=(resamples, len(runs)))
    drawn = [_tau(loss[rows], worse[rows]) for rows in draws]
    low, high = np.quantile([item for item in drawn if item is not None], [0.025, 0.975])
    names = runs["run"].astype(str).to_numpy()
    return Agreement(
        metric, len(runs), tau, float(low), float(high),
        str(names[loss.argmin()]), str(names[worse.argmin()]),
    )  # fmt: skip


def _near(runs: pd.DataFrame, reference: float | Mapping[str, float] | None) -> Array:
    """What each run's value should be near to."""
    if isinstance(reference, Mapping):
        return np.array([reference[run] for run in runs["run"]], dtype=float)
    return np.full(len(runs), reference or 0.0)


def _tau(x: Array, y: Array) -> float | None:
    """Kendall's tau-b; None where one side has no order."""
    a, b = np.sign(x[:, None] - x[None, :]), np.sign(y[:, None] - y[None, :])
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm else None
