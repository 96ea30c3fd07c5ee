"""Do the budgets of somebody's table have loss minima, and do these agree with the law?

Approach 2 for tables without a column of budgets: runs whose compute lies within a few per cent are
one budget. The parabolas are corrected with the exponents of the family's Chinchilla law.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from isoflop.scaling.interval import Interval, Refusal, compact, scientific
from isoflop.scaling.isoflop import FEWEST_SIZES, Exponents, Minimum, exponents, minima
from isoflop.scaling.parametric import Resampled

APART = 1.1  # budgets differ by at least this factor
WIDE = 1.2  # and runs of one budget by at most this one


def contours(frame: pd.DataFrame) -> pd.Series | None:
    """Each run's budget (the geometric mean of its clump's compute), nan where its clump has fewer
    than 4 sizes or is spread too far; None where fewer than 2 clumps are budgets."""
    logs = np.log(frame["flops"].to_numpy(float))
    order = np.argsort(logs, kind="stable")
    clump = np.empty(len(logs), dtype=int)
    clump[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > np.log(APART))])
    found = pd.Series(np.nan, index=frame.index)
    for each in range(clump.max() + 1):
        rows = clump == each
        sizes = len(np.unique(frame["size"].to_numpy(float)[rows]))
        if sizes >= FEWEST_SIZES and np.ptp(logs[rows]) <= np.log(WIDE):
            found[rows] = float(np.exp(logs[rows].mean()))
    return found if found.nunique() >= 2 else None


def lowest(
    frame: pd.DataFrame, law: Resampled | None, *, resamples: int, seed: int
) -> tuple[list[Minimum], Exponents] | None:
    """The minima of one family's budgets and their exponents; None where there are no budgets.

    `law`: the family's Chinchilla law, whose exponents correct the parabolas (None: plain ones).
    """
    budget = contours(frame)
    if budget is None:
        return None
    runs = frame.assign(budget=budget, status="finished").dropna(subset="budget")
    name = str(runs["family"].iloc[0])
    usable = law is not None and not law.fit.boundary
    found = minima(
        runs,
        family="family",
        budget="budget",
        size="size",
        resamples=resamples,
        seed=seed,
        curve="corrected" if usable else "parabola",
        lopsided={name: (law.fit.alpha, law.fit.beta)} if law is not None and usable else None,
    )
    return found, exponents(found)[0]


def lines(
    family: str, found: Sequence[Minimum], growth: Exponents, law: Resampled | None
) -> list[str]:
    """What a terminal shows, and whether approaches 2 and 3 contradict each other."""
    shown = [f"minima of budgets (approach 2), {family}:"]
    for minimum in found:
        at = f"  {scientific(minimum.budget)} FLOPs, {minimum.points} runs: "
        if minimum.size is None or minimum.loss is None:
            shown.append(f"{at}no minimum, {minimum.status}")
            continue
        size, loss = minimum.size, minimum.loss
        shown.append(
            f"{at}N {compact(size.value)} [{compact(size.low)}, {compact(size.high)}], "
            f"loss {loss.value:.4f} [{loss.low:.4f}, {loss.high:.4f}]"
        )
    if isinstance(growth.status, Refusal) or growth.a is None:
        return [*shown, f"  no exponent: {growth.status}"]
    a = growth.a
    shown.append(f"  N* ~ C^a with a = {a.value:.3f} [{a.low:.3f}, {a.high:.3f}]")
    return [*shown, *agreement(a, law)]


def agreement(a: Interval, law: Resampled | None) -> list[str]:
    """Whether N* ~ C^a by another approach contradicts the Chinchilla law."""
    if law is None or law.fit.boundary:
        return []
    draws = law.draws("beta") / (law.draws("alpha") + law.draws("beta"))
    low, high = np.quantile(draws, [0.025, 0.975])
    said = law.fit.beta / (law.fit.alpha + law.fit.beta)
    apart = a.high < low or high < a.low
    words = "CONTRADICTS it: one of them is biased" if apart else "agrees"
    return [f"  approach 3 (chinchilla) {words}: {said:.3f} [{low:.3f}, {high:.3f}]"]
