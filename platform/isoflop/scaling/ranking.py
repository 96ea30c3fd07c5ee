"""Which of the runs that could be done next is worth its cost, and when is it time to stop?

`rank` takes two run tables, of the runs done and of candidates, and orders the candidates by what
they tell of the loss at a target compute (`gain`), each family at the size and tokens that its own
law finds best there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isoflop.scaling.forms import Points
from isoflop.scaling.gain import Asked, Belief, Step, believe, best_points, choose_together, gains
from isoflop.scaling.interval import NATS, Array, Refusal, compact, scientific
from isoflop.scaling.isoflop import families, finished

NORMAL = 1.96  # standard deviations on each side of a 95 % interval
LEAST = 0.01  # share of the interval that a run must take off to be worth starting
TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, where a law has no optimum of its own
SIZE = "params_without_input_embedding"


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What one family is expected to reach at the target compute, by the runs done."""

    family: str
    size: float
    tokens: float
    loss: float  # in the unit of the runs done
    deviation: float  # of ln L: the law's, without the noise of a run
    noise: float  # of ln L: one run's
    runs: int
    by_rule: bool  # size and tokens by 20 tokens per parameter, not by a law


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """One candidate in the order of what to run, with what it does beyond those before it."""

    row: int  # of the candidates
    family: str
    cost: float
    before: float  # half the 95 % prediction interval at the target, as a share of the loss
    after: float


@dataclass(frozen=True, eq=False)
class Ranking:
    """What to run, what for, and why no more than that."""

    target: float  # FLOPs
    aims: tuple[Aim, ...]
    prospects: tuple[Prospect, ...]
    gain: Array  # (m,): the fall of the variance of ln L by each candidate alone
    verdict: str
    notes: tuple[str, ...]


def rank(
    done: pd.DataFrame,
    candidates: pd.DataFrame,
    *,
    target: float,
    cost: Array,
    budget: float,
    family: str | None = "axis.arch",
    size: str = SIZE,
    most: int | None = None,
) -> Ranking:
    """The candidates (m rows of a run table; losses are not read) worth `cost` (m,).

    `done`: a run table, of which finished runs count. `budget`: the most that may be spent, in the
    unit of `cost`. Raises ValueError where no run has finished or the target is no compute.
    """
    if not 0 < target < np.inf:
        raise ValueError(f"the target is {target} FLOPs; it must be above 0, and finite")
    runs = finished(done)
    if not len(runs):
        raise ValueError("no run has finished, so there is nothing to choose the next one by")
    wanted = families(candidates, family)
    places, aims, asked, notes = _questions(runs, candidates, wanted, family, size, target)
    if not asked:
        return Ranking(target, (), (), np.full(len(candidates), np.nan), "nothing to run", notes)
    order = np.concatenate(places)
    steps = choose_together(asked, cost[order], budget=budget, most=most)
    noise = float(np.sqrt(np.mean([aim.noise**2 for aim in aims])))
    found = [_prospect(step, order, wanted, noise) for step in steps]
    worthy = [p for p in found if p.before - p.after >= LEAST * p.before]
    gain = np.full(len(candidates), np.nan)
    gain[order] = np.concatenate([gains(a.belief, a.candidates, a.targets) for a in asked])
    said = _verdict(worthy, len(order), bool(found), target)
    return Ranking(target, tuple(aims), tuple(worthy), gain, said, notes)


def _questions(
    runs: pd.DataFrame,
    candidates: pd.DataFrame,
    wanted: pd.Series,
    family: str | None,
    size: str,
    target: float,
) -> tuple[list[NDArray[np.intp]], list[Aim], list[Asked], tuple[str, ...]]:
    """Of each family that has finished runs: its candidates' rows, its aim and what is asked of its
    law; and a note on every family that has none."""
    known = families(runs, family)
    places, aims, asked, notes = list[NDArray[np.intp]](), list[Aim](), list[Asked](), list[str]()
    for name in sorted(set(wanted)):
        rows = np.flatnonzero((wanted == name).to_numpy())
        group = runs[known == name]
        if not len(group):
            notes.append(f"no run of {name} has finished: run one of its points first")
            continue
        belief = believe(points(group, size), np.log(group["loss"].to_numpy(float)))
        aim, place = _aim(name, belief, group, size, target)
        asked.append(Asked(belief, points(candidates.iloc[rows], size), place))
        aims.append(aim)
        places.append(rows)
    return places, aims, asked, tuple(notes)


def points(table: pd.DataFrame, size: str = SIZE) -> Points:
    """Where the rows of a run table lie."""
    n, d, c = (table[name].to_numpy(float) for name in (size, "tokens", "flops"))
    return Points.of(n, d, c)


def _aim(
    name: str, belief: Belief, group: pd.DataFrame, size: str, target: float
) -> tuple[Aim, Points]:
    """The family's best point at the target. FLOPs per ND are those of its largest run: at scale
    attention and head weigh less than in the small ones."""
    n, d, c = (group[column].to_numpy(float) for column in (size, "tokens", "flops"))
    factor = float((c / n / d)[c.argmax()])
    place = best_points(belief, target, factor)
    by_rule = isinstance(place, Refusal)
    if isinstance(place, Refusal):
        best = np.array([np.sqrt(target / (factor * TOKENS_PER_PARAMETER))])
        place = Points.of(best, target / factor / best, np.array([target]))
    log_loss, deviation = belief.predict(place)
    aim = Aim(
        family=name,
        size=float(np.exp(place.x[0])),
        tokens=float(np.exp(place.y[0])),
        loss=float(np.exp(log_loss[0])),
        deviation=float(deviation[0]),
        noise=belief.noise,
        runs=len(group),
        by_rule=by_rule,
    )
    return aim, place


def _prospect(step: Step, order: NDArray[np.intp], wanted: pd.Series, noise: float) -> Prospect:
    row = int(order[step.candidate])
    before, after = (NORMAL * np.hypot(value, noise) for value in (step.before, step.after))
    return Prospect(
        row=row,
        family=str(wanted.iloc[row]),
        cost=step.cost,
        before=float(before),
        after=float(after),
    )


def _verdict(worthy: list[Prospect], candidates: int, affordable: bool, target: float) -> str:
    if not affordable:
        return "stop: no candidate can be paid for" if candidates else "stop: nothing is left"
    if not worthy:
        return (
            f"stop: no candidate that can be paid for takes {LEAST:.0%} off the prediction interval"
            f" at {scientific(target)} FLOPs; what is left is noise, or out of their reach"
        )
    first, last = worthy[0], worthy[-1]
    return (
        f"{len(worthy)} of {candidates} candidates are worth their cost: the prediction at "
        f"{scientific(target)} FLOPs would go from ±{first.before:.1%} to ±{last.after:.1%}"
    )


def describe(aim: Aim, target: float, unit: str = NATS) -> str:
    """One line for people. `unit`: of the losses."""
    rule = ", by 20 tokens per parameter" if aim.by_rule else ""
    width = NORMAL * np.hypot(aim.deviation, aim.noise)
    return (
        f"{aim.family}: {aim.runs} runs predict {aim.loss:.3f} {unit} ±{width:.1%} at "
        f"{scientific(target)} FLOPs ({compact(aim.size)} parameters, {compact(aim.tokens)} tokens"
        f"{rule})"
    )
