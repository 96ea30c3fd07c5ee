"""What may a run be asked to predict? Three objectives, as frozen values that a `Run` holds.

    autoregressive    each token from those before it
    span_denoising    spans cut out of the text, from what is left (an encoder-decoder)
    masked_diffusion  hidden tokens, from those on both sides (a denoiser)

How they are computed is in `isoflop.objectives`. Some need ids that no text has, a mask or
sentinels: these *markers* follow the tokenizer's vocabulary, and resolving a run makes room for
them in its model. The last one is the blank: what a denoiser reads for a hidden token, what a
decoder behind an encoder reads first, and what fills a row up.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from isoflop.text import check
from models.interface import Config, EncoderDecoderConfig


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How a model is asked to go on from a prompt: markers around it, and a denoiser's passes."""

    before: tuple[int, ...] = ()  # read ahead of the prompt
    after: tuple[int, ...] = ()  # read behind it
    start: tuple[int, ...] = ()  # what a decoder behind an encoder is given as already written
    passes: int = 0  # of a denoiser over what it fills in; 0: as many as there are blanks
    order: Literal["confidence", "random"] = "confidence"  # in which a denoiser fills them in


@dataclass(frozen=True, kw_only=True)
class Regularisers:
    """Terms that training adds to the loss, each by its weight; held-out losses have none of them.

    What each one is stands in `isoflop.objectives.regularise`.
    """

    smoothing: float = 0.0  # share of a target's weight that is spread over the vocabulary
    z_loss: float = 0.0  # 1e-4 in PaLM
    contrast: float = 0.0
    temperature: float = 0.1  # of the contrast
    stretches: int = 2  # of a row, which are each other's positives

    def __post_init__(self) -> None:
        check(0 <= self.smoothing < 1, "objective.smoothing", self.smoothing, "in [0, 1)")
        check(self.z_loss >= 0, "objective.z_loss", self.z_loss, "at least 0")
        check(self.contrast >= 0, "objective.contrast", self.contrast, "at least 0")
        check(self.temperature > 0, "objective.temperature", self.temperature, "above 0")
        check(self.stretches >= 2, "objective.stretches", self.stretches, "at least 2")

    @property
    def any(self) -> bool:
        return self.smoothing > 0 or self.z_loss > 0 or self.contrast > 0


