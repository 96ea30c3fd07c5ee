"""What does a search look through, and for what? Distributions of axes, aims, and how it chooses.

    search(lr=log(1e-4, 1e-2), width=choice(32, 64), arch="llama", flops=1e10).by(
        "tpe", trials=24, minimise=("val/loss",), constraints=("rollout/loop <= 0.2",)
    )

Values only; `orchestration.searches` acts on them through Optuna. An axis without a distribution is
held at its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

SamplerName = Literal["tpe", "gp", "cmaes", "nsga2", "qmc", "grid", "random"]
SAMPLERS: dict[str, str] = {
    "tpe": "tree-structured Parzen estimators (Bergstra et al. 2011)",
    "gp": "a Gaussian process with expected improvement",
    "cmaes": "CMA-ES (Hansen & Ostermeier 2001)",
    "nsga2": "the genetic algorithm NSGA-II (Deb et al. 2002)",
    "qmc": "a scrambled Sobol sequence: even, and learning nothing",
    "grid": "every combination, in random order",
    "random": "random draws",
}
PLAIN = {  # aims that are columns of the run table
    "val/loss": "loss",
    "val/bits_per_byte": "bits_per_byte",
    "flops": "flops",
    "seconds": "seconds",
    "parameters": "params_all",
}
Point = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """The values that an axis may take. `condition`: axes and the values of theirs that it needs;
    where they have others it is None, and the study's function is given that."""

    condition: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def when(self, **axes: Any) -> Any:
        """This axis exists only where these have that value, or one of those: `when(arch="moe")`.
        They stand before it in the search, or are held."""
        needed = {k: v if isinstance(v, tuple) else (v,) for k, v in axes.items()}
        return replace(self, condition={**self.condition, **needed})

    def holds(self, point: Point) -> bool:
        return all(point[axis] in allowed for axis, allowed in self.condition.items())

    def admits(self, value: Any) -> bool:
        raise NotImplementedError

    def edge(self, value: Any) -> str | None:
        """Which end of the range a value lies at, as far as there is one: "lower" or "upper"."""
        return None

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All of them, where they can be counted."""
        raise NotImplementedError

    def __str__(self) -> str:
        needed = " and ".join(
            f"{axis} is {' or '.join(map(str, allowed))}"
            for axis, allowed in self.condition.items()
        )
        return f" (where {needed})" if needed else ""


NEAR_AN_END = 0.05  # share of a range


@dataclass(frozen=True, kw_only=True)
class Numbers(Distribution):
    """From `low` to `high`, both included; in steps, or evenly in the logarithm."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range runs from {self.low} to {self.high}; it must go upwards")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins at {self.low}; it must be above 0")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"a step is {self.step}; it must fit between {self.low}, {self.high}")

    def admits(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def edge(self, value: Any) -> str | None:
        if self.step is not None and self.step * 2 >= self.high - self.low:
            return None  # two or three values: the ends are most of it
        ends = [math.log(x) if self.log else x for x in (self.low, value, self.high)]
        place = (ends[1] - ends[0]) / (ends[2] - ends[0])
        if place < NEAR_AN_END:
            return "lower"
        return "upper" if place > 1 - NEAR_AN_END else None

    @property
    def values(self) -> tuple[Any, ...] | None:
        if self.step is None or self.log:
            return None
        count = int((self.high - self.low) / self.step * (1 + 1e-12)) + 1
        numbers = [self.low + i * self.step for i in range(count)]
        return tuple(int(n) for n in numbers) if self.whole else tuple(numbers)

    def __str__(self) -> str:
        step = "" if self.step is None or (self.whole and self.step == 1) else f" by {self.step:g}"
        kind = "whole numbers " if self.whole else ""
        law = " evenly in the logarithm" if self.log else ""
        return f"{kind}{self.low:g} to {self.high:g}{step}{law}{super().__str__()}"


@dataclass(frozen=True, kw_only=True)
class Choice(Distribution):
    """One of some values without an order: numbers, words, True, False or None."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(set(self.options)) < 2:
            raise ValueError(f"a choice is among {self.options}; give at least two values")
        for option in self.options:
            if not isinstance(option, str | int | float | bool | None):
                raise ValueError(f"a choice has {option!r}; it must be of numbers and words")

    def admits(self, value: Any) -> bool:
        return value in self.options

    @property
    def values(self) -> tuple[Any, ...] | None:
        return self.options

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.options))}{super().__str__()}"


def log(low: float, high: float) -> Any:
    """Evenly in the logarithm: `log(1e-4, 1e-2)`."""
    return Numbers(low=low, high=high, log=True)


def uniform(low: float, high: float, step: float | None = None) -> Any:
    return Numbers(low=low, high=high, step=step)


def integer(low: int, high: int, step: int = 1, *, log: bool = False) -> Any:
    """Whole numbers from `low` to `high`, both included."""
    if log and step != 1:
        raise ValueError(f"integer({low}, {high}) has step {step} and log; give one of them")
    return Numbers(low=low, high=high, step=step, whole=True, log=log)


def choice(*values: Any) -> Any:
    return Choice(options=values)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """When is a run ended early? Runs are compared at rungs of tokens seen: `first`, and each
    `factor` times the one before, by their curve between its evaluations. Before its warm-up is
    over a run says little of its end: `first` should lie beyond.

    median      ended where it was never yet as good as the median there, once `spared` runs are
                through (Golovin et al. 2017)
    asha        only the best 1 / `factor` go beyond each rung (Li et al. 2020)
    hyperband   the same in brackets that begin at different rungs (Li et al. 2018)
    """

    kind: Literal["median", "asha", "hyperband"] = "median"
    first: int
    factor: int = 2
    spared: int = 4

    def __post_init__(self) -> None:
        if self.kind not in ("median", "asha", "hyperband"):
            raise ValueError(f"pruning is {self.kind!r}; it must be median, asha or hyperband")
        for name, least in (("first", 1), ("factor", 2), ("spared", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"pruning.{name} is {value}; it must be at least {least}")

    def rungs(self, tokens: int) -> list[int]:
        """Those below a run's length."""
        found, rung = [], self.first
        while rung < tokens:
            found.append(rung)
            rung *= self.factor
        return found


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric at the end of a run."""

    metric: str
    most: bool  # at most `bound`, else at least
    bound: float

    @staticmethod
    def parse(text: str) -> Constraint:
        """Raises ValueError for what is not like "rollout/loop <= 0.2"."""
        match = re.fullmatch(r"\s*(\S+)\s*(<=|>=)\s*(\S+)\s*", text)
        try:
            if match:
                return Constraint(match[1], match[2] == "<=", float(match[3]))
        except ValueError:
            pass
        raise ValueError(f"a constraint is {text!r}; write METRIC <= NUMBER or METRIC >= NUMBER")

    def excess(self, value: float) -> float:
        """How far beyond the bound; at most 0 where it is kept."""
        return value - self.bound if self.most else self.bound - value


@dataclass(frozen=True)
class Aim:
    """A metric and where it should go: down, up, or near to what it is on held-out text."""

    metric: str
    towards: Literal["down", "up", "reference"]

    def __str__(self) -> str:
        """What is measured: the metric, or how far it is from held-out text's."""
        return f"|{self.metric} - held out|" if self.towards == "reference" else self.metric


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a search chooses its points, and what it is after.

    Metrics are `val/loss`, `val/bits_per_byte`, `flops`, `parameters`, `seconds`, and rollouts' as
    in `rollout/METRIC` or `rollout/SET/METRIC`, each as of the end of a run.
    """

    sampler: SamplerName = "tpe"
    trials: int = 20
    minimise: tuple[str, ...] = ("val/loss",)
    maximise: tuple[str, ...] = ()
    near: tuple[str, ...] = ()  # rollout metrics: as close as can be to held-out text's
    constraints: tuple[str, ...] = ()
    pruning: Pruning | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in get_args(SamplerName):
            known = ", ".join(SAMPLERS)
            raise ValueError(f"the sampler is {self.sampler!r}; it must be one of {known}")
        if not isinstance(self.trials, int) or self.trials < 1:
            raise ValueError(f"a search has {self.trials} trials; it must have at least 1")
        names = [aim.metric for aim in self.aims]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a search is after {names}; give at least one metric, each once")
        for name in (*names, *(bound.metric for bound in self.bounds)):
            if name not in PLAIN and not name.startswith("rollout/"):
                known = ", ".join((*PLAIN, "rollout/METRIC", "rollout/SET/METRIC"))
                raise ValueError(f"a search is after {name!r}; known are {known}")
        for name in self.near:
            if self.pruning is not None:
                raise ValueError(f"pruning cannot go by the distance of {name} from held-out text")
            if not name.startswith("rollout/"):
                raise ValueError(f"{name!r} has no value on held-out text to be near to")
        self._check_pair()

    def _check_pair(self) -> None:
        """What cannot be had together."""
        several = len(self.aims) > 1
        if several and self.sampler == "cmaes":
            raise ValueError("cmaes is after one metric; use tpe, gp or nsga2 for several")
        if self.pruning is None:
            return
        if several:
            raise ValueError("pruning compares runs by one metric; leave it out for several")
        metric = self.aims[0].metric
        if metric in ("flops", "parameters", "seconds"):
            raise ValueError(f"pruning cannot go by {metric}; it needs what is measured on the way")
        if metric.startswith("rollout/") and self.pruning.kind != "median":
            raise ValueError(
                f"pruning by {metric} must be by the median: {self.pruning.kind} ends runs "
                "whether or not their intervals allow it"
            )

    @property
    def aims(self) -> tuple[Aim, ...]:
        """Every metric that is sought, in the order of the values that Optuna is told."""
        return (
            *(Aim(name, "down") for name in self.minimise),
            *(Aim(name, "up") for name in self.maximise),
            *(Aim(name, "reference") for name in self.near),
        )

    @property
    def bounds(self) -> tuple[Constraint, ...]:
        return tuple(Constraint.parse(text) for text in self.constraints)

    @property
    def sought(self) -> frozenset[str]:
        """The metrics that decide which points are chosen."""
        aims = {aim.metric for aim in self.aims}
        return frozenset(aims | {bound.metric for bound in self.bounds})


def check(space: Mapping[str, Any], settings: Settings) -> None:
    """Raises ValueError for a space that cannot be searched so."""
    free = {axis: spec for axis, spec in space.items() if isinstance(spec, Distribution)}
    if not free:
        raise ValueError("a search needs an axis with a distribution; use grid(...) without one")
    before: set[str] = set(space) - set(free)
    for axis, spec in free.items():
        for other in spec.condition:
            if other not in before:
                raise ValueError(
                    f"{axis} depends on {other!r}, which must be an axis that stands before it"
                )
        before.add(axis)
    if settings.sampler == "grid":
        for axis, spec in free.items():
            if spec.values is None or spec.condition:
                raise ValueError(
                    f"{axis} is {spec}; the grid sampler needs choices, or numbers with a step, "
                    "and no conditions"
                )


def most(space: Mapping[str, Any], settings: Settings) -> int:
    """How many trials there can be: a grid has an end."""
    if settings.sampler != "grid":
        return settings.trials
    counts = (len(s.values or ()) for s in space.values() if isinstance(s, Distribution))
    return min(settings.trials, math.prod(counts))


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial of a search, as a report shows it."""

    number: int
    run: str  # identity
    point: Point
    status: str  # finished, pruned, failed, running
    values: tuple[float, ...]  # one for each aim; empty where it has none
    kept: bool  # every constraint
    why: str = ""  # it was given up


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a search has found so far."""

    space: Mapping[str, Any]
    settings: Settings
    tried: tuple[Tried, ...]
    best: tuple[str, ...]  # identities: one run, or the Pareto front
    importance: tuple[Mapping[str, float], ...]  # of each axis, for each aim; empty: not to be had
