"""What does a terminal show of the laws?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from isoflop.scaling.catalogue import ALL
from isoflop.scaling.columns import Runs
from isoflop.scaling.contours import agreement
from isoflop.scaling.contours import lines as lines_of_minima
from isoflop.scaling.findings import Findings
from isoflop.scaling.gist import gist, wrapped
from isoflop.scaling.holdout import Score
from isoflop.scaling.interval import Interval, Refusal, compact, scientific
from isoflop.scaling.objective import Objective
from isoflop.scaling.parametric import ParametricFit, Resampled
from isoflop.scaling.profile import profile, skewed
from isoflop.scaling.question import Law, Question
from isoflop.scaling.sources import Source


def text(
    question: Question, source: Source, table: Runs, laws: list[Law], found: Sequence[Findings]
) -> str:
    """What a terminal shows."""
    frame = table.frame
    lines = [
        f"{len(frame)} runs of {source.name}: N {_span(frame['size'])}, "
        f"D {_span(frame['tokens'])}, C {scientific(frame['flops'].min())} to "
        f"{scientific(frame['flops'].max())} FLOPs",
        *[f"  {note}" for note in table.notes],
        *[f"  {refusal.reason}: {refusal}" for refusal in table.refusals],
        f"objective {question.objective.name}{_delta(question.objective)} on ln L, "
        f"{question.resamples} resamples of runs, seed {question.seed}; 95 % intervals",
    ]
    for each in found:
        own = [law for law in laws if law.family == each.family]
        lines += ["", *_held_out(own), *_average(each), *_noise(each)]
    for law in laws:
        lines += ["", *_paragraph(law, len(table.families) > 1)]
    for each in found:
        lines += [*_minima(each), *_envelope(each)]
        lines += ["", *wrapped(gist([law for law in laws if law.family == each.family]))]
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
    if found.shared or found.bounds or name not in found.form.pinnable or not skewed(interval):
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


def _average(found: Findings) -> list[str]:
    if found.average is None:
        return []
    weights = sorted(found.average.weights.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{form} {100 * weight:.0f} %" for form, weight in weights if weight > 5e-3)
    lines = [f"  {'average':11} {_score(found.average.score)}   ({shares})"]
    if found.prediction is not None:
        low, high = found.prediction.low, found.prediction.high
        lines.append(
            f"  one more run at the optimum: loss {found.prediction.value:.4f} "
            f"[{low:.4f}, {high:.4f}], calibrated"
        )
    return lines


def _noise(found: Findings) -> list[str]:
    noise = found.noise
    if noise is None:
        return []
    if isinstance(noise, Refusal):
        return [f"  seed noise: {noise}"]
    at = float(np.exp(noise.centre))
    steep = f", as loss^{noise.slope:.2g}" if noise.slope else ""
    gap = 100 * noise.detectable(at)
    return [
        f"  seed noise: sd {100 * noise.value.value:.2f} % of the loss "
        f"[{100 * noise.value.low:.2f}, {100 * noise.value.high:.2f}] from {noise.cells} repeated "
        f"cells{steep}; two runs that differ by {gap:.2f} % are told apart 4 times of 5",
        "  intervals of parameters: other seeds for the same runs, the law taken as true",
    ]


def _minima(found: Findings) -> list[str]:
    """Approach 2, where the runs stand in budgets."""
    if found.minima is None:
        return []
    return ["", *lines_of_minima(found.family, *found.minima, found.law)]


def _envelope(found: Findings) -> list[str]:
    """Approach 1, where the runs' loss curves are known."""
    curve = found.envelope
    if curve is None:
        return []
    head = ["", f"envelope of loss curves (approach 1), {found.family}:"]
    if isinstance(curve, Refusal):
        return [*head, f"  no envelope: {curve}"]
    a, b = curve.a, curve.b
    lines = [
        f"  {curve.runs} runs touch it from {scientific(curve.flops[0])} to "
        f"{scientific(curve.flops[-1])} FLOPs: N* ~ C^a with a = {a.value:.3f} "
        f"[{a.low:.3f}, {a.high:.3f}], D* ~ C^{b.value:.3f} [{b.low:.3f}, {b.high:.3f}]"
    ]
    lines += agreement(a, found.law)
    return [*head, *lines, *([f"  {curve.caution}"] if curve.caution else [])]


def _score(found: Score) -> str:
    words = f"error {100 * found.error:.2f} %, bias {100 * found.bias:+.2f} %"
    if found.covered is not None:
        words += f", {100 * found.covered:.0f} % in their interval"
    if found.calibrated is not None:
        words += f" ({100 * found.calibrated:.0f} % once calibrated)"
    return words


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
