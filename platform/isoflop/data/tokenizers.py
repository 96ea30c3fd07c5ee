"""Which tokenizer does a name mean?

    bytes               UTF-8 itself
    ascii               97 characters, lossy (see `plain`)
    characters          every character of the training text (see `words`)
    words-N             its commonest words, with the blank before them (see `words`)
    bpe-N               byte pairs, trained on it (see `bpe`): bpe-2k, bpe-4k, ... bpe-32k
    sentencepiece-N     the same by SentencePiece (see `pieces`)
    FOLDER              one that was trained before, where `save` put it
    FILE.model          SentencePiece's, as somebody else trained it
    gpt2, o200k_base    and all others that tiktoken knows (see `encodings`)

N is a number of ids, the end of text among them; a "k" after it means 1,024. All but "ascii", and
perhaps a FILE.model, give any text back as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken

from isoflop.data import encodings
from isoflop.data.encodings import LONGEST_BLANK, TiktokenTokenizer, cut_blanks, from_tokens
from isoflop.data.plain import ASCII, BYTES, AsciiTokenizer, ByteTokenizer
from isoflop.data.shards import write_json
from isoflop.data.vocabulary import END_OF_TEXT, FORMAT, Base, Ids, Tokenizer

__all__ = [
    "BYTES", "END_OF_TEXT", "LONGEST_BLANK", "AsciiTokenizer", "ByteTokenizer", "Ids",
    "TiktokenTokenizer", "Tokenizer", "Trainer", "cut_blanks", "from_tokens", "load", "named",
    "save", "train", "trained_size", "trainer",
]  # fmt: skip

FILE = "encoding.json"
CHARACTERS = "characters"

_MODEL = ".model"
_SMALLEST = {"bpe": 257, "words": 257, "sentencepiece": 512}


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How a tokenizer comes from a text. Picklable."""

    kind: str  # "bpe", "words", "characters" or "sentencepiece"
    size: int  # ids asked for; 0 where the text decides

    @property
    def name(self) -> str:
        """Of what it trains: "bpe-2048" for "bpe-2k", too."""
        return f"{self.kind}-{self.size}" if self.size else self.kind

    @property
    def key(self) -> str:
        """All that the vocabulary depends on beside the text."""
        from isoflop.data import bpe

        return f"{self.name} rustbpe {bpe.PATTERN}"

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer of some texts: equal texts in equal order, equal ids."""
        from isoflop.data import bpe, pieces, words

        if self.kind == CHARACTERS:
            return words.train_characters(texts)
        sized: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {
            "bpe": bpe.train, "words": words.train_words, "sentencepiece": pieces.train
        }  # fmt: skip
        return sized[self.kind](texts, self.size)


def trainer(name: str) -> Trainer | None:
    """How the tokenizer of a name is trained, or None if it needs no training.

    Raises ValueError for an N that is no number, or has no room for 256 bytes and the end of text.
    """
    if name == CHARACTERS:
        return Trainer(kind=CHARACTERS, size=0)
    kind, dash, asked = name.partition("-")
    if not dash or kind not in _SMALLEST:
        return None
    digits, times = (asked[:-1], 1024) if asked.endswith("k") else (asked, 1)
    size = int(digits) * times if digits.isascii() and digits.isdigit() else 0
    if not _SMALLEST[kind] <= size <= 2**31:
        raise ValueError(
            f"data.tokenizer is {name!r}; the N of {kind}-N must be a number of at least "
            f"{_SMALLEST[kind]}: 256 bytes and the end of text"
        )
    return Trainer(kind=kind, size=size)


def trained_size(name: str) -> int | None:
    """The N of "bpe-N", or None for any other tokenizer. Raises ValueError as `trainer` does."""
    found = trainer(name)
    return found.size if found is not None and found.kind == "bpe" else None


def train(name: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of a name, trained on some texts if it needs to be."""
    found = trainer(name)
    return found.train(texts) if found is not None else named(name)


def named(name: str) -> Tokenizer:
    """A tokenizer that needs no training, or a folder that `save` wrote one into.

    Raises ValueError for an unknown name, and for an encoding that is neither cached nor to be had.
    """
    if name in (BYTES, ASCII):
        return ByteTokenizer() if name == BYTES else AsciiTokenizer()
    if (Path(name) / FILE).is_file():
        return load(Path(name))
    if name.endswith(_MODEL):
        from isoflop.data import pieces

        return pieces.opened(Path(name).expanduser())
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise ValueError(
            f"data.tokenizer is {name!r}; it must be 'bpe-N', 'words-N', 'characters' or "
            "'sentencepiece-N' (trained on the text), 'bytes', 'ascii', FILE.model, FOLDER, or "
            f"an encoding of tiktoken: {', '.join(sorted(known))}"
        )
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # no network, in all its forms
        raise ValueError(
            f"data.tokenizer is {name!r}, whose vocabulary is not on this machine and could not be "
            f"fetched ({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a folder that holds it, "
            "or choose 'bpe-N' or 'bytes'"
        ) from error
    return TiktokenTokenizer(name, encoding)


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write `encoding.json` into the folder, atomically, and return its path.

    Byte pairs that were trained are written for other libraries besides (see `exchange`).
    """
    target = folder / FILE
    assert isinstance(tokenizer, Base), "a tokenizer that does not describe itself"
    if isinstance(tokenizer, TiktokenTokenizer) and tokenizer.name.startswith("bpe-"):
        from isoflop.data import exchange

        exchange.write(tokenizer, folder)
    write_json(target, tokenizer.description())
    return target


def load(path: Path) -> Tokenizer:
    """The tokenizer that `save` wrote; `path` is the file, or the folder that holds it.

    Raises ValueError that names the file if it is missing, damaged, or of a later format.
    """
    file = path / FILE if path.is_dir() else path
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, where {FORMAT} is known")
        if content["kind"] == "bpe":
            return encodings.from_description(content)
        if content["kind"] == "sentencepiece":
            from isoflop.data import pieces

            return pieces.from_description(content)
        name = str(content["name"])
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no tokenizer here") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a tokenizer that isoflop wrote ({error!r})") from error
    return named(name)