@dataclass(frozen=True, kw_only=True)
class Objective(Regularisers):
    """What all objectives share."""

    name: ClassVar[str]  # as `kind` in JSON and after `--set objective=`
    family: ClassVar[str]  # of the models that it fits: see `models.interface.Config.family`

    @property
    def markers(self) -> int:
        """Ids that the objective needs behind the tokenizer's vocabulary."""
        return 0

    def prepare(self, model: Config, vocab: int) -> Config:
        """The model with room for a tokenizer's `vocab` ids and for the markers."""
        return replace(model, vocab=vocab + self.markers, markers=self.markers)

    def framing(self, vocab: int) -> Framing:
        """How a model of this objective is asked to continue a prompt; `vocab` ids are text."""
        return Framing()


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Objective):
    """Predict each token from those before it; the loss is the mean cross entropy in nats."""

    name: ClassVar[str] = "autoregressive"
    family: ClassVar[str] = "decoder"


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(Objective):
    """Hide a random share of the tokens and predict them from the rest (absorbing diffusion).

    The loss is an upper bound on the negative log likelihood, in nats per token of the text (Sahoo
    et al. 2024, MDLM, eq. 10; Nie et al. 2025, LLaDA, eq. 6). It compares with the exact loss of an
    autoregressive model as a bound does: the model is at least as good as it says.
    """

    name: ClassVar[str] = "masked_diffusion"
    family: ClassVar[str] = "denoiser"

    # How rollouts are written. The first blanks filled in are those the model is surest of (Chang
    # et al. 2022, MaskGIT; Nie et al. 2025), or any: ancestral sampling, which the bound is about.
    passes: int = 0  # 0: as many as there are blanks
    order: Literal["confidence", "random"] = "confidence"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("confidence", "random")
        check(self.passes >= 0, "objective.passes", self.passes, "at least 0")
        check(self.order in known, "objective.order", self.order, f"one of {known}")

    @property
    def markers(self) -> int:
        return 1

    def framing(self, vocab: int) -> Framing:
        return Framing(passes=self.passes, order=self.order)


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way to cut spans out of a row."""

    mode: Literal["R", "S", "X"]  # UL2's name for its kind: regular, sequential, extreme
    length: float  # mean length of a span, in tokens; all of a sequential cut is one span
    rate: float  # share of the row's tokens that is cut out

    def cuts(self, tokens: int) -> tuple[int, int]:
        """How many of a row's tokens are cut out, and in how many spans: always as many, so that
        rows have one shape (Raffel et al. 2020, section 3.1.4, and their released code).
        """
        noise = min(max(round(tokens * self.rate), 1), tokens - 1)
        spans = 1 if self.mode == "S" else max(1, round(noise / self.length))
        return noise, min(spans, noise, tokens - noise)


# Tay et al. 2022 (UL2), table 1: seven denoisers, equally often.
UL2 = (
    Corruption(mode="R", length=3, rate=0.15),
    Corruption(mode="R", length=8, rate=0.15),
    Corruption(mode="S", length=1, rate=0.25),
    Corruption(mode="X", length=3, rate=0.5),
    Corruption(mode="X", length=8, rate=0.5),
    Corruption(mode="X", length=64, rate=0.15),
    Corruption(mode="X", length=64, rate=0.5),
)
MODES = ("R", "S", "X")


@dataclass(frozen=True, kw_only=True)
class SpanDenoising(Objective):
    """Predict spans that are cut out of the text, each announced by its sentinel.

    T5's span corruption (Raffel et al. 2020), or UL2's mixture of seven kinds (Tay et al. 2022), of
    which each row draws one and says which by a marker in front. The loss is the mean cross entropy
    over all that the decoder writes, sentinels included; bits per byte divide the same nats by the
    bytes of the text among it.
    """

    name: ClassVar[str] = "span_denoising"
    family: ClassVar[str] = "encoder-decoder"

    mixture: Literal["spans", "ul2"] = "spans"
    length: float = 3.0  # mean span, in tokens; of "spans" only, as is the rate
    rate: float = 0.15
    sentinels: int = 100  # a row has at most one span less

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("spans", "ul2")
        check(self.mixture in known, "objective.mixture", self.mixture, f"one of {known}")
        check(self.length >= 1, "objective.length", self.length, "at least 1 token")
        check(0 < self.rate < 1, "objective.rate", self.rate, "between 0 and 1")
        check(self.sentinels >= 2, "objective.sentinels", self.sentinels, "at least 2")

    @property
    def corruptions(self) -> tuple[Corruption, ...]:
        plain = Corruption(mode="R", length=self.length, rate=self.rate)
        return UL2 if self.mixture == "ul2" else (plain,)

    @property
    def modes(self) -> int:
        """Markers that name the kind of corruption: none where there is one kind only."""
        return len(MODES) if self.mixture == "ul2" else 0

    @property
    def markers(self) -> int:
        return self.sentinels + self.modes + 1  # the last is the blank

    def lengths(self, tokens: int) -> tuple[int, int]:
        """What the encoder reads and the decoder writes of a row of `tokens`, in positions.

        The longest over all kinds of corruption. Raises ValueError where a row is too short to be
        cut, or has more spans than there are sentinels.
        """
        check(tokens >= 2, "model.context", tokens, "at least 2 tokens for span denoising")
        cuts = [corruption.cuts(tokens) for corruption in self.corruptions]
        most = max(spans for _, spans in cuts)
        needed = f"above the {most} spans of a row of {tokens} tokens"
        check(self.sentinels > most, "objective.sentinels", self.sentinels, needed)
        source = max(tokens - noise + spans for noise, spans in cuts)
        return source + (self.modes > 0), max(noise + spans + 1 for noise, spans in cuts)

    def prepare(self, model: Config, vocab: int) -> Config:
        source, target = self.lengths(model.context)
        roomy = super().prepare(model, vocab)
        assert isinstance(roomy, EncoderDecoderConfig), "a run checks that the two fit"
        return replace(roomy, source=source, target=target)

    def mode(self, corruption: Corruption, vocab: int) -> int:
        """The marker of a kind of corruption, in a mixture."""
        return vocab + self.sentinels + MODES.index(corruption.mode)

    def framing(self, vocab: int) -> Framing:
        """The text goes on where the first sentinel stands, as in a sequential cut."""
        sequential = (vocab + self.sentinels + MODES.index("S"),) if self.modes else ()
        return Framing(before=sequential, after=(vocab,), start=(vocab + self.markers - 1, vocab))


OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind for kind in (Autoregressive, SpanDenoising, MaskedDiffusion)
}


def named(name: object, where: str = "objective.kind") -> type[Objective]:
    """The class of that name. Raises ValueError that lists the known ones."""
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ValueError(f"{where} is {name!r}; known objectives: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def as_json(objective: Objective) -> dict[str, Any]:
    """Its fields and its `kind`. A field at its default is left out: one that is added later, with
    the old behaviour as its default, then changes no run's identity.
    """
    values = {field.name: getattr(objective, field.name) for field in fields(objective)}
    defaults = {field.name: field.default for field in fields(objective)}
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    return {"kind": objective.name, **changed}


def suiting(model: Config) -> type[Objective]:
    """The objective that models of this family are made for."""
    return next(kind for kind in OBJECTIVES.values() if kind.family == model.family)


def fits(objective: Objective, model: Config) -> None:
    """Raises ValueError unless a model of this family can learn this objective."""
    if model.family != objective.family:
        raise ValueError(
            f"objective {objective.name!r} is for models of the family {objective.family}, and "
            f"{model.name!r} is of the family {model.family}; it can learn {suiting(model).name!r}"
        )
    codes = getattr(model, "codebooks", 1)
    check(codes == 1, "model.codebooks", codes, "1: a text has one token at each position")
