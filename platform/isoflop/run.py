"""What is one training run? Frozen values that say everything the result depends on.

A study writes a `Run`; `Run.resolve` fills in what only the prepared text can tell (the vocabulary,
a fingerprint of the content, the number of tokens that a FLOP budget buys). A resolved run has an
`identity`: the hash of its scientific content. Machine settings (device, workers, where results
lie) are never part of it, so the same run started on another machine is the same run.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from isoflop import targets
from isoflop.captures import Alarm, Rollouts, Spec
from isoflop.targets import Autoregressive, MaskedDiffusion, SpanDenoising
from isoflop.text import Part, Text
from isoflop.text import check as _check
from models.interface import Config, Scales, younger

__all__ = [
    "AdamW",
    "Alarm",
    "Autoregressive",
    "Checkpoints",
    "Evaluation",
    "Lion",
    "MaskedDiffusion",
    "Muon",
    "Part",
    "Rollouts",
    "Run",
    "Schedule",
    "SpanDenoising",
    "Spec",
    "Text",
    "override",
    "short",
]


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Loshchilov & Hutter 2019. Weight decay acts on matrices only, not on norms or biases."""

    SHORTHAND: ClassVar[str] = "lr"
    name: ClassVar[str] = "adamw"

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # largest global gradient norm; 0 turns clipping off

    def __post_init__(self) -> None:
        _check(self.lr > 0, "optimizer.lr", self.lr, "above 0")
        _check(all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "in [0, 1)")
        _check(self.clip >= 0, "optimizer.clip", self.clip, "at least 0")
        for name in ("epsilon", "weight_decay"):
            value = getattr(self, name)
            _check(value >= 0, f"optimizer.{name}", value, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Lion(AdamW):
    """Chen et al. 2023: the sign of the momentum. Wants a rate 3 to 10 times below AdamW's, and as
    much more decay."""

    name: ClassVar[str] = "lion"

    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Jordan et al. 2024: momentum, orthogonalised, for the matrices inside the model; AdamW for
    embeddings, head, norms and biases. Updates of matrices are scaled to AdamW's typical size (Liu
    et al. 2025, "Muon is scalable"), so that one rate and one decay serve both."""

    name: ClassVar[str] = "muon"

    momentum: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "in [0, 1)")


OPTIMIZERS: dict[str, type[AdamW]] = {kind.name: kind for kind in (AdamW, Lion, Muon)}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over a run, as shares of its own length, so that short runs are not
    misjudged.

    Linear warm-up over `warmup`, then decay to `final` times the peak; "wsd" (warm-up, stable,
    decay) keeps the peak until the last `cooldown` of the run, which is linear. With a warm-up of
    `warmup_steps`, equal in all runs, runs of several lengths share their trunk (see
    `training.trunk`). A warm-up of fixed length or
    a decay that outlasts the run would bend the scaling exponents (Porian et al. 2024; Hoffmann
    2022).
    """

    SHORTHAND: ClassVar[str] = "decay"

    decay: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: float = 0.1
    final: float = 0.1
    cooldown: float = younger(0.2)  # of wsd
    warmup_steps: int = younger(0)  # optimizer steps, instead of a share

    def __post_init__(self) -> None:
        allowed = ("cosine", "linear", "constant", "wsd")
        _check(self.decay in allowed, "schedule.decay", self.decay, f"one of {', '.join(allowed)}")
        _check(0 <= self.warmup < 1, "schedule.warmup", self.warmup, "in [0, 1)")
        _check(0 <= self.final <= 1, "schedule.final", self.final, "in [0, 1]")
        _check(0 < self.cooldown <= 1, "schedule.cooldown", self.cooldown, "above 0, at most 1")
        _check(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Parametrisation:
    """How initial weights and learning rates follow the model's size, from a base size on.

    standard    not at all: they are what the model and the optimizer say
    mup         the optimum found at the base width holds at any width (Yang et al. 2022)
    completep   and the one found at the base depth at any depth (Dey et al. 2025, alpha = 1)

    All are the same at the base. The rules are in `isoflop/training/parametrisation.py`.
    """

    SHORTHAND: ClassVar[str] = "kind"

    kind: Literal["standard", "mup", "completep"] = "standard"
    width: int = 128  # of the base
    depth: int = 4  # of the base; completep only
    head: int = 0  # numbers in a head of the base; 0: heads keep their size, and grow in number

    def __post_init__(self) -> None:
        kinds = ("standard", "mup", "completep")
        _check(self.kind in kinds, "parametrisation.kind", self.kind, f"one of {', '.join(kinds)}")
        for name, least in (("width", 1), ("depth", 1), ("head", 0)):
            value = getattr(self, name)
            _check(value >= least, f"parametrisation.{name}", value, f"at least {least}")

    def ratios(self, model: Config) -> tuple[float, float]:
        """The model's width, and its depth, in those of the base; depth counts for completep."""
        width, depth = (getattr(model, name, None) for name in ("width", "depth"))
        if width is None or depth is None:
            raise ValueError(
                f"parametrisation.kind is {self.kind!r}; {model.name} has no width and depth to "
                f"scale by, so it must be 'standard'"
            )
        return width / self.width, depth / self.depth if self.kind == "completep" else 1.0

    def applied(self, model: Config) -> Config:
        """The model with the factors in its forward pass; see `models.interface.Scales`."""
        if self.kind == "standard":
            return model
        size = getattr(model, "size", self.head)
        larger = size / self.head if self.head else 1.0
        scales = Scales(logits=1 / self.ratios(model)[0], attention=larger**-0.5)
        known = model.scales in (Scales(), scales)
        _check(known, "model.scales", model.scales, f"left out: {self.kind} makes it {scales}")
        return replace(model, scales=scales)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out loss on the same windows for every run of a study."""

    SHORTHAND: ClassVar[str] = "tokens"

    tokens: int = 2**15  # predicted tokens per evaluation, rounded to whole windows
    times: int = 4  # evaluations per run at log-spaced points; the last is the end of the run
    # At each, measure the gradient noise scale too, for the price of a step: which batch pays?
    noise_scale: bool = younger(False)
    weights: Literal["raw", "ema"] = younger("raw")  # that are judged; "ema" needs `Run.ema`

    def __post_init__(self) -> None:
        _check(self.tokens > 0, "evaluation.tokens", self.tokens, "above 0")
        _check(self.times > 0, "evaluation.times", self.times, "above 0")
        _check(self.weights in ("raw", "ema"), "evaluation.weights", self.weights, "raw or ema")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """How much work a killed process may lose. No part of a run's identity: no number changes."""

    SHORTHAND: ClassVar[str] = "seconds"

    seconds: float = 30.0  # wall time between two checkpoints

    def __post_init__(self) -> None:
        _check(self.seconds >= 0, "checkpoints.seconds", self.seconds, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Exactly one of `tokens` and `flops` is given; resolving sets `tokens`."""

    model: Config
    optimizer: AdamW
    batch_tokens: int  # per optimizer step, over all workers; a multiple of the model's context
    tokens: int | None = None  # training length in tokens, rounded to whole steps
    flops: float | None = None  # or in exact training FLOPs
    data: Text = Text()  # noqa: RUF009  # frozen, so it can be shared
    objective: targets.Objective = field(default_factory=Autoregressive)
    schedule: Schedule = Schedule()
    parametrisation: Parametrisation = younger(Parametrisation())
    ema: float = younger(0.0)  # share of the averaged weights that a step keeps; 0: no average
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0
    evaluation: Evaluation = Evaluation()
    rollouts: Rollouts = Rollouts()  # noqa: RUF009  # frozen, too
    checkpoints: Checkpoints = Checkpoints()

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.flops is None):
            raise ValueError(
                f"a run takes either tokens or flops, not tokens={self.tokens}, flops={self.flops}"
            )
        length = self.flops if self.tokens is None else self.tokens
        _check(0 < (length or 0) < math.inf, "tokens or flops", length, "above 0, and finite")
        context = self.model.context
        _check(
            self.batch_tokens > 0 and self.batch_tokens % context == 0,
            "batch_tokens",
            self.batch_tokens,
            f"a multiple of the context ({context} tokens)",
        )
        allowed = ("auto", "float32", "bfloat16", "float16")
        _check(self.precision in allowed, "precision", self.precision, f"one of {allowed}")
        _check(0 <= self.seed < 2**64, "seed", self.seed, "at least 0 and below 2**64")
        targets.fits(self.objective, self.model)
        if type(self.optimizer) is not AdamW and self.parametrisation.kind != "standard":
            raise ValueError(
                f"parametrisation.kind is {self.parametrisation.kind!r}, whose rules are AdamW's; "
                f"with {self.optimizer.name} it must be 'standard'"
            )
        _check(0 <= self.ema < 1, "ema", self.ema, "at least 0 and below 1")
        if self.averaged and not self.ema:
            raise ValueError(
                "ema is 0.0, so there are no averaged weights for what asks for them "
                "(weights 'ema' of evaluation or rollouts); give ema, as in 0.999"
            )

    def resolve(self, *, vocab: int, fingerprint: str) -> Run:
        """The run with its vocabulary, its text's fingerprint and its length in whole steps."""
        model = self.parametrisation.applied(self.objective.prepare(self.model, vocab))
        if self.model.vocab not in (0, model.vocab):
            raise ValueError(
                f"model.vocab is {self.model.vocab}, but the tokenizer {self.data.tokenizer!r} has "
                f"{model.vocab} tokens; leave model.vocab out and it is taken from the tokenizer"
            )
        if self.data.fingerprint not in ("", fingerprint):
            raise ValueError(
                f"the text {self.data.source!r} has changed: this run was made on content "
                f"{self.data.fingerprint}, and what is there now is {fingerprint}"
            )
        wanted = self.tokens or (self.flops or 0) / model.flops_per_token().training
        steps = max(1, round(wanted / self.batch_tokens))
        data = replace(self.data, fingerprint=fingerprint)
        return replace(self, model=model, data=data, tokens=steps * self.batch_tokens, flops=None)

    @property
    def averaged(self) -> bool:
        """Is anything asked of the averaged weights?"""
        asked = (spec.weights for spec in self.rollouts.asked)
        return "ema" in (self.evaluation.weights, *asked)

    @property
    def resolved(self) -> bool:
        return bool(self.data.fingerprint)

    @property
    def steps(self) -> int:
        assert self.tokens is not None, "only a resolved run knows its number of steps"
        return max(1, round(self.tokens / self.batch_tokens))

    @property
    def rows(self) -> int:
        """Sequences in one optimizer step, over all workers."""
        return self.batch_tokens // self.model.context

    @property
    def training_flops(self) -> int:
        """Exact FLOPs of the whole run: forward and backward, attention and head included."""
        return self.steps * self.batch_tokens * self.model.flops_per_token().training

    @property
    def identity(self) -> str:
        """16 hex digits: the hash of all that the run's numbers depend on.

        Raises AssertionError on a run that is not resolved: its content is not known yet.
        """
        assert self.resolved, "only a resolved run has an identity"
        content = {**self.as_json(), "data": self.data.science()}
        content["rollouts"] = self.rollouts.science()
        _forget(self, content)
        for name in ("model", "evaluation", "schedule"):
            _forget(getattr(self, name), content[name])
        del content["checkpoints"]
        del content["model"]["markers"]  # follows from the objective
        text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Plain values; `model` carries the architecture's name as `kind`."""
        values = asdict(self)
        values["model"] = {"kind": self.model.name, **values["model"]}
        values["objective"] = targets.as_json(self.objective)
        if type(self.optimizer) is not AdamW:  # the only one of the first runs
            values["optimizer"] = {"kind": self.optimizer.name, **values["optimizer"]}
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any], zoo: Mapping[str, type[Config]]) -> Run:
        """The run that `as_json` wrote. Raises ValueError that names what is unknown, and where."""
        values = dict(values)
        for part in ("model", "objective"):
            if not isinstance(values.get(part), Mapping):
                raise ValueError(
                    f"run.{part} is {values.get(part)!r}; it must be a table of fields"
                )
            values[part] = dict(values[part])
        kind = values["model"].pop("kind", None)
        if kind not in zoo:
            raise ValueError(f"model.kind is {kind!r}; known models: {', '.join(sorted(zoo))}")
        objective = targets.named(values["objective"].pop("kind", None))
        values["optimizer"] = _optimizer(values.get("optimizer"))
        values["model"] = _build(zoo[kind], values["model"], "model")
        values["objective"] = _build(objective, values["objective"], "objective")
        run: Run = _build(Run, values, "run")
        return run


