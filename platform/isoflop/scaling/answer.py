"""Which law answers the question for each family and form?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isoflop.scaling.catalogue import ALL
from isoflop.scaling.columns import Runs, runs
from isoflop.scaling.holdout import (
    Fitter,
    Outcome,
    Score,
    earlier,
    outcome,
    outcomes,
    rolling,
    summary,
)
from isoflop.scaling.interval import Array, Interval, Refusal
from isoflop.scaling.joint import Family, Joint, bootstrap_together, fit_together
from isoflop.scaling.multiplier import multiplier
from isoflop.scaling.noise import SeedNoise, seed_noise
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap, fit
from isoflop.scaling.question import Law, Question
from isoflop.scaling.smooth import SmoothForm
from isoflop.scaling.sources import Source, compute

HELD_OUT_RESAMPLES = 200  # for prediction intervals of the runs held out


def runs_of(question: Question, source: Source) -> Runs:
    """The rows that can be fitted. Raises ValueError where there are none."""
    table = runs(source.table, compute(source.columns), question.drop)
    if not len(table.frame):
        said = [*table.notes, *(refusal.explanation for refusal in table.refusals)]
        raise ValueError(f"no row of {source.name} can be fitted: {'; '.join(said)}")
    return table


def answer(question: Question, source: Source) -> tuple[Runs, list[Law]]:
    """Fits every form to every family. Raises ValueError."""
    table = runs_of(question, source)
    if question.shared:
        laws = [law for form in question.forms for law in _shared(table, question, form)]
    else:
        laws = [_law(table, question, f, form) for f in table.families for form in question.forms]
    return table, [replace(law, worth=_worth(law, laws, question.target)) for law in laws]


def _worth(law: Law, laws: Sequence[Law], asked: float | None) -> dict[str, Interval | Refusal]:
    """The multiplier of `law` over every other family's law of the same form; without a target at
    the most compute that both families were given."""
    if not isinstance(law.law, Resampled) or isinstance(law.law.fit.form, SmoothForm):
        return {}
    return {
        other.family: multiplier(law.law, other.law, asked or min(law.target, other.target))
        for other in laws
        if other.form == law.form and other is not law and isinstance(other.law, Resampled)
    }


def _law(table: Runs, question: Question, family: str, form: str) -> Law:
    rows = table.family(family)
    target = question.target or float(rows["flops"].max())
    size, tokens, flops, loss, weight = (
        rows[name].to_numpy(float) for name in ("size", "tokens", "flops", "loss", "weight")
    )

    unique = rows["unique"].to_numpy(float) if "unique" in rows else None

    def lay(kept: NDArray[np.bool_]) -> ParametricFit | Refusal:
        return fit(
            size[kept],
            tokens[kept],
            loss[kept],
            flops=flops[kept],
            form=form,
            objective=question.objective,
            weights=weight[kept],
            unique=None if unique is None else unique[kept],
            pinned={k: v for k, v in question.pinned.items() if k in ALL[form].pinnable},
            bounds={k: v for k, v in question.bounds.items() if k in ALL[form].pinnable},
        )

    found = lay(np.ones(len(rows), dtype=bool))
    if isinstance(found, Refusal):
        return Law(family, form, found, target, found, found, found)
    groups = np.unique(rows["run"], return_inverse=True)[1] if "run" in rows else None
    resampled = bootstrap(
        found,
        resamples=question.resamples,
        seed=question.seed,
        groups=groups,
        noise=_seeds(question, rows),
    )
    held = _held_out(question, lay, size, tokens, flops, loss)
    optimum = resampled.optimum(target)
    return Law(family, form, resampled, target, optimum, held[0], held[1], held=held[2])


def _seeds(question: Question, rows: pd.DataFrame) -> Array | None:
    """The scatter between seeds for each run, where repeats were asked for and tell it."""
    noise = seed_noise(rows) if question.repeats else None
    return noise.sd(rows["loss"]) if isinstance(noise, SeedNoise) else None


def _held_out(
    question: Question, lay: Fitter, size: Array, tokens: Array, flops: Array, loss: Array
) -> tuple[Score | Refusal, Score | Refusal, tuple[Outcome, ...]]:
    """The score of the largest budget, and of all origins that are held out, and the latter."""
    before, after = (
        outcomes(
            lay, splits(flops), size, tokens, flops, loss,
            resamples=min(question.resamples, HELD_OUT_RESAMPLES), seed=question.seed,
        )
        for splits in (earlier, rolling)
    )  # fmt: skip
    if isinstance(after, Refusal):
        return after, after, ()
    known = [] if isinstance(before, Refusal) else before
    return *_scores(known, after), tuple(after)


Measured = dict[str, Array]  # of one family: size, tokens, loss, flops, weight


def _shared(table: Runs, question: Question, form: str) -> list[Law]:
    """The laws of all families, fitted together."""
    families = {name: _columns(table.family(name)) for name in table.families}
    joint = _joint(question, form, families)
    targets = {n: question.target or float(each["flops"].max()) for n, each in families.items()}
    if isinstance(joint, Refusal):
        return [Law(n, form, joint, targets[n], joint, joint, joint) for n in families]
    drawn = bootstrap_together(joint, resamples=question.resamples, seed=question.seed)
    held = _held_out_together(question, form, families)
    return [
        Law(name, form, law, targets[name], law.optimum(targets[name]), *_scores(*held[name]))
        for name, law in drawn.items()
    ]


def _columns(rows: pd.DataFrame) -> Measured:
    names = ("size", "tokens", "loss", "flops", "weight")
    return {name: rows[name].to_numpy(float) for name in names}


def _joint(question: Question, form: str, families: Mapping[str, Measured]) -> Joint | Refusal:
    made = {
        name: Family(c["size"], c["tokens"], c["loss"], c["flops"], c["weight"])
        for name, c in families.items()
    }
    return fit_together(made, shared=question.shared, form=form, objective=question.objective)


def _held_out_together(
    question: Question, form: str, families: Mapping[str, Measured]
) -> dict[str, tuple[list[Outcome], list[Outcome]]]:
    """Each family's outcomes before and at the origins that are scored. An origin is a budget of
    all families' runs: no family's larger runs help to predict another's."""
    flops = np.concatenate([each["flops"] for each in families.values()])
    edges = np.cumsum([0, *(len(each["flops"]) for each in families.values())])
    held: dict[str, tuple[list[Outcome], list[Outcome]]] = {name: ([], []) for name in families}
    for place, splits in enumerate((earlier(flops), rolling(flops))):
        for split in splits:
            parts = zip(families, edges[:-1], edges[1:], strict=True)
            rows = {n: (split.train[low:high], split.test[low:high]) for n, low, high in parts}
            for name, found in _origin(question, form, families, rows).items():
                held[name][place].append(found)
    return held


