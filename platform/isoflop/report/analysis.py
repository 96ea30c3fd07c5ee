"""What do the runs of a study say, and how sure is it? All numbers of the report, none of its form.

The three approaches stand side by side; laws are compared by how well they predict the runs with
the most compute from those with less, since that is what they are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from isoflop.report.checklist import Check, checklist
from isoflop.report.health import Health, health
from isoflop.scaling.forms import FORMS
from isoflop.scaling.holdout import Score, rolling, score
from isoflop.scaling.interval import BITS, NATS, Interval, Refusal
from isoflop.scaling.isoflop import (
    Exponents,
    Minimum,
    counted,
    exponents,
    families,
    finished,
    minima,
)
from isoflop.scaling.joint import Family, Joint, bootstrap_together, fit_together
from isoflop.scaling.multiplier import multiplier
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap, fit
from isoflop.scaling.verdict import Verdict, verdict

SIZE = "params_without_input_embedding"
CONVENTIONS = ("params_all", SIZE, "params_without_embeddings")
CHOSEN = "chinchilla"  # the form whose parameters everybody compares
HELD_OUT_RESAMPLES = 300
UNSURE = 0.3  # a floor E with a wider interval, relative, says nothing about the curves


@dataclass(frozen=True)
class FormScore:
    """How well one form predicts larger runs from smaller ones, for one family."""

    form: str
    held_out: Score | Refusal


@dataclass(frozen=True)
class FamilyFit:
    """Approach 3 for one family."""

    family: str
    law: Resampled | Refusal
    forms: tuple[FormScore, ...] = ()  # the best predictor first


@dataclass(frozen=True)
class Worth:
    """The compute multiplier of `first` over `second`, with one floor E for both."""

    first: str
    second: str
    flops: float
    multiplier: Interval | Refusal


@dataclass(frozen=True)
class Growth:
    """The exponents of every family when N is counted in one convention."""

    convention: str
    exponents: tuple[Exponents, ...]


@dataclass(frozen=True)
class Analysis:
    """All that is concluded from a run table."""

    minima: tuple[Minimum, ...]
    exponents: tuple[Growth, ...]
    fits: tuple[FamilyFit, ...]
    verdict: Verdict
    family: str | None = "axis.arch"
    budget: str | None = "axis.flops"
    size: str = SIZE
    resamples: int = 1000
    corrected: tuple[str, ...] = ()  # families whose parabolas are corrected for lopsidedness
    worths: tuple[Worth, ...] = ()
    health: tuple[Health, ...] = ()
    checks: tuple[Check, ...] = ()
    swept: tuple[str, ...] = ()  # axes of which each size kept its best value
    unit: str = NATS

    @property
    def budgets(self) -> str:
        """What the budgets count."""
        return counted(self.budget)


def analyse(
    table: pd.DataFrame,
    *,
    curves: Mapping[str, pd.DataFrame] | None = None,
    family: str | None = "axis.arch",
    budget: str | None = "axis.flops",
    size: str = SIZE,
    resamples: int = 1000,
    seed: int = 0,
    unit: str = NATS,
) -> Analysis:
    """Minima, exponents, laws, multipliers, the curves' health and the verdict of a run table.

    `family` and `budget` are columns of the table; None where the study has no such axis. `unit` is
    what the table's `loss` is in. Raises ValueError that names a column the table lacks.
    """
    for name in (family, budget, size):
        if name is not None and name not in table:
            raise ValueError(
                f"the run table has no column {name!r}; it has {', '.join(map(str, table))}"
            )
    swept = swept_axes(table, family, budget, size)
    best = best_of(table, swept, family, budget, size)
    fits = _fits(best, family, size, resamples, seed)
    found, growth, corrected = _minima(best, fits, family, budget, size, resamples, seed)
    analysis = Analysis(
        minima=tuple(found),
        exponents=growth,
        fits=fits,
        verdict=verdict(best, found, unit=unit, budgets=counted(budget) if budget else None),
        family=family,
        budget=budget,
        size=size,
        resamples=resamples,
        corrected=corrected,
        worths=_worths(best, family, size, resamples, seed),
        health=tuple(
            health(str(name), group, curves or {}, budget, _floor(fits, str(name)))
            for name, group in finished(best).groupby(families(finished(best), family))
        ),
        swept=swept,
        unit=unit,
    )
    return replace(analysis, checks=checklist(table, analysis))


def judge(
    objective: str, table: pd.DataFrame, curves: Mapping[str, pd.DataFrame]
) -> tuple[str, pd.DataFrame, Mapping[str, pd.DataFrame]]:
    """The unit of a study's objective, and the table and curves with their losses in it.

    Losses of runs with different tokenizers compare in bits per byte only. Training losses are then
    left out: nobody counts the bytes of every batch.
    """
    if objective != "val/bits_per_byte":
        return NATS, table, curves
    bits = table.assign(loss=table["bits_per_byte"], nats_per_token=table["loss"])
    told = {
        run: frame.drop(columns=["val/loss", "train/loss"], errors="ignore").rename(
            columns={"val/bits_per_byte": "val/loss"}
        )
        for run, frame in curves.items()
    }
    return BITS, bits, told


def swept_axes(
    table: pd.DataFrame, family: str | None, budget: str | None, size: str
) -> tuple[str, ...]:
    """Axes that vary while family, budget, size and seed stand still: settings to choose from."""
    cell = [name for name in (family, budget, size, "axis.seed") if name and name in table]
    axes = [str(name) for name in table if str(name).startswith("axis.") and name not in cell]
    groups = table.groupby(cell, dropna=False)
    return tuple(name for name in axes if groups[name].nunique().gt(1).any())


def best_of(
    table: pd.DataFrame, swept: Sequence[str], family: str | None, budget: str | None, size: str
) -> pd.DataFrame:
    """Each size's runs at the setting with the lowest mean loss over its seeds.

    A law asks what a size can reach; a run with a bad learning rate does not say that. Runs without
    a result stay, for the counts.
    """
    if not swept:
        return table
    cell = [name for name in (family, budget, size) if name]
    means = finished(table).groupby([*cell, *swept], dropna=False)["loss"].mean().reset_index()
    chosen = means.loc[means.groupby(cell)["loss"].idxmin(), [*cell, *swept]]
    kept = table.reset_index().merge(chosen, on=[*cell, *swept])["index"]
    return table[table.index.isin(kept) | ~table.index.isin(finished(table).index)]


def _fits(
    table: pd.DataFrame, family: str | None, size: str, resamples: int, seed: int
) -> tuple[FamilyFit, ...]:
    runs = finished(table)
    fits = []
    for name, group in runs.groupby(families(runs, family), sort=True):
        n, d, flops, loss = (
            group[column].to_numpy(float) for column in (size, "tokens", "flops", "loss")
        )

        def lay(
            form: str, kept: Any, of: tuple[Any, ...] = (n, d, flops, loss)
        ) -> ParametricFit | Refusal:
            one, two, three, four = (part[kept] for part in of)
            return fit(one, two, four, flops=three, form=form)

        law = lay(CHOSEN, slice(None))
        scores = [
            FormScore(
                form,
                score(
                    lambda kept, form=form, lay=lay: lay(form, kept),  # type: ignore[misc]
                    rolling(flops), n, d, flops, loss,
                    resamples=min(resamples, HELD_OUT_RESAMPLES) if form == CHOSEN else 0,
                    seed=seed,
                ),
            )
            for form in FORMS
        ]  # fmt: skip
        drawn: Resampled | Refusal = (
            law if isinstance(law, Refusal) else bootstrap(law, resamples=resamples, seed=seed)
        )
        fits.append(FamilyFit(str(name), drawn, tuple(sorted(scores, key=_error))))
    return tuple(fits)


def _error(score: FormScore) -> float:
    return score.held_out.error if isinstance(score.held_out, Score) else np.inf


def _floor(fits: Sequence[FamilyFit], family: str) -> float | None:
    """E of the family's law, where it is known."""
    for one in fits:
        if one.family == family and isinstance(one.law, Resampled):
            floor = one.law.interval("E")
            sure = floor.high - floor.low < UNSURE * floor.value
            return floor.value if sure and "E" not in one.law.fit.boundary else None
    return None


