"""Which family is better for the same compute, how sure is that, and what cannot be told?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from isoflop.scaling.interval import NATS, Interval, Refusal, compact, scientific
from isoflop.scaling.isoflop import FLOPS, Minimum, finished

UNDECIDED = "it cannot be told"


@dataclass(frozen=True)
class _Words:
    """What losses and budgets are counted in."""

    unit: str
    budgets: str | None  # None: the study has none

    def at(self, budget: float) -> str:
        return f"At {scientific(budget)} {self.budgets}"

    @property
    def per(self) -> str:
        """Of what the better family makes more."""
        return "per FLOP" if self.budgets == FLOPS else f"at equal {self.budgets}"


@dataclass(frozen=True)
class Comparison:
    """Two families at one budget: loss of `first` less loss of `second` at their minima."""

    budget: float
    first: str
    second: str
    difference: Interval | None  # nats per token, None where a minimum is refused
    first_better: float | None  # share of resamples in which `first` has the lower loss
    refusals: tuple[tuple[str, Refusal], ...] = ()  # by family

    @property
    def better(self) -> str | None:
        """The family whose lead the 95 % interval confirms."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return None
        return self.first if self.difference.value < 0 else self.second


@dataclass(frozen=True)
class Verdict:
    text: str  # one paragraph in plain words
    rows: tuple[Comparison, ...]


def verdict(
    table: pd.DataFrame,
    minima: Sequence[Minimum],
    *,
    unit: str = NATS,
    budgets: str | None = FLOPS,
) -> Verdict:
    """What the minima say about every pair of families at every budget that both were given.

    `unit` is of the losses, `budgets` are what the minima's budgets count, None where the study has
    none. There are no minima either where each family has one size at each budget.
    """
    rows = tuple(
        _compare(one, two)
        for budget in sorted({minimum.budget for minimum in minima}, reverse=True)
        for one, two in combinations([m for m in minima if m.budget == budget], 2)
    )
    words = _Words(unit, budgets)
    sentences = [*_runs(table), *_body(table, minima, rows, words)]
    return Verdict(" ".join(sentences), rows)


def _compare(one: Minimum, two: Minimum) -> Comparison:
    """The families' runs share nothing, so their resamples are paired as they come."""
    if one.resamples and two.resamples and one.loss and two.loss:
        difference = one.resamples.loss - two.resamples.loss
        interval = Interval.of(one.loss.value - two.loss.value, difference)
        better = float((difference < 0).mean())
        return Comparison(one.budget, one.family, two.family, interval, better)
    refused = tuple((m.family, m.status) for m in (one, two) if isinstance(m.status, Refusal))
    return Comparison(one.budget, one.family, two.family, None, None, refused)


def _runs(table: pd.DataFrame) -> list[str]:
    """What did not finish, said before anything is concluded."""
    lost = table.loc[~table.index.isin(finished(table).index), "status"].value_counts()
    if not len(lost):
        return []
    # A run may call itself finished and still have no loss to fit.
    words = {"finished": "without a finite loss"}
    counts = ", ".join(f"{n} {words.get(str(status), status)}" for status, n in lost.items())
    return [f"{lost.sum()} of {len(table)} runs are not in the fits ({counts})."]


def _single(run: pd.Series[Any], unit: str) -> str:
    """Of one run there is only its end to tell."""
    size = run.get("params_without_input_embedding")
    parameters = "" if size is None else f"{compact(float(size))} parameters, "
    return (
        f"The run ended at {run['loss']:.4f} {unit} of held-out text ({parameters}"
        f"{compact(float(run['tokens']))} tokens, {scientific(float(run['flops']))} FLOPs). With "
        "one run there is nothing to compare it with."
    )


def _body(
    table: pd.DataFrame, minima: Sequence[Minimum], rows: Sequence[Comparison], words: _Words
) -> list[str]:
    if not len(finished(table)):
        return ["No run has finished, so nothing can be said yet."]
    if len(table) == 1:
        return [_single(finished(table).iloc[0], words.unit)]
    if not minima:
        return [_without_minima(words), _lowest(finished(table), words.unit)]
    if not rows:
        return [*[_alone(minimum, words) for minimum in minima], _caution(table, minima)]
    if len({minimum.family for minimum in minima}) > 2:  # too many pairs for a sentence each
        return [*_orders(minima, rows, words), _caution(table, minima)]
    return [
        *_summary(rows, words),
        *[_sentence(row, minima, words) for row in rows],
        _caution(table, minima),
    ]


def _without_minima(words: _Words) -> str:
    if words.budgets is None:
        return "The study has no axis of budgets, so no minima at equal compute can be compared."
    return (
        f"Each family has one size at each budget of {words.budgets}, so there is no best size to "
        "compare."
    )


def _lowest(runs: pd.DataFrame, unit: str) -> str:
    best = runs.iloc[int(runs["loss"].to_numpy(float).argmin())]
    return f"The lowest loss is {best['loss']:.3f} {unit} ({best.get('label', best.name)})."


