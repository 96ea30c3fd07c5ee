"""What was `isoflop fit` asked, and what is an answer to it?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from isoflop.scaling.asked import Asked
from isoflop.scaling.bounds import Bounds
from isoflop.scaling.catalogue import ALL
from isoflop.scaling.columns import Columns
from isoflop.scaling.forms import FORMS
from isoflop.scaling.holdout import Outcome, Score
from isoflop.scaling.interval import Interval, Refusal
from isoflop.scaling.objective import Objective
from isoflop.scaling.optimum import Optimum
from isoflop.scaling.parametric import Resampled


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `isoflop fit` was asked."""

    where: str  # a file, a study's results folder, or mlflow:ADDRESS#EXPERIMENT
    columns: Columns = field(default_factory=Columns)
    long: bool = False  # the file has a row per evaluation, not per run
    forms: tuple[str, ...] = tuple(FORMS)
    objective: Objective = field(default_factory=Objective)
    resamples: int = 1000
    seed: int = 0
    drop: int = 0
    target: float | None = None  # FLOPs; None: the most that a run was given
    pinned: Mapping[str, float] = field(default_factory=dict)
    bounds: Bounds = field(default_factory=dict)
    shared: tuple[str, ...] = ()  # parameters that all families have in common
    repeats: bool = False  # rows of equal size and tokens are seeds of one another
    asked: Asked = field(default_factory=Asked)  # laws of other things than the loss

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
        for name in self.bounds:
            if not any(name in ALL[form].pinnable for form in self.forms):
                raise ValueError(f"none of the forms {', '.join(self.forms)} can bound {name!r}")
        if self.shared and (self.pinned or self.bounds):
            raise ValueError("parameters can be shared or pinned or bounded, not both in one fit")
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
    held: tuple[Outcome, ...] = ()  # the runs of `rolling`, origin by origin

    @property
    def widening(self) -> float:
        """What predictions of held-out runs asked intervals to be stretched by, at least 1."""
        known = self.rolling.widening if isinstance(self.rolling, Score) else None
        return known or 1.0


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