def _minima(
    table: pd.DataFrame,
    fits: Sequence[FamilyFit],
    family: str | None,
    budget: str | None,
    size: str,
    resamples: int,
    seed: int,
) -> tuple[list[Minimum], tuple[Growth, ...], tuple[str, ...]]:
    """Approach 2 in all three conventions; corrected where approach 3 knows how lopsided curves
    are.
    """
    if budget is None or _one_size(table, family, budget, size):
        return [], (), ()
    lopsided = {
        one.family: (one.law.fit.alpha, one.law.fit.beta)
        for one in fits
        if isinstance(one.law, Resampled) and not set(one.law.fit.boundary) - {"E"}
    }
    everyone = {one.family for one in fits}
    whole = bool(everyone) and everyone <= set(lopsided)
    options: dict[str, Any] = {"family": family, "budget": budget, "seed": seed}
    options |= {"curve": "corrected", "lopsided": lopsided} if whole else {}
    found = minima(table, size=size, resamples=resamples, **options)
    growth = tuple(
        _growth(convention, minima(table, size=convention, resamples=resamples, **options))
        for convention in CONVENTIONS
        if convention in table and len(found)
    )
    return found, growth, tuple(sorted(lopsided)) if whole else ()


def _one_size(table: pd.DataFrame, family: str | None, budget: str, size: str) -> bool:
    """Has each family one size at each budget, by design? Then nobody asked for the best."""
    cell = [name for name in (family, budget) if name]
    return bool(len(table)) and int(table.groupby(cell)[size].nunique().max()) <= 1


def _growth(convention: str, found: Sequence[Minimum]) -> Growth:
    return Growth(convention, (*exponents(found), *exponents(found, compute="6ND")))


def _worths(
    table: pd.DataFrame, family: str | None, size: str, resamples: int, seed: int
) -> tuple[Worth, ...]:
    """Every family's multiplier over every other at the most compute that both were given.

    One floor E for all: the text has one entropy, and two floors, each free, decide a comparison
    far from the runs by what neither has measured.
    """
    runs = finished(table)
    groups = dict(iter(runs.groupby(families(runs, family), sort=True)))
    if len(groups) < 2:
        return ()
    members = {
        str(name): Family(*(g[c].to_numpy(float) for c in (size, "tokens", "loss", "flops")))
        for name, g in groups.items()
    }
    joint = fit_together(members, shared=("E",), form=CHOSEN)
    laws = None
    if isinstance(joint, Joint):
        laws = bootstrap_together(joint, resamples=resamples, seed=seed)
    found = []
    for first, second in permutations(members, 2):
        most = min(float(groups[name]["flops"].max()) for name in (first, second))
        refused = joint if isinstance(joint, Refusal) else None
        value = refused or (multiplier(laws[first], laws[second], most) if laws else None)
        assert value is not None
        found.append(Worth(first, second, most, value))
    return tuple(worth for worth in found if _leads(worth))


def _leads(worth: Worth) -> bool:
    """Of the two directions, the one that says how much better the better one is."""
    if isinstance(worth.multiplier, Refusal):
        return worth.first < worth.second
    return worth.multiplier.value > 1 or (
        worth.multiplier.value == 1 and worth.first < worth.second
    )
