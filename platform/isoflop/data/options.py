"""What may be chosen about preparing a text, beyond what a run states of it?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from isoflop.data import minhash, parallel
from isoflop.data.documents import Undecodable, check_undecodable
from isoflop.data.meter import Lines, Meter
from isoflop.data.parallel import Runner


class Asked(Protocol):
    """What a run states of a text: `isoflop.run.Text`, or `Text` here where torch is not wanted."""

    @property
    def source(self) -> str:
        """A path, a pattern or a name; see `sources`."""

    @property
    def tokenizer(self) -> str:
        """A name; see `tokenizers`."""

    @property
    def validation(self) -> float:
        """The share of the bytes that is held out."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """The same three of `isoflop.run.Text`, without its module, which imports torch."""

    source: str
    tokenizer: str
    validation: float

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How documents are read and chosen, and what is known of them: all that a manifest states."""

    column: str = "text"  # of tables: where the text stands
    undecodable: Undecodable = "skip"
    keep_duplicates: bool = False  # documents that are equal to an earlier one
    near_duplicates: float | None = None  # the Jaccard similarity from which one is left out
    licence: str | None = None  # of the text, for the manifest, where the source does not tell it

    def __post_init__(self) -> None:
        check_undecodable(self.undecodable)
        if self.near_duplicates is not None:
            minhash.bands(self.near_duplicates)


@dataclass(frozen=True, kw_only=True)
class Means:
    """Who does the work and who is told: nothing that changes the result."""

    runner: Runner | None = None  # by default as many processes as the text is worth
    meter: Meter = field(default_factory=lambda: Lines(lambda line: None))
    remote_limit: int | None = None  # bytes of all copies of texts at URLs; by default half a disk

    def on(self, size: int) -> Runner:
        return self.runner or parallel.on(parallel.worthwhile(size))


def choices(text: Asked, options: Options) -> dict[str, Any]:
    """All that decides what a source becomes, as plain values."""
    return {
        "source": text.source,
        "tokenizer": text.tokenizer,
        "validation": text.validation,
        **asdict(options),
    }
