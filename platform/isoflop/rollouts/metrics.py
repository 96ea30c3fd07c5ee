"""What can be said in numbers about text that a model wrote, whatever that text is?

Every metric is a total function: it gives a number, or `Missing` with the reason, and never raises.
At step 0 a model writes noise, a diverged one writes not-a-number; both are data. `catalogue` lists
them; what each computes is said in the file that holds it.

Further metrics come as plugins: an installed package names a `Metric` under the entry point group
`isoflop.metrics`. They are computed on rows that are there (`plugins`), never while a run trains;
one that raises becomes a missing value with the error as its reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.catalogue import METRICS, VALUES
from isoflop.rollouts.corpus import Corpus
from isoflop.rollouts.measured import Metric, Missing, Sample, number
from isoflop.rollouts.statistics import Aggregate, jackknife, mean

__all__ = ["METRICS", "VALUES", "Corpus", "Metric", "Missing", "Sample"]

GROUP = "isoflop.metrics"
Values = dict[str, list[float | Missing]]


def score(
    samples: Sequence[Sample],
    groups: Sequence[int] | NDArray[np.integer] | None = None,
    metrics: Sequence[Metric] = METRICS,
) -> Values:
    """Every metric but those of a corpus, of every sample, by the metric's name.

    `groups`: which prompt each sample continues; without it, each one of its own.
    """
    owners = np.arange(len(samples)) if groups is None else np.asarray(groups)
    values: Values = {}
    for metric in metrics:
        if metric.level in ("token", "rollout"):
            values[metric.name] = [metric.function(sample) for sample in samples]
        elif metric.level == "group":
            values[metric.name] = _by_group(metric, samples, owners)
    return values


def _by_group(
    metric: Metric, samples: Sequence[Sample], owners: NDArray[np.integer]
) -> list[float | Missing]:
    found: list[float | Missing] = [Missing("no samples")] * len(samples)
    for owner in np.unique(owners):
        places = np.flatnonzero(owners == owner).tolist()
        own = metric.function([samples[place] for place in places])
        for place, value in zip(places, own, strict=True):
            found[place] = value
    return found


def summarise(
    values: Mapping[str, Sequence[float | None]],
    ids: Sequence[NDArray[np.integer]],
    prompts: Sequence[int] | NDArray[np.integer],
    metrics: Sequence[Metric] = METRICS,
) -> dict[str, Aggregate]:
    """Every metric of a set of rollouts: their values, tokens, and which prompt each continues."""
    corpus = Corpus.of(ids)
    aggregates = {}
    for metric in metrics:
        if metric.level != "corpus":
            aggregates[metric.name] = mean(values[metric.name], prompts, share=metric.share)
        else:
            statistic = partial(_of_kept, metric.function, corpus)
            aggregates[metric.name] = jackknife(
                statistic,
                prompts,
                name=f"rarefied to {corpus.tokens} tokens",
                lowest=0.0,
                highest=1.0 if metric.share else math.inf,
            )
    return aggregates


def too_few(
    aggregates: Mapping[str, Aggregate], metrics: Sequence[Metric] = METRICS
) -> dict[str, int]:
    """Metrics whose mean is of fewer rollouts than it needs, and how many it needs."""
    return {
        metric.name: metric.least
        for metric in metrics
        if metric.name in aggregates and 0 < aggregates[metric.name].rollouts < metric.least
    }


def reference(
    windows: Sequence[NDArray[np.integer]],
    decode: Callable[[NDArray[np.integer]], str],
    end: int | None = None,
) -> dict[str, Aggregate]:
    """The same metrics on windows of held-out text, cut to the rollouts' length by the caller.

    Each window counts as a prompt of its own, and ends with its first `end`, as a rollout does.
    What only a model has (entropy, surprise) stays without a value, and says why.
    """
    samples = []
    for ids in windows:
        own, stopped = cut(ids, end)
        text = decode(own[:-1] if stopped else own)
        samples.append(Sample(own, text, stopped=stopped))
    scored = score(samples)
    values = {name: [number(item) for item in column] for name, column in scored.items()}
    found = summarise(values, [sample.ids for sample in samples], range(len(samples)))
    return {name: reasoned(item, scored.get(name, ())) for name, item in found.items()}


def cut(ids: NDArray[Any], end: int | None) -> tuple[NDArray[Any], bool]:
    """As far as the first `end`, that included, and whether there is one."""
    hits = [] if end is None else np.flatnonzero(ids == end).tolist()
    return (ids[: hits[0] + 1], True) if hits else (ids, False)


def reasoned(found: Aggregate, values: Sequence[float | Missing]) -> Aggregate:
    """With the most frequent reason, where no sample has a value."""
    reasons = Counter(value.reason for value in values if isinstance(value, Missing))
    if found.value is not None or not reasons:
        return found
    return replace(found, estimator=f"no values: {reasons.most_common(1)[0][0]}")


def plugins() -> tuple[Metric, ...]:
    """The metrics of installed packages, in order of their names.

    Raises ValueError for an entry point that cannot be loaded, is no `Metric`, or has the name of
    a built-in one.
    """
    from importlib.metadata import entry_points

    found = []
    taken = {metric.name for metric in METRICS}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            metric = point.load()
        except Exception as error:  # somebody else's code: anything
            raise ValueError(
                f"the metric {point.name!r} ({point.value}) fails: {error!r}"
            ) from error
        if not isinstance(metric, Metric) or metric.name in taken:
            raise ValueError(
                f"the metric {point.name!r} ({point.value}) is {metric!r}; it must be an "
                "isoflop.rollouts.metrics.Metric of a new name"
            )
        taken.add(metric.name)
        found.append(replace(metric, function=_safe(metric)))
    return tuple(found)


def _safe(metric: Metric) -> Callable[[object], object]:
    """The metric's function, and a missing value where it raises."""

    def function(item: object) -> object:
        try:
            return metric.function(item)
        except Exception as error:
            failed = Missing(f"{type(error).__name__}: {error}")
            return [failed] * len(item) if isinstance(item, Sequence) else failed

    return function


def _of_kept(
    function: Callable[[Corpus], float | Missing], corpus: Corpus, kept: NDArray[np.bool_]
) -> float | None:
    return number(function(replace(corpus, kept=kept)))
