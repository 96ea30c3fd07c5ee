"""What is a model asked to write while it learns, how often, and at what cost?

Values only, as everything that a run is made of (see `isoflop.run`); `isoflop.rollouts` acts on
them. `Rollouts` has one set of prompts of its own, and any number of further `Spec`s.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from isoflop.text import check as _check

# Where the prompts of a set come from.
Kind = Literal[
    "fixed",  # `prompts`, or those of `source`
    "heldout_prefix",  # beginnings of held-out documents
    "train_prefix",  # beginnings of rows that the run reads in training, in its own order
    "empty",  # none: only what documents begin with
]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One set of prompts and how the model is asked.

    `source` is "text" or "code" (sets that come with isoflop), a .txt file (a prompt per line) or a
    .jsonl file (`{"prompt": ...}` per line, with what rewards may ask for: `"answer"`, `"info"`);
    its prompts are read once, before the run starts.
    """

    SHORTHAND: ClassVar[str] = "source"

    name: str = ""  # in files and metrics, as in rollout/NAME/entropy; "" is `Rollouts`' own set
    kind: Kind = "fixed"
    prompts: tuple[str, ...] = ()  # "" is the empty prompt
    source: str = ""
    answers: tuple[str, ...] = ()  # to the prompts, for rewards; none, or one for each
    infos: tuple[str, ...] = ()  # JSON objects, likewise
    count: int = 16  # prefixes
    prefix_tokens: int = 32  # of each prefix
    seeds: int = 4
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0  # only tokens at least this share as likely as the likeliest
    repetition: float = 1.0  # logits of tokens seen before are divided by it
    new_tokens: int = 64
    weights: Literal["raw", "ema"] = "raw"  # of which model: as trained, or averaged (`Run.ema`)

    def __post_init__(self) -> None:
        name = f"rollouts.specs.{self.name}" if self.name else "rollouts"
        plain = bool(re.fullmatch(r"[A-Za-z0-9_-]*", self.name))
        _check(plain, "rollouts.specs.name", self.name, "of letters, digits and - _")
        _check(self.kind in get_args(Kind), f"{name}.kind", self.kind, f"one of {get_args(Kind)}")
        if self.kind == "fixed":
            given = bool(self.prompts or self.source)
            _check(given, f"{name}.prompts", (), "given, or a source for them")
        else:
            own = self.prompts or self.source
            _check(not own, f"{name}.prompts", own, f"left out where the kind is {self.kind}")
        for field, beside in (("answers", self.answers), ("infos", self.infos)):
            many = f"as many as there are prompts ({len(self.prompts)}), or none"
            _check(len(beside) in (0, len(self.prompts)), f"{name}.{field}", beside, many)
        _check(self.weights in ("raw", "ema"), f"{name}.weights", self.weights, "raw or ema")
        for field, value in self._counts():
            _check(value > 0, f"{name}.{field}", value, "above 0")
        _check(self.temperature >= 0, f"{name}.temperature", self.temperature, "at least 0")
        _check(self.top_k >= 0, f"{name}.top_k", self.top_k, "at least 0")
        _check(0 < self.top_p <= 1, f"{name}.top_p", self.top_p, "above 0 and at most 1")
        _check(0 <= self.min_p <= 1, f"{name}.min_p", self.min_p, "from 0 to 1")
        _check(self.repetition > 0, f"{name}.repetition", self.repetition, "above 0")

    def _counts(self) -> list[tuple[str, int]]:
        names = ("seeds", "new_tokens", "count", "prefix_tokens")
        return [(field, getattr(self, field)) for field in names]

    def science(self) -> dict[str, Any]:
        """What its rollouts depend on: where the prompts were read is not part of it."""
        values = _used(self)
        if self.prompts:
            values.pop("source", None)
        return values


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """The band that a metric must keep to, and what happens once it does not.

    A run that is stopped so has ended ("alarmed"); a warning stands in its records, as
    alarm/METRIC. A run with alarms captures its rollouts itself, not beside its training.
    """

    metric: str  # as in rollout/METRIC or rollout/SET/METRIC: "loop", "code/loop"
    low: float | None = None
    high: float | None = None
    after: float = 0.1  # share of the run's steps
    action: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"the alarm on {self.metric} has no band; give low, high, or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(
                f"the alarm on {self.metric} has low {self.low} above high {self.high}"
            )
        if not 0 <= self.after <= 1:
            raise ValueError(f"the alarm on {self.metric} has after={self.after}; allowed: 0 to 1")
        if self.action not in ("warn", "stop"):
            raise ValueError(f"the alarm's action is {self.action!r}; it must be warn or stop")


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What the model is asked to write while it learns: every prompt with every seed, each time.

    Captured at step 0, at the end, and between as far as `budget` allows: at points log-spaced in
    tokens, or every so many steps. Where a run is so short that not even step 0 and the end fit,
    they are asked after all of the study's runs, from the weights that are kept, with equal rows;
    `beyond="now"` has them in the run whatever they take.
    """

    SHORTHAND: ClassVar[str] = "captures"

    prompts: tuple[str, ...] = ()  # of the set without a name; "" is the empty prompt
    seeds: int = 4
    temperature: float = 1.0  # 0 is greedy
    new_tokens: int = 64
    captures: int = 4  # at most, step 0 and the end included; without effect where `every` is given
    budget: float = 0.02  # share of the training time that captures may take; from 1 on: all
    beyond: Literal["later", "now"] = "later"  # step 0 and the end, where they do not fit into it
    every: int = 0  # optimizer steps between captures; 0: log-spaced
    specs: tuple[Spec, ...] = ()  # further sets
    novelty: bool = False  # compare with what the run had read by then: an index of it is built
    rubric: str = ""  # a file of rewards (see `isoflop.rollouts.rubric`), or "python", which comes
    rewards: str = ""  # the text of it: read once, before the run starts
    alarms: tuple[Alarm, ...] = ()  # raised where a whole interval lies outside its band

    def __post_init__(self) -> None:
        _check(self.seeds > 0, "rollouts.seeds", self.seeds, "above 0")
        _check(self.temperature >= 0, "rollouts.temperature", self.temperature, "at least 0")
        _check(self.new_tokens > 0, "rollouts.new_tokens", self.new_tokens, "above 0")
        _check(self.captures >= 2, "rollouts.captures", self.captures, "at least 2")
        _check(self.budget >= 0, "rollouts.budget", self.budget, "at least 0")
        _check(self.beyond in ("later", "now"), "rollouts.beyond", self.beyond, "later or now")
        _check(self.every >= 0, "rollouts.every", self.every, "at least 0 (0: log-spaced)")
        names = [spec.name for spec in self.specs]
        distinct = all(names) and len(set(names)) == len(names)
        _check(distinct, "rollouts.specs", names, "of different names, none empty")

    @property
    def asked(self) -> tuple[Spec, ...]:
        """Every set of prompts, its own first."""
        if not self.prompts:
            return self.specs
        own = Spec(
            prompts=self.prompts,
            seeds=self.seeds,
            temperature=self.temperature,
            new_tokens=self.new_tokens,
        )
        return (own, *self.specs)

    def science(self) -> dict[str, Any]:
        """What the numbers of a run depend on, for its identity.

        Fields that are younger than the first finished runs count only where they are used, so that
        those stay finished.
        """
        values = asdict(self)
        del values["beyond"]  # when they are asked: the rows are the same
        if self.rewards:
            values["rubric"] = ""
        for name in ("every", "specs", "novelty", "rubric", "rewards", "alarms"):
            if values[name] == getattr(type(self), name):
                del values[name]
        if self.specs:
            values["specs"] = [spec.science() for spec in self.specs]
        return values


def _used(value: Spec) -> dict[str, Any]:
    """The fields that are not as they would be anyway."""
    assert all(field.default is not MISSING for field in fields(value))
    defaults = {field.name: field.default for field in fields(value)}
    return {name: item for name, item in asdict(value).items() if item != defaults[name]}