def _optimizer(values: Any) -> AdamW:
    """AdamW, or the one that `kind` names. Raises ValueError."""
    if not isinstance(values, Mapping):
        raise ValueError(f"run.optimizer is {values!r}; it must be a table of fields")
    values = dict(values)
    kind = values.pop("kind", AdamW.name)
    if kind not in OPTIMIZERS:
        raise ValueError(f"optimizer.kind is {kind!r}; it must be one of {', '.join(OPTIMIZERS)}")
    found: AdamW = _build(OPTIMIZERS[kind], values, "run.optimizer")
    return found


def _forget(part: Any, values: dict[str, Any]) -> None:
    """Leave out the fields that are younger than the first finished runs and at their default."""
    for each in fields(part):
        if each.metadata.get("younger") and getattr(part, each.name) == each.default:
            del values[each.name]


def _canonical(value: Any) -> Any:
    """Equal numbers alike: a study may write 1 where it means 1.0, and equal runs are one run."""
    if isinstance(value, dict):
        return {name: _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def short(value: Any) -> str:
    """Floats as people say them (3e11), the rest as it is."""
    return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.3g}") if isinstance(value, float) else str(value)


def override(run: Run, path: str, text: str) -> Run:
    """The run with the field at `path` ("optimizer.lr", "data") set to what `text` says.

    Raises ValueError that names the path, the value, and what is allowed.
    """
    changed: Run = _override(run, path.split("."), text, path)
    return changed


