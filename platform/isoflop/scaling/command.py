"""What do these runs say? `isoflop fit`: laws from a table of runs, printed, written or as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from isoflop.scaling.catalogue import ALL
from isoflop.scaling.columns import Columns, Runs, read, runs
from isoflop.scaling.contours import lines as lines_of_minima
from isoflop.scaling.contours import lowest
from isoflop.scaling.forms import FORMS
from isoflop.scaling.holdout import Score, largest, rolling, score
from isoflop.scaling.interval import Interval, Refusal, compact, scientific
from isoflop.scaling.joint import Family, bootstrap_together, fit_together
from isoflop.scaling.multiplier import multiplier
from isoflop.scaling.objective import Objective
from isoflop.scaling.optimum import Optimum
from isoflop.scaling.parametric import ParametricFit, Resampled, bootstrap, fit
from isoflop.scaling.profile import profile, skewed
from isoflop.scaling.smooth import SmoothForm

HELD_OUT_RESAMPLES = 200  # for prediction intervals of the runs held out


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `isoflop fit` was asked."""

    path: Path
    columns: Columns = field(default_factory=Columns)
    forms: tuple[str, ...] = tuple(FORMS)
    objective: Objective = field(default_factory=Objective)
    resamples: int = 1000
    seed: int = 0
    drop: int = 0
    target: float | None = None  # FLOPs; None: the most that a run was given
    pinned: Mapping[str, float] = field(default_factory=dict)
    shared: tuple[str, ...] = ()  # parameters that all families have in common

    def __post_init__(self) -> None:
        unknown = [name for name in self.forms if name not in ALL]
        if unknown:
            raise ValueError(f"form is {unknown[0]!r}; it must be one of {', '.join(ALL)}")
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; it must be at least 1")
        for name in self.pinned:
            if not any(name in ALL[form].pinnable for form in self.forms):
                raise ValueError(f"none of the forms {', '.join(self.forms)} can pin {name!r}")
        if "repetition" in self.forms and self.columns.unique is None:
            raise ValueError("the repetition law takes distinct tokens: name them with --unique")
        if self.shared and self.pinned:
            raise ValueError("parameters can be shared or pinned, not both in one fit")
        if self.shared and self.columns.by is None:
            raise ValueError(f"--share {self.shared[0]} takes families: name them with --by")
        if self.target is not None and not (0 < self.target < math.inf):
            raise ValueError(f"target is {self.target}; it must be above 0")


@dataclass(frozen=True, eq=False)
class Law:
    """One form through one family's runs."""

    family: str
    form: str
    law: Resampled | Refusal
    target: float
    optimum: Optimum | Refusal
    largest: Score | Refusal  # the largest budget, held out
    rolling: Score | Refusal  # each budget of the larger half, from all smaller ones
    # By other family: how much more compute it needs for this one's loss at the target.
    worth: Mapping[str, Interval | Refusal] = field(default_factory=dict)


def pins(words: Sequence[str]) -> dict[str, float]:
    """`NAME=VALUE` words as values. Raises ValueError."""
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--pin is {word!r}; it must be NAME=NUMBER") from None
    return found


def answer(question: Question) -> tuple[Runs, list[Law]]:
    """Reads the table and fits every form to every family. Raises ValueError."""
    table = runs(read(question.path), question.columns, question.drop)
    if not len(table.frame):
        raise ValueError(f"no row of {question.path} can be fitted: {'; '.join(table.notes)}")
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
        )

    found = lay(np.ones(len(rows), dtype=bool))
    if isinstance(found, Refusal):
        return Law(family, form, found, target, found, found, found)
    resampled = bootstrap(found, resamples=question.resamples, seed=question.seed)
    draws = {"resamples": min(question.resamples, HELD_OUT_RESAMPLES), "seed": question.seed}
    one, many = (
        score(lay, splits(flops), size, tokens, flops, loss, **draws)
        for splits in (largest, rolling)
    )
    return Law(family, form, resampled, target, resampled.optimum(target), one, many)


def _shared(table: Runs, question: Question, form: str) -> list[Law]:
    """The laws of all families, fitted together; no larger runs are held out of them."""
    families = {}
    for name in table.families:
        rows = table.family(name)
        columns = (rows[c].to_numpy(float) for c in ("size", "tokens", "loss", "flops", "weight"))
        families[name] = Family(*columns)
    joint = fit_together(families, shared=question.shared, form=form, objective=question.objective)
    apart = Refusal("not asked", "families share parameters", "fit them apart to hold runs out")
    targets = {
        name: question.target or float(table.family(name)["flops"].max()) for name in families
    }
    if isinstance(joint, Refusal):
        return [Law(n, form, joint, targets[n], joint, apart, apart) for n in families]
    drawn = bootstrap_together(joint, resamples=question.resamples, seed=question.seed)
    return [
        Law(name, form, law, targets[name], law.optimum(targets[name]), apart, apart)
        for name, law in drawn.items()
    ]