def _origin(
    question: Question,
    form: str,
    families: Mapping[str, Measured],
    rows: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]],
) -> dict[str, Outcome]:
    """The families with runs to predict at one origin; none where the law is refused."""
    smaller = {n: {k: v[rows[n][0]] for k, v in each.items()} for n, each in families.items()}
    if not all(len(each["loss"]) for each in smaller.values()):
        return {}
    joint = _joint(question, form, smaller)
    if isinstance(joint, Refusal):
        return {}
    count = min(question.resamples, HELD_OUT_RESAMPLES)
    drawn, found = bootstrap_together(joint, resamples=count, seed=question.seed), {}
    for name, each in families.items():
        test = rows[name][1]
        if test.any():
            at = each["size"][test], each["tokens"][test], each["flops"][test]
            found[name] = outcome(
                drawn[name], at, each["loss"][test], smaller[name]["flops"].max(), question.seed
            )
    return found


def _scores(
    before: Sequence[Outcome], after: Sequence[Outcome]
) -> tuple[Score | Refusal, Score | Refusal]:
    """The largest budget alone, and all origins."""
    if not after:
        why = "no larger run can be held out of the families' common law"
        refusal = Refusal("too few points", why, "add runs of more compute to every family")
        return refusal, refusal
    return summary(after[-1:], [*before, *after[:-1]]), summary(after, before)
