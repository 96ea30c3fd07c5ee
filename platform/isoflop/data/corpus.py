"""What is a source, once it was read? Units whose documents each have a side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data import minhash, scan
from isoflop.data.documents import Damage
from isoflop.data.encode import Assigned, pieces
from isoflop.data.scan import Unit
from isoflop.data.split import (
    CUT,
    DROPPED,
    TRAIN,
    VALIDATION,
    Documents,
    Split,
    first_of_equals,
    split,
)

CONTENT = 1  # of what the hashes below are taken; a new one makes every text another text

# A vocabulary hardly changes with more bytes than this, while its training takes half a kilobyte of
# memory for each word that is new to it. Of a larger text, documents are chosen by their digests.
TRAINED_ON = 2**27

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents of a source with their sides. The text itself stays where it is."""

    source: str
    licence: str | None
    units: list[Unit]
    scans: Path
    share: float  # of the bytes that is held out
    documents: Documents
    split: Split
    edges: list[int]  # where each unit begins among the documents, and the end
    damage: Damage
    duplicates: int  # documents left out as equal to an earlier one
    near_duplicates: int | None  # ... or as nearly so; None: nobody looked

    @staticmethod
    def of(
        source: str,
        licence: str | None,
        units: list[Unit],
        scans: Path,
        *,
        share: float,
        keep_duplicates: bool,
        near_duplicates: float | None,
        damage: Damage,
    ) -> Corpus:
        """From what a scan noted of the units, in memory that grows with the documents alone."""
        noted = [scan.records(scans, unit.number) for unit in units]
        documents = Documents.of(noted)
        first = first_of_equals(documents)
        own = np.arange(len(first))
        equal, near = first != own, np.zeros(len(first), dtype=bool)
        if near_duplicates is not None:
            signatures = [scan.signatures(scans, unit.number) for unit in units]
            leaders = minhash.leaders(signatures, first, near_duplicates)
            near = leaders[first] != first
            first = leaders
        dropped = near if keep_duplicates else near | equal
        return Corpus(
            source=source,
            licence=licence,
            units=units,
            scans=scans,
            share=share,
            documents=documents,
            split=split(documents, share, np.where(dropped, -1, first)),
            edges=[0, *np.cumsum([len(block) for block in noted]).tolist()],
            damage=damage,
            duplicates=0 if keep_duplicates else int(equal.sum()),
            near_duplicates=None if near_duplicates is None else int((near & ~equal).sum()),
        )

    @property
    def bytes(self) -> int:
        """Of UTF-8, of all documents as they are read."""
        return int(self.documents.sizes.sum())

    @property
    def trained_on(self) -> int:
        """Bytes of UTF-8 that a vocabulary is trained on."""
        return int(self.documents.sizes[np.isin(self._sampled(), (TRAIN, CUT))].sum())

    def assigned(self, sides: npt.NDArray[np.uint8] | None = None) -> Iterator[Assigned]:
        """Each unit with the sides of its documents."""
        chosen = self.split.sides if sides is None else sides
        for unit in self.units:
            yield Assigned(
                source=self.source,
                unit=unit,
                scans=self.scans,
                sides=chosen[self._places(unit)].tobytes(),
                tail=self.split.tail,
            )

    def train(self) -> Iterator[str]:
        """The texts that a vocabulary is trained on."""
        for assigned in self.assigned(self._sampled()):
            for side, content in pieces(assigned):
                if side == "train":
                    assert isinstance(content, str), "no vocabulary is trained on ids"
                    yield content

    def hash(self) -> str:
        """Of all content in its order, and of the split: the same under every tokenizer."""
        content = hashlib.sha256(f"{CONTENT} {self.share!r}".encode())
        for digests, sides in self._digests():
            letters = np.where(sides == VALIDATION, ord("v"), ord("t")).astype(np.uint8)
            rows = np.concatenate([letters[:, None], digests], axis=1)
            content.update(rows[sides != DROPPED].tobytes())
        return content.hexdigest()

    def train_hash(self) -> str:
        """Of what is trained on."""
        cut = next((d[s == CUT][0].tobytes() for d, s in self._digests() if (s == CUT).any()), None)
        content = hashlib.sha256(f"{CONTENT} {cut!r} {self.split.tail!r}".encode())
        for digests, sides in self._digests(self._sampled()):
            content.update(digests[np.isin(sides, (TRAIN, CUT))].tobytes())
        return content.hexdigest()

    def lines(self) -> list[str]:
        """What was left out or mended, for people."""
        found = []
        if self.duplicates:
            found.append(f"left out {self.duplicates:,} documents that are equal to another")
        if self.near_duplicates:
            found.append(f"left out {self.near_duplicates:,} documents that are nearly another")
        return found + self.damage.lines()

    def details(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "source": self.source,
            "content": self.hash()[:16],
            "licence": self.licence,
            "documents_read": len(self.documents),
            "bytes_read": self.bytes,
            "duplicates": self.duplicates,
            "near_duplicates": self.near_duplicates,
            "damage": asdict(self.damage),
        }

    def _sampled(self) -> npt.NDArray[np.uint8]:
        """The sides, with those documents dropped that a vocabulary need not see."""
        sides = self.split.sides
        train = sides == TRAIN
        size = int(self.documents.sizes[train].sum())
        if size <= TRAINED_ON:
            return sides
        ceiling = np.uint64(int(2**64 * (TRAINED_ON / size)))
        # The digests' upper half chose what is held out, so the lower one draws.
        return np.where(train & (self.documents.low > ceiling), DROPPED, sides).astype(np.uint8)

    def _digests(
        self, sides: npt.NDArray[np.uint8] | None = None
    ) -> Iterator[tuple[Array, npt.NDArray[np.uint8]]]:
        """Of each unit the digests (d, 32) and sides (d,) of its documents."""
        chosen = self.split.sides if sides is None else sides
        for unit in self.units:
            digests = np.ascontiguousarray(scan.records(self.scans, unit.number)["digest"])
            yield digests, chosen[self._places(unit)]

    def _places(self, unit: Unit) -> slice:
        return slice(self.edges[unit.number], self.edges[unit.number + 1])
