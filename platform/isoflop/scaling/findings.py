"""What do a family's runs say beside its laws: by approaches 1 and 2, of their noise, together?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from isoflop.scaling.averaging import Average, average, predict
from isoflop.scaling.columns import Runs, runs
from isoflop.scaling.contours import lowest
from isoflop.scaling.envelope import Envelope, curves, envelope
from isoflop.scaling.interval import Interval, Refusal
from isoflop.scaling.isoflop import Exponents, Minimum
from isoflop.scaling.noise import SeedNoise, seed_noise
from isoflop.scaling.parametric import Resampled
from isoflop.scaling.question import Law, Question
from isoflop.scaling.sensitivity import Setting, sensitivity
from isoflop.scaling.smooth import SmoothForm
from isoflop.scaling.sources import Source


@dataclass(frozen=True, eq=False)
class Findings:
    """Of one family; None where it was not asked or there is nothing to ask it of."""

    family: str
    law: Resampled | None  # the Chinchilla law, to which the approaches are compared
    minima: tuple[list[Minimum], Exponents] | None  # approach 2
    envelope: Envelope | Refusal | None  # approach 1
    noise: SeedNoise | Refusal | None
    average: Average | None
    prediction: Interval | None  # of the average, for one more run at the best law's optimum


def findings(
    question: Question, source: Source, table: Runs, laws: Sequence[Law]
) -> list[Findings]:
    """One per family, in the table's order."""
    long = history(source)
    return [
        _family(question, table, name, [law for law in laws if law.family == name], long)
        for name in table.families
    ]


def _family(
    question: Question, table: Runs, name: str, laws: Sequence[Law], long: pd.DataFrame | None
) -> Findings:
    rows, count, seed = table.family(name), question.resamples, question.seed
    fits = [x.law for x in laws if x.form == "chinchilla" and isinstance(x.law, Resampled)]
    law = fits[0] if fits else None
    above = None
    if long is not None:
        own = long[long["family"] == name]
        above = envelope(curves(own), resamples=count, seed=seed)
    mean = average({law.form: law.held for law in laws if law.held})
    return Findings(
        family=name,
        law=law,
        minima=lowest(rows, law, resamples=count, seed=seed),
        envelope=above,
        noise=seed_noise(rows) if question.repeats else None,
        average=mean,
        prediction=_prediction(laws, mean, question.seed),
    )


def _prediction(laws: Sequence[Law], mean: Average | None, seed: int) -> Interval | None:
    """At the optimum of the heaviest form that has one."""
    if mean is None:
        return None
    best = max(laws, key=lambda law: mean.weights.get(law.form, 0.0))
    fits = {x.form: x.law for x in laws if isinstance(x.law, Resampled)}
    if isinstance(best.optimum, Refusal) or not isinstance(best.law, Resampled):
        return None
    at = best.optimum
    widen = best.widening
    return predict(fits, mean.weights, at.size.value, at.tokens.value, widen=widen, seed=seed)


def history(source: Source) -> pd.DataFrame | None:
    """The long table in the columns of `columns.runs`, losses along the way included."""
    if source.history is None:
        return None
    return runs(source.history, replace(source.columns, midway=True)).frame


def settings(source: Source, table: Runs, law: Law) -> list[Setting]:
    """How the law moves with choices; none for the slower forms, and where there is no law."""
    if not isinstance(law.law, Resampled) or isinstance(law.law.fit.form, SmoothForm):
        return []
    if law.law.fit.shared or law.law.fit.pinned:
        return []
    rows = table.family(law.family)
    loss = law.law.fit.loss
    return sensitivity(rows, source.table, target=law.target, form=law.form, objective=loss)