def show(question: Question, *, as_json: bool, out: Path | None) -> int:
    """Prints the laws (`as_json`: one object per line and form); 1 where no law could be fitted.

    `out`: also writes the report folder there.
    """
    table, laws = answer(question)
    if as_json:
        for law in laws:
            print(json.dumps(record(question, law), allow_nan=False))
    else:
        print(text(question, table, laws))
    if out is not None:
        from isoflop.scaling.folder import write

        page = write(out, question, table, laws)
        print(f"\nreport: {page}", file=sys.stderr if as_json else sys.stdout)
    return 0 if any(isinstance(law.law, Resampled) for law in laws) else 1


def text(question: Question, table: Runs, laws: list[Law]) -> str:
    """What a terminal shows."""
    frame = table.frame
    lines = [
        f"{len(frame)} runs of {question.path.name}: N {_span(frame['size'])}, "
        f"D {_span(frame['tokens'])}, C {scientific(frame['flops'].min())} to "
        f"{scientific(frame['flops'].max())} FLOPs",
        *[f"  {note}" for note in table.notes],
        f"objective {question.objective.name}{_delta(question.objective)} on ln L, "
        f"{question.resamples} resamples of runs, seed {question.seed}; 95 % intervals",
    ]
    for law in laws:
        lines += ["", *_paragraph(law, len(table.families) > 1)]
    for family in table.families:
        own = [law for law in laws if law.family == family]
        lines += ["", *_held_out(own), *_minima(question, table, family, own)]
    return "\n".join(lines)


def _delta(objective: Objective) -> str:
    over = f", over {objective.over:g}" if objective.name == "asymmetric" else ""
    known = objective.name in ("huber", "asymmetric")
    return f" (delta {objective.delta:g}{over})" if known else ""


def _span(values: Any) -> str:
    return f"{compact(float(values.min()))} to {compact(float(values.max()))}"


def _paragraph(law: Law, several: bool) -> list[str]:
    head = f"{law.form}{f' | {law.family}' if several else ''}   {ALL[law.form].equation}"
    if isinstance(law.law, Refusal):
        return [head, f"  no law: {law.law}"]
    found = law.law.fit
    lines = [head]
    for name, value in found.values.items():
        if name in found.pinned:
            lines.append(f"  {name:8} {_number(value):>10}   pinned")
            continue
        interval, error = law.law.interval(name), law.law.standard_error(name)
        lines.append(
            f"  {name:8} {_number(value):>10} ± {_number(error):<10} "
            f"[{_number(interval.low)}, {_number(interval.high)}]{_profile(found, name, interval)}"
        )
    lines.append(f"  {_quality(law.law)}")
    if found.boundary:
        lines.append(f"  at the boundary: {', '.join(found.boundary)}; do not extrapolate")
    lines.append(f"  {_optimum(law)}")
    for other, worth in law.worth.items():
        words = f"no multiplier over {other}: {worth}"
        if isinstance(worth, Interval):
            words = f"{other} needs x{_ratio(worth)} the compute for the same loss"
        lines.append(f"  {words}")
    return lines


def _profile(found: ParametricFit, name: str, interval: Interval) -> str:
    """The profile's interval beside one whose resamples scatter unevenly."""
    if found.shared or name not in found.form.pinnable or not skewed(interval):
        return ""
    held = profile(found, name).interval
    return f"  profile [{_number(held.low)}, {_number(held.high)}]"


def _held_out(laws: Sequence[Law]) -> list[str]:
    """The forms by how well they predict larger runs: the figure that compares them."""
    scored = [law for law in laws if isinstance(law.rolling, Score)]
    if not scored:
        return [f"held out, {laws[0].family}: {laws[0].rolling}"]
    first = scored[0].rolling
    assert isinstance(first, Score), "only scored laws are kept"
    lines = [
        f"held out, {laws[0].family}: {first.points} runs of {first.splits} budgets, each "
        f"predicted from all smaller ones (x{first.reach:.2g} in compute); in brackets the largest "
        "alone"
    ]
    for law in sorted(scored, key=lambda law: cast(Score, law.rolling).error):
        last = f"  [{_score(law.largest)}]" if isinstance(law.largest, Score) else ""
        lines.append(f"  {law.form:11} {_score(cast(Score, law.rolling))}{last}")
    return lines


