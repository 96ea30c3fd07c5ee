"""Which text does a run read, how does it become tokens, and how do those fill rows?

Values only, as everything that a run is made of (see `isoflop.run`); `isoflop.data` acts on them.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

# What a row is. `isoflop.data.frames` cuts them, and says it in more detail.
Framing = Literal[
    "stream",  # windows over all documents, one after the other as if they were a single text
    "packed",  # the same, but no document is told of another: models keep them apart
    "best-fit",  # whole documents put together so that few rows need padding
    "slide-in",  # one document: the window enters it from the left, and stops at its end
    "slide-through",  # one document: the window enters it from the left, and leaves to the right
    "full-windows",  # one document: windows that it fills; ends and short documents are left out
    "right-padded",  # one document: its beginning; what is longer is cut off
]
# How often each source of a mixture is read.
Mixing = Literal[
    "given",  # by the weights of its parts
    "equal",  # all alike
    "proportional",  # by their tokens
    "temperature",  # by their tokens to the power of 1 / temperature
]


def check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture; of the weights only the ratios count."""

    source: str
    weight: float = 1.0
    name: str = ""  # in records, as in val/loss/NAME; if none is given, the end of the source

    def __post_init__(self) -> None:
        check(bool(self.source), "data.mixture.source", self.source, "a path or 'python-stdlib'")
        check(0 < self.weight < 1e30, "data.mixture.weight", self.weight, "above 0, and finite")
        check(
            bool(re.fullmatch(r"[\w.-]*", self.name)),
            "data.mixture.name",
            self.name,
            "of letters, digits and - _ .",
        )

    @property
    def label(self) -> str:
        """What records call it: "books" for a source of "/data/books.jsonl"."""
        last = self.source.rstrip("/").rpartition("/")[2]
        return self.name or re.sub(r"[^\w-]+", "-", last.partition(".")[0]) or "source"


@dataclass(frozen=True, kw_only=True)
class Text:
    """Which text, how it becomes tokens, and how those fill the rows of a batch.

    `source`: "python-stdlib" (the standard library's own source, on every machine); a file, a
    folder of .txt, .md, .py, .jsonl, .csv or .parquet (.gz and .zst, too), or a pattern such as
    "corpus/**/*.rst"; "tinystories", "fineweb-edu" or "hf:NAME" of Hugging Face's hub; Megatron's
    NAME.bin; "known:SEED,..." (text of exactly known entropy; see `isoflop.data.known`); or a URL
    such as "s3://bucket/prepared", where what `isoflop data prepare` filled was copied to. A
    `mixture` stands in its place: several sources, with one tokenizer for all.

    `tokenizer`: trained on the training split, "bpe-N" (byte-level BPE of N tokens; "bpe-4k" for
    4,096), "words-N", "characters" or "sentencepiece-N"; or one that needs no training, "bytes",
    "ascii" (lossy), FILE.model, or an encoding of tiktoken ("gpt2", ...).
    """

    SHORTHAND: ClassVar[str] = "source"  # what `--set data=VALUE` sets

    source: str = "python-stdlib"
    tokenizer: str = "bpe-2048"
    validation: float = 0.05  # share of the documents that is held out, chosen by content hash
    fingerprint: str = ""  # hash of the content and the tokenizer, once prepared
    rows: Framing = "stream"
    stride: int = 0  # tokens from one window to the next; 0: the context, so that none overlap
    held_out: Framing | Literal["same"] = "same"  # the rows of the evaluation
    mixture: tuple[Part, ...] = ()
    mixing: Mixing = "given"
    temperature: float = 1.0  # of that mixing: 1 is proportional, and the higher the more equal
    most_epochs: float = 0.0  # of any source; more is refused before the run starts. 0: no limit

    def __post_init__(self) -> None:
        check(0 < self.validation < 1, "data.validation", self.validation, "between 0 and 1")
        check(bool(self.source), "data.source", self.source, "a path or 'python-stdlib'")
        one_of = (("rows", Framing), ("mixing", Mixing), ("held_out", Framing))
        for name, kind in one_of:
            value, allowed = getattr(self, name), get_args(kind)
            allowed = ("same", *allowed) if name == "held_out" else allowed
            check(value in allowed, f"data.{name}", value, f"one of {', '.join(allowed)}")
        check(self.stride >= 0, "data.stride", self.stride, "at least 0")
        check(0 < self.temperature < 1e30, "data.temperature", self.temperature, "above 0")
        check(self.most_epochs >= 0, "data.most_epochs", self.most_epochs, "at least 0")
        self._check_mixture()

    def _check_mixture(self) -> None:
        labels = [part.label for part in self.mixture]
        check(
            len(set(labels)) == len(labels),
            "data.mixture",
            labels,
            "of different names; give its parts a name each",
        )
        check(
            not self.mixture or self.source == Text.source,
            "data.source",
            self.source,
            "left out where there is a data.mixture",
        )

    def weights(self, tokens: list[int]) -> list[float]:
        """How often each part is read, up to a factor, where they have so many tokens."""
        if self.mixing == "given":
            return [part.weight for part in self.mixture]
        power = {"equal": 0.0, "proportional": 1.0, "temperature": 1 / self.temperature}
        largest = max(tokens)
        return [(count / largest) ** power[self.mixing] for count in tokens]

    def science(self) -> dict[str, Any]:
        """What the numbers of a run depend on, for its identity.

        Options that are younger than the first finished runs count only where they are used, so
        that those stay finished. Where a text lies and what it is called change no number.
        """
        values = asdict(self)
        for name in ("source", "most_epochs"):
            del values[name]
        values["mixture"] = [part.weight for part in self.mixture]
        if self.mixing != "given":
            values["mixture"] = [1.0] * len(self.mixture)
        unused = {"rows": "stream", "stride": 0, "held_out": "same", "mixture": []}
        unused |= {"mixing": "given", "temperature": 1.0}
        return {name: v for name, v in values.items() if v != unused.get(name, object)}
