"""Do two runs, or two steps of one, write differently, and in which respects?

The same prompts were asked with the same seeds, so differences are taken pair by pair, and what a
prompt does to both drops out. Prompts are the sample (Miller 2024, arXiv 2411.00640). Of many
metrics some differ by chance: Holm's correction bounds the probability of even one false alarm,
Benjamini and Hochberg's the share of them.

Two minimum sample sizes are declared. Below `FEWEST` prompts no p is given. Below the `least` that
a metric declares for itself the p stands, since it knows its own error, but the row is `few`: a
difference that is there is likely to go unseen, and `needed` says how many prompts would show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.rollouts.catalogue import METRICS, VALUES
from isoflop.rollouts.rows import column as column_of
from isoflop.rollouts.statistics import Aggregate, Draw, mean

if TYPE_CHECKING:
    import pandas as pd

KEY = ["spec", "prompt_id", "sample_id"]
FEWEST = 5  # prompts: with fewer, an interval or a p-value says little

LEAST = {metric.name: metric.least for metric in METRICS}

Floats = NDArray[np.float64]
Rule = Callable[[Floats, int], Floats]  # of the n ordered p-values


def paired(
    first: pd.DataFrame, second: pd.DataFrame, metric: str, draw: Draw = "prompts"
) -> Aggregate:
    """The mean of `metric` in the second rows less that in the first, over pairs of both.

    Each frame has one row per set, prompt and sample, as `capture.read` gives for one run and step.
    Raises ValueError where a frame has two of the same, or the metric stands in neither.
    """
    column = column_of(metric, [*first.columns])
    for frame, name in ((first, "first"), (second, "second")):
        if column is None or column not in frame:
            raise ValueError(f"the {name} rows have no metric {metric!r}")
        if frame.duplicated(KEY).any():
            raise ValueError(
                f"the {name} rows hold a prompt and sample twice; take one run and one step"
            )
    pairs = first[[*KEY, column]].merge(second[[*KEY, column]], on=KEY, suffixes=("_1", "_2"))
    assert column is not None
    difference = pairs[f"{column}_2"].astype(float) - pairs[f"{column}_1"].astype(float)
    prompts = pairs.groupby(["spec", "prompt_id"], sort=True).ngroup()
    values: Floats = np.asarray(difference, dtype=np.float64)
    return mean(values, prompts.to_numpy(), draw=draw)


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metrics: Sequence[str] = VALUES,
    draw: Draw = "prompts",
) -> pd.DataFrame:
    """One row per metric that both have: the `paired` difference, p, and p corrected for as many.

    `p` is of no difference, two-sided, by Student's t over prompts; NaN below `FEWEST` prompts.
    `least` is how many rollouts the metric declares to need, 0 where it does not; `few` says that
    these are fewer.
    """
    import pandas as pd

    rows = []
    for metric in metrics:
        if not all(column_of(metric, [*frame.columns]) for frame in (first, second)):
            continue
        found = paired(first, second, metric, draw)
        least = LEAST.get(metric, 0)
        few = 0 < found.rollouts < least
        told = {"p": probability(found), "least": least, "few": few}
        rows.append({"metric": metric, **asdict(found), **told})
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = holm(table["p"])
        table["p_false_discovery"] = false_discovery(table["p"])
    return table


def probability(found: Aggregate) -> float:
    """The two-sided p-value of a mean of zero; NaN where there is no error to judge it by."""
    from scipy.special import stdtr

    if found.value is None or not found.standard_error or found.prompts < FEWEST:
        return math.nan
    return float(2 * stdtr(found.prompts - 1, -abs(found.value / found.standard_error)))


def holm(p: ArrayLike) -> Floats:
    """p-values (n,) corrected so that all are right at once (Holm 1979); NaN where it was NaN."""

    def steps(ordered: Floats, n: int) -> Floats:
        return np.asarray(np.maximum.accumulate(ordered * np.arange(n, 0, -1)))

    return _corrected(p, steps)


def false_discovery(p: ArrayLike) -> Floats:
    """p-values (n,) corrected for the share of false alarms (Benjamini & Hochberg 1995)."""

    def steps(ordered: Floats, n: int) -> Floats:
        raised: Floats = ordered * n / np.arange(1, n + 1)
        return np.asarray(np.minimum.accumulate(raised[::-1])[::-1])

    return _corrected(p, steps)


def _corrected(p: ArrayLike, rule: Rule) -> Floats:
    values = np.asarray(p, dtype=np.float64)
    if ((values < 0) | (values > 1)).any():
        raise ValueError(f"p-values lie in [0, 1]; these are {values.tolist()}")
    found = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    found[order] = np.minimum(rule(values[order], len(order)), 1)
    return found


def clustered_error(
    values: Sequence[float] | Floats, prompts: Sequence[int] | NDArray[np.integer]
) -> float | None:
    """The standard error of the mean of values (n,) that resemble each other within a prompt, in
    closed form (CR1: Liang & Zeger 1986, times G / (G - 1)); None with a single prompt."""
    array = np.asarray(values, dtype=np.float64)
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    G = int(group.max(initial=-1)) + 1
    if G < 2:
        return None
    sums = np.bincount(group, weights=array - array.mean())
    return float(math.sqrt(G / (G - 1) * (sums @ sums)) / len(array))


def needed(found: Aggregate, half_width: float) -> int | None:
    """About so many prompts, with as many seeds each, give an interval of +- `half_width`; None
    where the error is not known."""
    if not half_width > 0:
        raise ValueError(f"half_width is {half_width}; it must be above 0")
    if not found.standard_error:
        return None
    return max(FEWEST, math.ceil(found.prompts * (1.96 * found.standard_error / half_width) ** 2))