def _minima(question: Question, table: Runs, family: str, laws: Sequence[Law]) -> list[str]:
    """Approach 2, where the runs stand in budgets."""
    fits = [x.law for x in laws if x.form == "chinchilla" and isinstance(x.law, Resampled)]
    law = fits[0] if fits else None
    rows = table.family(family)
    found = lowest(rows, law, resamples=question.resamples, seed=question.seed)
    return [] if found is None else ["", *lines_of_minima(family, *found, law)]


def _score(found: Score) -> str:
    covered = "" if found.covered is None else f", {100 * found.covered:.0f} % in their interval"
    return f"error {100 * found.error:.2f} %, bias {100 * found.bias:+.2f} %{covered}"


def _quality(law: Resampled) -> str:
    found = law.fit
    scatter = float(np.sqrt(np.average(found.residuals() ** 2, weights=found.weights)))
    words = (
        f"objective {found.objective:.6g}, scatter {100 * scatter:.2f} % of the loss, "
        f"{found.agreeing} of {found.starts} starts agree"
    )
    counts = [
        (law.degenerate, "could not be fitted"),
        (law.unconverged, "did not converge"),
        (law.at_boundary, "at the boundary"),
    ]
    said = ", ".join(f"{count} {what}" for count, what in counts if count)
    return words + (f"; of the resamples {said}" if said else "; all resamples converged")


def _optimum(law: Law) -> str:
    at = f"at {scientific(law.target)} FLOPs"
    if isinstance(law.optimum, Refusal):
        return f"{at}: no optimum, {law.optimum}"
    best = law.optimum
    end = f" ({best.without} resamples have no optimum)" if best.without else ""
    return (
        f"{at}: N {_interval(best.size)}, D {_interval(best.tokens)}, "
        f"D/N {_ratio(best.ratio)}, loss {best.loss.value:.4f} "
        f"[{best.loss.low:.4f}, {best.loss.high:.4f}]{end}"
    )


def _interval(value: Interval) -> str:
    return f"{compact(value.value)} [{compact(value.low)}, {compact(value.high)}]"


def _ratio(value: Interval) -> str:
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 100 else f"{value:.4g}"


def record(question: Question, law: Law) -> dict[str, Any]:
    """One law as JSON; what overflows or is unknown is null."""
    head: dict[str, Any] = {
        "form": law.form,
        "equation": ALL[law.form].equation,
        "family": law.family,
        "objective_name": question.objective.name,
        "delta": _finite(question.objective.delta),
        "over": question.objective.over,
        "resamples": question.resamples,
        "seed": question.seed,
        "dropped": question.drop,
    }
    if isinstance(law.law, Refusal):
        return head | {"refusal": vars(law.law)}
    found = law.law.fit
    free = [name for name in found.values if name not in found.pinned]
    intervals = {name: law.law.interval(name) for name in free}
    return (
        head
        | {name: _finite(value) for name, value in found.values.items()}
        | {
            "standard_errors": {name: _finite(law.law.standard_error(name)) for name in free},
            "intervals": {k: [_finite(i.low), _finite(i.high)] for k, i in intervals.items()},
            "profile_intervals": {
                name: [_finite(held.low), _finite(held.high)]
                for name in free
                if name in found.form.pinnable and not found.shared
                for held in [profile(found, name).interval]
            },
            "pinned": dict(found.pinned),
            "shared": list(found.shared),
            "objective": found.objective,
            "points": found.points,
            "converged": found.converged,
            "boundary": list(found.boundary),
            "starts": found.starts,
            "starts_agreeing": found.agreeing,
            "resamples_not_fitted": law.law.degenerate,
            "resamples_unconverged": law.law.unconverged,
            "resamples_at_boundary": law.law.at_boundary,
            "flops_per_parameter_token": found.factor,
            "optimum": _best(law),
            "compute_multipliers": {
                other: vars(value)
                if isinstance(value, Refusal)
                else {"value": value.value, "interval": [_finite(value.low), _finite(value.high)]}
                for other, value in law.worth.items()
            },
            "held_out": {
                "largest_budget": vars(law.largest),
                "rolling_origin": vars(law.rolling),
            },
        }
    )


def _best(law: Law) -> dict[str, Any]:
    if isinstance(law.optimum, Refusal):
        return {"C": law.target, "refusal": vars(law.optimum)}
    best = law.optimum
    named = {"N": best.size, "D": best.tokens, "D_per_N": best.ratio, "loss": best.loss}
    found: dict[str, Any] = {"C": best.flops}
    for name, interval in named.items():
        found[name] = _finite(interval.value)
        found[f"{name}_interval"] = [_finite(interval.low), _finite(interval.high)]
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