def _override(value: Any, names: list[str], text: str, path: str) -> Any:
    name, *rest = names
    known = {part.name for part in fields(value)}
    if name not in known:
        raise ValueError(
            f"--set {path}: {type(value).__name__} has no field {name!r}; "
            f"it has {', '.join(sorted(known))}"
        )
    current = getattr(value, name)
    if isinstance(current, targets.Objective) and not rest:
        return replace(value, **{name: targets.named(text, where=f"--set {path}")()})
    if not rest and is_dataclass(current) and hasattr(current, "SHORTHAND"):
        rest = [current.SHORTHAND]
    if rest and not is_dataclass(current):
        raise ValueError(f"--set {path}: {name!r} is a plain value and has no field {rest[0]!r}")
    if rest:
        return replace(value, **{name: _override(current, rest, text, path)})
    if is_dataclass(current):
        inner = ", ".join(f"{path}.{part.name}" for part in fields(current))
        raise ValueError(f"--set {path}: name one of its fields: {inner or 'it has none'}")
    changes = {name: _parse(get_type_hints(type(value))[name], text, path)}
    if isinstance(value, Run) and name in ("tokens", "flops"):
        changes = {"tokens": None, "flops": None, **changes}
    return replace(value, **changes)


def _parse(kind: Any, text: str, path: str) -> Any:
    from pydantic import TypeAdapter, ValidationError  # heavy, and only needed for overrides

    adapter = TypeAdapter(kind)
    try:
        if text.startswith(("[", "{")) and kind is not str:
            return adapter.validate_json(text)
        return adapter.validate_strings(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"--set {path}: {text!r} does not fit: {reason}") from None


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from plain values, nested ones and tuples restored."""
    hints = get_type_hints(kind)
    known = {part.name for part in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{where}.{unknown[0]} is unknown; {where} has {', '.join(sorted(known))}")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if isinstance(value, Mapping):
            value = _build(hint, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(_items(hint, value, f"{where}.{name}"))
        arguments[name] = value
    try:
        return kind(**arguments)
    except TypeError as error:  # a field that is missing, or compared with what it cannot be
        raise ValueError(f"{where} cannot be built: {error}") from None


def _items(hint: Any, values: list[Any], where: str) -> Iterator[Any]:
    """The items of a tuple, dataclasses built where the hint asks for them."""
    kind = next(iter(get_args(hint)), None)
    for value in values:
        if is_dataclass(kind) and not isinstance(value, Mapping):
            raise ValueError(f"{where} holds {value!r}; it must hold tables of fields")
        yield _build(kind, value, where) if isinstance(value, Mapping) else value