def _orders(minima: Sequence[Minimum], rows: Sequence[Comparison], words: _Words) -> Iterator[str]:
    """Each budget's families in order of their loss, then which of them cannot be told apart."""
    for budget in dict.fromkeys(row.budget for row in rows):
        here = [minimum for minimum in minima if minimum.budget == budget]
        found = {m.family: m.loss.value for m in here if m.loss and m.resamples}
        order = sorted(found, key=lambda family: found[family])
        at = words.at(budget)
        if order:
            listed = ", ".join(f"{family} {found[family]:.3f}" for family in order)
            yield f"{at} the best losses are, in {words.unit}: {listed}."
        if len(order) > 1:
            yield _apart(order, [row for row in rows if row.budget == budget and row.difference])
        for minimum in here:
            if isinstance(minimum.status, Refusal):
                best = f" ({minimum.measured:.3f} at best)" if minimum.measured else ""
                yield f"{at} nothing can be said about {minimum.family}{best}: {minimum.status}."


def _apart(order: Sequence[str], rows: Sequence[Comparison]) -> str:
    """What the 95 % intervals of all pairs say about an order."""
    equal = {frozenset((row.first, row.second)) for row in rows if row.better is None}
    close = {
        first: [second for second in order[k + 1 :] if {first, second} in equal]
        for k, first in enumerate(order)
    }
    pairs = f"{len(rows)} pair{'s' if len(rows) > 1 else ''}"
    told = f"Of {pairs}, {len(rows) - len(equal)} can be told apart at 95 %, each by itself"
    lead = "" if close[order[0]] else f"; {order[0]} is better than every other"
    unclear = "; ".join(f"{name} from {_listed(rest)}" for name, rest in close.items() if rest)
    return f"{told}{lead}{unclear and f'. It cannot be told: {unclear}'}."


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _summary(rows: Sequence[Comparison], words: _Words) -> list[str]:
    sentences = []
    for first, second in dict.fromkeys((row.first, row.second) for row in rows):
        pair = [row for row in rows if (row.first, row.second) == (first, second)]
        won = [(name, sum(row.better == name for row in pair)) for name in (first, second)]
        won = [(name, count) for name, count in won if count]
        of = f"of {len(pair)} budget{'s' if len(pair) > 1 else ''}"
        if not won:
            sentences.append(
                f"Which of {first} and {second} is better {words.per} cannot be told at any budget."
            )
        for name, count in won:
            other = second if name == first else first
            per = words.per[0].upper() + words.per[1:]
            sentences.append(f"{per} {name} is better than {other} at {count} {of}.")
    return sentences


def _sentence(row: Comparison, minima: Sequence[Minimum], words: _Words) -> str:
    at = words.at(row.budget)
    if row.difference is None or row.first_better is None:
        why = "; ".join(f"for {family}, {refusal}" for family, refusal in row.refusals)
        return f"{at} nothing can be said about {row.first} and {row.second}: {why}."
    loss = {m.family: m.loss for m in minima if m.budget == row.budget and m.loss}
    lead, rest, sign = row.first, row.second, -1
    if row.difference.value > 0:
        lead, rest, sign = row.second, row.first, 1
    low, high = sorted(sign * bound for bound in (row.difference.low, row.difference.high))
    share = row.first_better if sign < 0 else 1 - row.first_better
    end = f"{lead} is better" if row.better else f"{UNDECIDED} which is better"
    return (
        f"{at} {lead} reaches {loss[lead].value:.3f} {words.unit} against {rest}'s "
        f"{loss[rest].value:.3f}; the difference of {sign * row.difference.value:.3f} has a 95 % "
        f"interval of {low:.3f} to {high:.3f}: {end} "
        f"({lead} leads in {_share(share)} of resamples)."
    )


def _share(share: float) -> str:
    if share > 0.995:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def _alone(minimum: Minimum, words: _Words) -> str:
    at = words.at(minimum.budget)
    if isinstance(minimum.status, Refusal):
        return f"{at} {minimum.family} has no minimum to report: {minimum.status}."
    assert minimum.size and minimum.tokens and minimum.loss, "an interior minimum has its numbers"
    size, loss = minimum.size, minimum.loss
    return (
        f"{at} {minimum.family} is best at {compact(size.value)} parameters "
        f"({compact(size.low)} to {compact(size.high)}) and {compact(minimum.tokens.value)} "
        f"tokens, with {loss.value:.3f} {words.unit} ({loss.low:.3f} to {loss.high:.3f})."
    )


def _caution(table: pd.DataFrame, minima: Sequence[Minimum]) -> str:
    """What the intervals do not know."""
    seeds = table["axis.seed"].nunique() if "axis.seed" in table else 1
    if not any(minimum.status == "interior" for minimum in minima):
        return "No interval is given where no minimum is."
    source = "seeds and of the points" if seeds > 1 else "the points (one seed each)"
    return (
        f"The intervals reflect the scatter of {source} about their parabola, each budget by "
        "itself; an error that all runs share, as an ill-tuned learning rate, is not in them."
    )
