"""Is one state of a model better than another, and what is the difference worth in compute?

Two run tables of the same study, `base` and `head`: another study's results, or the same study
under two commits. Runs that agree in every axis (seed included) saw the same data in the same
order, so they are compared in pairs; what moves both alike cancels. Beside it stand the minima at
equal compute and the compute multiplier by laws that share one floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoflop.report.analysis import SIZE, Analysis, Worth, analyse, best_of, swept_axes
from isoflop.scaling.interval import LEVEL, Interval, Refusal, scientific
from isoflop.scaling.isoflop import families, finished

SIDE = "axis.side"
BASE, HEAD = "base", "head"
FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Paired:
    """Head less base over runs that differ in nothing else, in nats per token."""

    budget: float | None  # None: over all budgets
    pairs: int
    difference: Interval | Refusal


@dataclass(frozen=True)
class FamilyComparison:
    """One architecture (or whatever the study's families are) in both states."""

    family: str
    paired: tuple[Paired, ...]  # every budget, and at last all of them
    analysis: Analysis  # whose families are base and head

    @property
    def worth(self) -> Worth | None:
        """The multiplier, told from the better side."""
        return self.analysis.worths[0] if self.analysis.worths else None

    @property
    def conclusion(self) -> str:
        """One sentence that a reviewer can act on."""
        overall = self.paired[-1].difference
        if isinstance(overall, Refusal):
            return f"{self.family}: nothing can be concluded: {overall}."
        if overall.low <= 0 <= overall.high:
            return (
                f"{self.family}: no difference can be told; head less base is "
                f"{_nats(overall)} nats per token."
            )
        word = "better" if overall.value < 0 else "worse"
        return f"{self.family}: head is {word} by {_nats(_absolute(overall))} nats per token."


@dataclass(frozen=True)
class Comparison:
    """Base against head, family by family."""

    base: str  # what they are called
    head: str
    families: tuple[FamilyComparison, ...]
    left_out: tuple[str, ...] = ()  # families that one side lacks


def compare(
    base: pd.DataFrame,
    head: pd.DataFrame,
    *,
    names: tuple[str, str] = (BASE, HEAD),
    family: str | None = "axis.arch",
    budget: str | None = "axis.flops",
    size: str = SIZE,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Raises ValueError where the tables share no family, or lack a column."""
    for table, name in zip((base, head), names, strict=True):
        missing = [c for c in (family, budget, size, "loss", "status") if c and c not in table]
        if missing:
            raise ValueError(f"the runs of {name} have no column {missing[0]!r}")
    sides = {name: families(table, family) for name, table in ((BASE, base), (HEAD, head))}
    both = [name for name in dict.fromkeys(sides[BASE]) if (sides[HEAD] == name).any()]
    if not both:
        raise ValueError(
            f"{names[0]} has the families {', '.join(sides[BASE].unique())}, and {names[1]} has "
            f"{', '.join(sides[HEAD].unique())}: none in common"
        )
    found = []
    for name in both:
        one, two = base[sides[BASE] == name], head[sides[HEAD] == name]
        joined = pd.concat([one.assign(**{SIDE: BASE}), two.assign(**{SIDE: HEAD})])
        joined = joined.reset_index(drop=True)
        found.append(
            FamilyComparison(
                str(name),
                _paired(one, two, budget, size),
                analyse(joined, family=SIDE, budget=budget, size=size, resamples=resamples,
                        seed=seed),
            )
        )  # fmt: skip
    alone = sorted({*sides[BASE], *sides[HEAD]} - set(both))
    return Comparison(*names, tuple(found), tuple(map(str, alone)))


def _paired(
    base: pd.DataFrame, head: pd.DataFrame, budget: str | None, size: str
) -> tuple[Paired, ...]:
    """Per budget and overall: the mean difference of pairs."""
    swept = swept_axes(base, None, budget, size)
    one, two = (best_of(finished(t), swept, None, budget, size) for t in (base, head))
    shared = [str(c) for c in one if str(c).startswith("axis.") and c in two]
    axes = [c for c in shared if c not in swept]
    pairs = one.merge(two, on=axes, suffixes=(".base", ".head"))
    pairs = pairs.assign(difference=pairs["loss.head"] - pairs["loss.base"])
    cell = [c for c in axes if c != "axis.seed"]
    groups = [(float(str(b)), g) for b, g in pairs.groupby(budget)] if budget else []
    parts = [Paired(b, len(g), mean_difference(g, cell)) for b, g in groups]
    return (*parts, Paired(None, len(pairs), mean_difference(pairs, cell)))


def mean_difference(pairs: pd.DataFrame, cell: Sequence[str]) -> Interval | Refusal:
    """The mean of `difference` with Student's interval over cells: seeds of one cell share its
    circumstances, and are one observation."""
    cells = pairs.groupby(list(cell), dropna=False)["difference"] if len(pairs) else None
    means = np.empty(0) if cells is None else cells.mean().to_numpy(float)
    if len(means) < FEWEST_PAIRS:
        return Refusal(
            "too few points",
            f"{len(means)} pairs of runs agree in all axes, and {FEWEST_PAIRS} are needed",
            "train the same points in both",
        )
    from scipy.special import stdtrit

    centre, error = float(means.mean()), float(means.std(ddof=1)) / len(means) ** 0.5
    half = float(stdtrit(len(means) - 1, (1 + LEVEL) / 2)) * error
    return Interval(centre, centre - half, centre + half)


def _absolute(value: Interval) -> Interval:
    if value.value >= 0:
        return value
    return Interval(-value.value, -value.high, -value.low)


def _nats(value: Interval) -> str:
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def markdown(found: Comparison, question: str = "") -> str:
    """The comparison as the note of a pull request."""
    lines = [f"### {found.head} against {found.base}", ""]
    lines += [question, ""] if question else []
    lines += [f"- {one.conclusion}{_worth(one, found)}" for one in found.families]
    if found.left_out:
        lines.append(f"- Only in one of the two, and not compared: {', '.join(found.left_out)}.")
    lines += [
        "",
        "| family | FLOPs | pairs | head less base, nats per token | best size: base | head |",
        "|---|---|---|---|---|---|",
    ]
    for one in found.families:
        minima = {(m.family, m.budget): m for m in one.analysis.minima}
        for part in one.paired:
            best = [_bottom(minima.get((side, part.budget or 0.0))) for side in (BASE, HEAD)]
            shown = _nats(part.difference) if isinstance(part.difference, Interval) else "too few"
            at = scientific(part.budget) if part.budget else "all"
            cells = (one.family, at, str(part.pairs), shown, *best)
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Square brackets: 95 % intervals. Pairs agree in every axis and saw the same data; their "
        "interval is over sizes. A shared error, as an ill-tuned learning rate, is not in it.",
        "",
    ]
    return "\n".join(lines)


def _worth(one: FamilyComparison, found: Comparison) -> str:
    worth = one.worth
    if worth is None or isinstance(worth.multiplier, Refusal):
        return ""
    m, other = worth.multiplier, found.base if worth.first == HEAD else found.head
    sure = "" if m.low > 1 else ", which cannot be told from 1"
    leader = found.head if worth.first == HEAD else found.base
    return (
        f" By the laws, {other} needs {m.value:.2f} [{m.low:.2f}, {m.high:.2f}] times the compute "
        f"of {leader} at {scientific(worth.flops)} FLOPs{sure}."
    )


def _bottom(minimum: object) -> str:
    loss = getattr(minimum, "loss", None)
    return f"{loss.value:.4f}" if loss else "none"


def as_json(found: Comparison) -> dict[str, object]:
    """Plain values: what a script or a bot reads."""
    return {
        "base": found.base,
        "head": found.head,
        "left_out": list(found.left_out),
        "families": [
            {
                "family": one.family,
                "conclusion": one.conclusion,
                "paired": [
                    {"budget": p.budget, "pairs": p.pairs, **_values(p.difference)}
                    for p in one.paired
                ],
                "multiplier": None
                if one.worth is None
                else {"first": one.worth.first, "second": one.worth.second,
                      "flops": one.worth.flops, **_values(one.worth.multiplier)},
            }
            for one in found.families
        ],
    }  # fmt: skip


def _values(value: Interval | Refusal) -> dict[str, object]:
    if isinstance(value, Refusal):
        return {"value": None, "low": None, "high": None, "refused": str(value)}
    bounds = {"value": value.value, "low": value.low, "high": value.high}
    return {name: bound if np.isfinite(bound) else None for name, bound in bounds.items()}
