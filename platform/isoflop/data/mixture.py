"""How do several sources become one text? Each is prepared by itself, with one tokenizer for all.

A vocabulary is trained on the training text of all sources together, or on as much of it as of a
single source, drawn from each alike. So that it is read in the same way for every kind of source,
without what is held out, each is prepared as bytes first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isoflop.data import tokenizers
from isoflop.data.corpus import TRAINED_ON
from isoflop.data.folders import only_one, whole
from isoflop.data.hashing import ODD, mix
from isoflop.data.meter import megabytes
from isoflop.data.prepare import prepare
from isoflop.data.prepared import Prepared
from isoflop.data.tokenizers import BYTES, Tokenizer, Trainer

if TYPE_CHECKING:
    from isoflop.run import Text  # its module imports torch, which text does not need


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Prepared sources of one vocabulary, as if they were a single text."""

    parts: tuple[tuple[str, Prepared], ...]  # by the names that records use

    @property
    def fingerprint(self) -> str:
        content = " ".join(part.fingerprint for _, part in self.parts)
        return hashlib.sha256(f"mixture {content}".encode()).hexdigest()[:16]

    @property
    def vocab(self) -> int:
        return self.parts[0][1].vocab

    @property
    def train_tokens(self) -> int:
        """Of all sources together."""
        return sum(part.train_tokens for _, part in self.parts)

    def tokenizer(self) -> Tokenizer:
        return self.parts[0][1].tokenizer()


def parts(prepared: Prepared | Mixed) -> dict[str, Prepared]:
    """The sources by their names; a single one has none ("")."""
    return dict(prepared.parts) if isinstance(prepared, Mixed) else {"": prepared}


def prepare_all(
    text: Text, cache: Path, progress: Callable[[str], None] | None = None
) -> Prepared | Mixed:
    """The text, or every source of its mixture, as token files; see `prepare`.

    Raises ValueError for whatever one of them cannot be prepared for.
    """
    if not text.mixture:
        return prepare(text, cache, progress)
    sources = {part.label: _alone(text, part.source) for part in text.mixture}
    trainer = tokenizers.trainer(text.tokenizer)
    if trainer is not None:
        folder = _joint(list(sources.values()), trainer, cache, progress)
        sources = {name: replace(one, tokenizer=str(folder)) for name, one in sources.items()}
    found = {name: prepare(one, cache, progress) for name, one in sources.items()}
    hashes = {name: one.tokenizer().hash for name, one in found.items()}
    if len(set(hashes.values())) > 1:
        raise ValueError(f"the sources of data.mixture have different tokenizers: {hashes}")
    return Mixed(parts=tuple(found.items()))


def _alone(text: Text, source: str) -> Text:
    return replace(text, source=source, mixture=())


def _joint(
    sources: Sequence[Text], trainer: Trainer, cache: Path, progress: Callable[[str], None] | None
) -> Path:
    """The folder of a vocabulary trained on all sources' training text."""
    raw = [prepare(replace(one, tokenizer=BYTES), cache, progress) for one in sources]
    content = " ".join(part.fingerprint for part in raw)
    key = hashlib.sha256(f"{content} {trainer.key}".encode()).hexdigest()[:16]
    target = (cache / "tokenizers" / key).absolute()
    with only_one(target):
        if not target.exists():
            size = sum(part.train_bytes for part in raw)
            share = min(1.0, TRAINED_ON / size)
            if progress:
                of = megabytes(round(share * size))
                progress(f"training {trainer.name} on {of} of {len(raw)} sources")
            tokenizer = trainer.train(text for part in raw for text in _texts(part, share))
            with whole(target) as folder:
                tokenizers.save(tokenizer, folder)
    return target


def _texts(prepared: Prepared, share: float) -> Iterator[str]:
    """Of the training documents of a text that was prepared as bytes, about this share."""
    file, start = prepared.train(), 0
    draws = mix(np.arange(1, file.documents + 1, dtype=np.uint64) * np.uint64(ODD))
    for end, draw in zip(file.document_ends.tolist(), draws.tolist(), strict=True):
        if draw < share * 2**64:
            ids = file.read(start, end - 1)  # without the end of text
            yield ids.astype(np.uint8).tobytes().decode()
        start = end
