"""What is written of the laws as JSON? One object per family and form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.scaling.catalogue import ALL
from isoflop.scaling.columns import Runs
from isoflop.scaling.findings import Findings, settings
from isoflop.scaling.holdout import Score
from isoflop.scaling.interval import Interval, Refusal
from isoflop.scaling.parametric import Resampled
from isoflop.scaling.profile import profile
from isoflop.scaling.question import Law, Question
from isoflop.scaling.sources import Source


def records(
    question: Question,
    source: Source,
    table: Runs,
    laws: Sequence[Law],
    found: Sequence[Findings],
) -> list[dict[str, Any]]:
    """The laws (approach 3), then per family what approaches 2 and 1 say, where they can."""
    rows = []
    for law in laws:
        (own,) = (each for each in found if each.family == law.family)
        rows.append(record(question, law, table) | _together(law, own))
        rows[-1]["sensitivity"] = [row.record() for row in settings(source, table, law)]
    for each in found:
        rows += [*_approach_two(each), *_approach_one(each)]
    return rows


def _together(law: Law, found: Findings) -> dict[str, Any]:
    """What the family's runs say of this law among others."""
    mean, noise = found.average, found.noise
    said: dict[str, Any] = {"seed_noise": None}
    said["weight_in_average"] = mean.weights.get(law.form) if mean else None
    if isinstance(noise, Refusal):
        said["seed_noise"] = noise.record()
    elif noise is not None:
        said["seed_noise"] = {
            "sd_of_log_loss": _values(noise.value),
            "at_loss": float(np.exp(noise.centre)),
            "exponent_in_loss": noise.slope,
            "cells": noise.cells,
            "detectable": noise.detectable(float(np.exp(noise.centre))),
        }
    return said


def _approach_two(found: Findings) -> list[dict[str, Any]]:
    if found.minima is None:
        return []
    minima, growth = found.minima
    rows = []
    for minimum in minima:
        row: dict[str, Any] = {"C": minimum.flops, "points": minimum.points}
        if isinstance(minimum.status, Refusal):
            row["refusal"] = minimum.status.record()
        for name, value in (("N", minimum.size), ("D", minimum.tokens), ("loss", minimum.loss)):
            if value is not None:
                row[name] = _values(value)
        rows.append(row)
    return [
        {"approach": 2, "form": "isoflop", "family": found.family, "minima": rows}
        | _exponents(growth.a, growth.b, growth.status)
    ]


def _approach_one(found: Findings) -> list[dict[str, Any]]:
    curve = found.envelope
    head: dict[str, Any] = {"approach": 1, "form": "envelope", "family": found.family}
    if curve is None:
        return []
    if isinstance(curve, Refusal):
        return [head | _exponents(None, None, curve)]
    cells = {"C": curve.flops, "N": curve.size, "D": curve.tokens, "loss": curve.loss}
    known = {"runs": curve.runs, "midway": curve.midway, "resamples_not_fitted": curve.without}
    caution = curve.caution.record() if curve.caution else None
    lists = {name: values[:: max(len(values) // 40, 1)].tolist() for name, values in cells.items()}
    return [
        head | _exponents(curve.a, curve.b, "") | known | {"caution": caution, "envelope": lists}
    ]


def _exponents(a: Interval | None, b: Interval | None, status: Refusal | str) -> dict[str, Any]:
    if isinstance(status, Refusal) or a is None or b is None:
        return {"refusal": status.record() if isinstance(status, Refusal) else None}
    return {"a": _values(a), "b": _values(b)}


def _values(value: Interval) -> dict[str, Any]:
    return {"value": _finite(value.value), "interval": [_finite(value.low), _finite(value.high)]}


def record(question: Question, law: Law, table: Runs | None = None) -> dict[str, Any]:
    """One law as JSON; what overflows or is unknown is null."""
    head: dict[str, Any] = {
        "approach": 3,
        "form": law.form,
        "equation": ALL[law.form].equation,
        "family": law.family,
        "objective_name": question.objective.name,
        "delta": _finite(question.objective.delta),
        "over": question.objective.over,
        "resamples": question.resamples,
        "seed": question.seed,
        "dropped": question.drop,
        "refusals": [refusal.record() for refusal in table.refusals] if table else [],
    }
    if isinstance(law.law, Refusal):
        return head | {"refusal": law.law.record()}
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
                if name in found.form.pinnable and not (found.shared or found.bounds)
                for held in [profile(found, name).interval]
            },
            "pinned": dict(found.pinned),
            "shared": list(found.shared),
            "bounds": {k: [low, _finite(high)] for k, (low, high) in found.bounds.items()},
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
            "prediction": _prediction(law),
            "compute_multipliers": {
                other: value.record()
                if isinstance(value, Refusal)
                else {"value": value.value, "interval": [_finite(value.low), _finite(value.high)]}
                for other, value in law.worth.items()
            },
            "held_out": {
                "largest_budget": _score(law.largest),
                "rolling_origin": _score(law.rolling),
            },
        }
    )


def _score(found: Score | Refusal) -> dict[str, Any]:
    return found.record() if isinstance(found, Refusal) else vars(found)


def _best(law: Law) -> dict[str, Any]:
    if isinstance(law.optimum, Refusal):
        return {"C": law.target, "refusal": law.optimum.record()}
    best = law.optimum
    named = {"N": best.size, "D": best.tokens, "D_per_N": best.ratio, "loss": best.loss}
    found: dict[str, Any] = {"C": best.flops}
    for name, interval in named.items():
        found[name] = _finite(interval.value)
        found[f"{name}_interval"] = [_finite(interval.low), _finite(interval.high)]
    return found


def _prediction(law: Law) -> dict[str, Any] | None:
    """The loss of one more run at the optimum: as the law has it, and calibrated at origins."""
    if isinstance(law.optimum, Refusal) or not isinstance(law.law, Resampled):
        return None
    at = law.optimum.size.value, law.optimum.tokens.value
    plain, wide = (law.law.predict(*at, noise=True, widen=w) for w in (1.0, law.widening))
    return {
        "N": at[0],
        "D": at[1],
        **_values(plain),
        "calibrated_interval": _values(wide)["interval"],
        "widening": law.widening,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
