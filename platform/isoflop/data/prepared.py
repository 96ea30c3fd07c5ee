"""What did preparing leave in a folder? Both sides' token files, the tokenizer, and a manifest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isoflop.data import tokenizers
from isoflop.data.shards import Origin, TokenFile, write_json
from isoflop.data.tokenizers import Tokenizer

FORMAT = 2
MANIFEST = "prepared.json"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A text as token files. Paths and numbers only: cheap to send to a worker."""

    folder: Path
    fingerprint: str  # hash of the content, the split and the tokenizer; not of where the text lies
    tokenizer_name: str
    tokenizer_hash: str
    vocab: int
    share: float  # of the bytes that was to be held out
    train_tokens: int  # the end of text after each document included
    validation_tokens: int
    train_bytes: int  # of UTF-8 text
    validation_bytes: int
    train_documents: int
    validation_documents: int

    @staticmethod
    def load(folder: Path) -> Prepared:
        """What `prepare` left in a folder. Raises ValueError naming what is missing or damaged."""
        prepared = Prepared.read(folder)
        prepared.train()
        prepared.validation()
        return prepared

    @staticmethod
    def read(folder: Path) -> Prepared:
        """The same, from the manifest alone."""
        values = _manifest(folder)
        try:
            if values.pop("format") != FORMAT:
                raise ValueError("it has another format")
            values.pop("details")
            return Prepared(folder=folder, **values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / MANIFEST} is not what isoflop wrote ({error!r})"
            ) from error

    def save(self, details: dict[str, Any]) -> None:
        """Write the manifest: with it the folder is whole."""
        values = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_json(self.folder / MANIFEST, {"format": FORMAT, **values, "details": details})

    @property
    def origin(self) -> Origin:
        """What both token files must say they are of."""
        return Origin(self.fingerprint, self.tokenizer_hash)

    def details(self) -> dict[str, Any]:
        """Where the text came from, what was left out and why, and how far the sides overlap."""
        details = _manifest(self.folder)["details"]
        assert isinstance(details, dict)
        return details

    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.folder)

    def train(self) -> TokenFile:
        return self._side("train")

    def validation(self) -> TokenFile:
        return self._side("validation")

    def _side(self, name: str) -> TokenFile:
        file = TokenFile.open(self.folder, name)
        if file.origin != self.origin:
            raise ValueError(
                f"{self.folder / name}.* are of another text or tokenizer than {MANIFEST}: "
                f"{file.origin} where {self.origin} was written"
            )
        return file


def is_prepared(folder: Path) -> bool:
    """Whether a text was prepared there; `Prepared.load` tells whether it is whole."""
    return (folder / MANIFEST).is_file()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: no text was prepared here") from None
    except ValueError as error:
        raise ValueError(f"{path} is not what isoflop wrote ({error!r})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not what isoflop wrote ({type(values).__name__})")
    return values
