"""What would a reviewer ask of this scaling study, and what do its own records answer?

Every check is filled from the run table and the analysis; nothing is taken on trust. What the
records cannot tell is said to be unknown, never passed. The list follows what replications found to
move published exponents (Hoffmann et al. 2022; Porian et al. 2024; Besiroglu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from isoflop.scaling.collapse import Collapse
from isoflop.scaling.holdout import Score
from isoflop.scaling.interval import Refusal, compact, scientific
from isoflop.scaling.isoflop import families, finished
from isoflop.scaling.parametric import Resampled

if TYPE_CHECKING:
    from isoflop.report.analysis import Analysis

Status = Literal["pass", "fail", "not applicable"]

DECADES = 2.0  # that budgets should span
EPOCHS = 4.0  # beyond, repeated tokens are worth less (Muennighoff et al. 2023)
SEEDS, SCALES = 3, 2
BESIDE = 2  # sizes on each side of an optimum
NEAR = 0.05  # relative held-out error of the law
BY_CHANCE = 0.01  # that a held-out loss may lie below the entropy of its text
APART = 0.05  # of the reducible loss: loss curves that differ by more, where no seeds tell


@dataclass(frozen=True)
class Check:
    """What was asked, the answer, the figure behind it, and what would mend it."""

    name: str
    status: Status
    evidence: str
    cure: str = ""


def checklist(table: pd.DataFrame, analysis: Analysis) -> tuple[Check, ...]:
    """All checks, in the order in which a reader would ask them."""
    runs = finished(table)
    if not len(runs):
        return ()
    return tuple(check(table, runs, analysis) for check in CHECKS)


def _sizes(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Parameters counted in three conventions"
    have = [growth.convention for growth in analysis.exponents]
    spans = []
    for growth in analysis.exponents:
        values = [e.a.value for e in growth.exponents if e.a and e.compute == "exact"]
        spans += [f"{growth.convention.removeprefix('params_').replace('_', ' ')}: a = "
                  + ", ".join(f"{v:.2f}" for v in values)] if values else []  # fmt: skip
    if len(have) < 3:
        return Check(name, "not applicable", "no exponent was fitted", "add budgets")
    return Check(name, "pass", "; ".join(spans) or "no exponent could be fitted in any")


def _flops(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "FLOPs counted exactly, 6ND beside"
    if "flops_6nd_without_embeddings" not in runs:
        return Check(name, "fail", "the run table holds one count only", "record exact FLOPs")
    ratio = runs["flops"] / runs["flops_6nd_without_embeddings"]
    parts = [
        f"{_span(100 * runs[column] / runs['flops'])} % {part}"
        for part in ("attention", "head")
        if (column := f"flops_{part}") in runs
    ]
    return Check(
        name, "pass", f"exact counts are {ratio.min():.2f} to {ratio.max():.2f} times 6ND "
        "without embeddings" + (f"; {' and '.join(parts)}" if parts else ""),
    )  # fmt: skip


def _warmup(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Warm-up scaled to each run"
    if "warmup" not in runs:
        return _unknown(name, "warm-up")
    shares = runs["warmup"].astype(float)
    evidence = f"{_span(100 * shares)} % of each run's own steps"
    if shares.max() > 0.3:
        return Check(name, "fail", evidence, "a third of a run in warm-up bends the exponents")
    return Check(name, "pass", evidence)


def _decay(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Losses taken at the end of a schedule"
    if "decay" not in runs:
        return _unknown(name, "schedule")
    kinds = sorted(runs["decay"].astype(str).unique())
    evidence = f"{', '.join(kinds)}, fitted to each run's own length"
    if len(kinds) > 1:
        return Check(name, "fail", evidence, "compare runs under one schedule only")
    if kinds == ["constant"]:
        cure = "cool each run down: constant rates leave the loss higher, unequally over sizes"
        return Check(name, "fail", "constant learning rate, never cooled down", cure)
    return Check(name, "pass", evidence)


def _tuned(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Learning rate tuned per size, optimum inside the sweep"
    if "learning_rate" not in runs:
        return _unknown(name, "learning rate")
    cells = runs.groupby([families(runs, analysis.family), analysis.size])
    rates = cells["learning_rate"].nunique()
    thin = int((rates < 3).sum())
    if thin:
        return Check(
            name, "fail", f"{thin} of {len(rates)} sizes were trained with fewer than 3 rates",
            "sweep 3 rates about the rule in use, at the smallest and the largest size",
        )  # fmt: skip
    edges = 0
    for _, cell in cells:
        best = float(cell["learning_rate"].to_numpy()[cell["loss"].to_numpy().argmin()])
        edges += best in (cell["learning_rate"].min(), cell["learning_rate"].max())
    if edges:
        return Check(
            name, "fail", f"at {edges} of {len(rates)} sizes the best rate is at the sweep's edge",
            "extend the sweep beyond it",
        )  # fmt: skip
    return Check(name, "pass", f"{int(rates.min())} or more rates at each of {len(rates)} sizes")


def _batch(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Batches no larger than the gradient noise scale"
    scale = runs["noise_scale"].astype(float) if "noise_scale" in runs else pd.Series(dtype=float)
    known = runs.loc[scale.notna()[lambda known: known].index]
    if not len(known):
        cure = "--set evaluation.noise_scale=true measures it for about one step per evaluation"
        return Check(name, "not applicable", "the noise scale was not measured", cure)
    ratio = known["batch_tokens"] / scale[known.index]
    evidence = (
        f"batches are {ratio.min():.2g} to {ratio.max():.2g} times the noise scale "
        f"({compact(float(scale.median()))} tokens, the median of {len(known)} runs)"
    )
    if ratio.max() > 2:
        return Check(name, "fail", evidence, "smaller batches would spend the same tokens better")
    return Check(name, "pass", evidence)


def _data(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Unique tokens and epochs within what a law without repetition allows"
    if "epochs" not in runs:
        return _unknown(name, "number of epochs")
    most = float(runs["epochs"].max())
    evidence = f"at most {most:.2g} epochs of {compact(float(runs['unique_tokens'].max()))} tokens"
    if most > EPOCHS:
        return Check(name, "fail", evidence, "use more text, or fit the form `repetition`")
    return Check(name, "pass", evidence)


def _noise(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = f"At least {SEEDS} seeds at {SCALES} scales"
    axes = [str(c) for c in runs if str(c).startswith("axis.") and c != "axis.seed"]
    if "seed" not in runs or not axes:
        return _unknown(name, "seed")
    cells = runs.groupby(axes, dropna=False)
    seeds = cells["seed"].nunique()
    deviation = cells["loss"].std(ddof=1)[seeds >= 2]
    scales = _cells_scales(runs, axes, analysis, seeds[seeds >= SEEDS].index)
    evidence = f"{SEEDS} seeds at {scales} scale{'s' if scales != 1 else ''}"
    if len(deviation):
        typical = float(np.sqrt((deviation**2).mean()))
        evidence += f"; seeds differ by {typical:.4f} nats (standard deviation)"
    if scales < SCALES:
        return Check(name, "fail", evidence, f"repeat the best size of {SCALES} budgets")
    return Check(name, "pass", evidence)


def _cells_scales(runs: pd.DataFrame, axes: list[str], analysis: Analysis, cells: pd.Index) -> int:
    if not len(cells):
        return 0
    scale = analysis.budget or analysis.size
    keys = pd.MultiIndex.from_frame(runs[axes]) if len(axes) > 1 else pd.Index(runs[axes[0]])
    return int(runs.loc[keys.isin(cells), scale].nunique())


def _above_the_floor(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "No run ends below the text's own entropy"
    if "floor_bits_per_byte" not in runs or runs["floor_bits_per_byte"].isna().all():
        return Check(name, "not applicable", "nobody knows this text's entropy",
                     "data=known:0 is a text whose entropy is known exactly")  # fmt: skip
    above = runs["bits_per_byte"] / runs["floor_bits_per_byte"] - 1
    best = runs.iloc[int(above.to_numpy().argmin())]
    evidence = (
        f"{best.get('label', best['run'])} comes nearest: {best['bits_per_byte']:.4f} bits per "
        f"byte, {above.min():+.1%} from the {best['floor_bits_per_byte']:.4f} of the text"
    )
    if above.min() < -BY_CHANCE:
        return Check(name, "fail", evidence, "a model saw what it should predict: find the leak")
    return Check(name, "pass", evidence)


def _span_of_budgets(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = f"Budgets span at least {DECADES:.0f} decades"
    low, high = float(runs["flops"].min()), float(runs["flops"].max())
    decades = float(np.log10(high / low))
    evidence = f"{decades:.1f} decades, {scientific(low)} to {scientific(high)} FLOPs"
    if decades < DECADES - 0.05:
        return Check(name, "fail", evidence, f"add a budget at {scientific(low * 10**DECADES)}")
    return Check(name, "pass", evidence)


def _brackets(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = f"At least {BESIDE} sizes on each side of every optimum"
    if analysis.budget is None:
        return Check(name, "not applicable", "the study has no axis of budgets")
    thin = []
    for minimum in analysis.minima:
        rows = runs[
            (families(runs, analysis.family) == minimum.family)
            & (runs[analysis.budget] == minimum.budget)
        ]
        sizes = np.unique(rows[analysis.size].to_numpy(float))
        best = minimum.size.value if minimum.size else np.nan
        if not min((sizes < best).sum(), (sizes > best).sum()) >= BESIDE:
            thin.append(f"{minimum.family} at {scientific(minimum.budget)}")
    if thin:
        more = f" and {len(thin) - 3} more" if len(thin) > 3 else ""
        return Check(name, "fail", ", ".join(thin[:3]) + more, "add sizes on the thin side")
    return Check(name, "pass", f"all {len(analysis.minima)} minima")


def _fit(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "The law's fit is the best of its starts, off every boundary"
    laws = [(one.family, one.law) for one in analysis.fits]
    refused = [name for name, law in laws if isinstance(law, Refusal)]
    if refused:
        return Check(name, "fail", f"no law for {', '.join(refused)}", "see the law's refusal")
    said = [
        f"{family}: {law.fit.agreeing} of {law.fit.starts} starts agree"
        + (f", {', '.join(law.fit.boundary)} at the boundary" if law.fit.boundary else "")
        for family, law in laws
        if isinstance(law, Resampled)
    ]
    held = any(isinstance(law, Resampled) and law.fit.boundary for _, law in laws)
    cure = "add sizes and lengths; do not extrapolate" if held else ""
    return Check(name, "fail" if held else "pass", "; ".join(said), cure)


def _uncertainty(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Intervals by resampling runs, on parameters and on the optimum"
    lost = [law.degenerate for one in analysis.fits if isinstance(law := one.law, Resampled)]
    if not lost:
        return Check(name, "fail", "no law was fitted", "see the law's refusal")
    return Check(
        name, "pass", f"{analysis.resamples} resamples; {sum(lost)} held too few sizes"
    )  # fmt: skip


def _held_out(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = f"Larger runs predicted from smaller ones to {100 * NEAR:.0f} %"
    said, worst = [], 0.0
    for one in analysis.fits:
        scores = {form.form: form.held_out for form in one.forms}
        found = scores.get("chinchilla")
        if isinstance(found, Score):
            worst = max(worst, found.error)
            said.append(
                f"{one.family}: {100 * found.error:.1f} % off, {found.reach:.1f} times the compute"
            )
    if len(said) < len(analysis.fits):
        return Check(name, "fail", "; ".join(said) or "nothing could be held out", "add budgets")
    if worst > NEAR:
        return Check(name, "fail", "; ".join(said), "add budgets, or try another form")
    return Check(name, "pass", "; ".join(said))


def _forms(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Forms compared by held-out error"
    best = [
        f"{one.family}: {one.forms[0].form}"
        for one in analysis.fits
        if one.forms and isinstance(one.forms[0].held_out, Score)
    ]
    if not best:
        return Check(name, "fail", "nothing could be held out", "add budgets")
    count = max(len(one.forms) for one in analysis.fits)
    return Check(name, "pass", f"of {count} forms the best predictor is, for {'; '.join(best)}")


def _collapse(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Loss curves of all scales collapse onto one"
    found = [(h.family, h.collapse) for h in analysis.health]
    known = [(family, c) for family, c in found if isinstance(c, Collapse)]
    if not known:
        why = next((str(c) for _, c in found), "no curves were given")
        return Check(name, "not applicable", why)
    said = [f"{family}: {100 * c.spread:.1f} % apart" for family, c in known]
    out = [run for _, c in known for run in c.outliers]
    if out:
        labels = dict(zip(table["run"], table.get("label", table["run"]), strict=True))
        named = ", ".join(str(labels.get(run, run)) for run in out[:3])
        return Check(
            name, "fail", f"{'; '.join(said)}; off the curve: {named}",
            "look at its learning rate and data",
        )  # fmt: skip
    if not all(c.measured for _, c in known) and max(c.spread for _, c in known) > APART:
        cure = "repeat a size with 3 seeds to know the tolerance, and check how settings scale"
        return Check(name, "fail", "; ".join(said), cure)
    basis = "of seeds" if all(c.measured for _, c in known) else f"{100 * APART:.0f} % (no repeats)"
    return Check(name, "pass", f"{'; '.join(said)}; the tolerance is {basis}")


def _failures(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Runs that did not finish are listed"
    lost = table.loc[~table.index.isin(runs.index), "status"].value_counts()
    if not len(lost):
        return Check(name, "pass", f"all {len(table)} runs finished")
    counts = ", ".join(f"{count} {status}" for status, count in lost.items())
    return Check(name, "pass", f"{counts} of {len(table)}; each has its row below")


def _released(table: pd.DataFrame, runs: pd.DataFrame, analysis: Analysis) -> Check:
    name = "Every run has its configuration, seed, code and machine on record"
    wanted = {"run": "configuration", "seed": "seed", "code": "code", "host": "machine"}
    missing = [
        word for column, word in wanted.items() if column not in runs or runs[column].isna().any()
    ]
    if missing:
        return Check(name, "fail", f"unknown for some runs: {', '.join(missing)}", "train anew")
    codes = runs["code"].nunique()
    dirty = runs["code"].astype(str).str.endswith("+changes").any()
    evidence = f"{codes} state{'s' if codes > 1 else ''} of the code"
    if codes > 1 or dirty:
        evidence += ", with uncommitted changes" if dirty else ""
        return Check(name, "fail", evidence, "train all runs from one commit")
    return Check(name, "pass", evidence)


def _unknown(name: str, what: str) -> Check:
    return Check(name, "not applicable", f"the run table does not say the {what}")


def _span(values: pd.Series) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


Ask = Callable[[pd.DataFrame, pd.DataFrame, "Analysis"], Check]
CHECKS: tuple[Ask, ...] = (
    _sizes, _flops, _warmup, _decay, _tuned, _batch, _data, _above_the_floor, _noise,
    _span_of_budgets, _brackets, _fit, _uncertainty, _held_out, _forms, _collapse, _failures,
    _released,
)  # fmt: skip
