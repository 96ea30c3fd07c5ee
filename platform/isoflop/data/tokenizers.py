"""How does text become ids, and ids text? As raw bytes, or by a byte-pair encoding.

Every tokenizer here works on bytes, so any string can be encoded and comes back as it was. Text
never becomes a special token: "<|endoftext|>" in a document is encoded as its characters.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tiktoken

from isoflop.data.shards import write_json
from isoflop.data.sources import well_formed

Ids = npt.NDArray[np.uint32]

BYTES = "bytes"
END_OF_TEXT = "<|endoftext|>"
FILE = "encoding.json"
FORMAT = 1

# tiktoken's regular expressions overflow their stack on about a million blanks in a row, and bring
# the process down; a run this long is cut. No shorter run is touched.
LONGEST_BLANK = 2**16


class Tokenizer(Protocol):
    """Text to ids and back. Implementations are picklable and cheap to send to a worker."""

    @property
    def name(self) -> str:
        """As a run states it: "bytes", "gpt2", "bpe-2048"."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this; the end of text is among them."""

    @property
    def end_of_text(self) -> int:
        """The id that is put after each document."""

    @property
    def hash(self) -> str:
        """16 hex digits of all that the ids depend on."""

    def encode(self, text: str) -> Ids:
        """The ids (T,) of a text, without an end of text."""

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[Ids]:
        """The ids of each text, on `threads` threads."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text; incomplete UTF-8 becomes U+FFFD, an end of text its name.

        Raises ValueError for an id outside the vocabulary.
        """

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of text that each id stands for (V,); 0 for specials and unused ids."""


class ByteTokenizer:
    """UTF-8 itself: 256 ids, and the end of text. The baseline that needs no vocabulary."""

    name = BYTES
    vocab_size = 257
    end_of_text = 256

    @property
    def hash(self) -> str:
        return _hash(_description(self))

    def encode(self, text: str) -> Ids:
        return np.frombuffer(well_formed(text).encode(), dtype=np.uint8).astype(np.uint32)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[Ids]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        special = END_OF_TEXT.encode()
        pieces = (bytes([id]) if id < 256 else special for id in _within(ids, self.vocab_size))
        return b"".join(pieces).decode(errors="replace")

    def token_bytes(self) -> npt.NDArray[np.int64]:
        return np.array([1] * 256 + [0], dtype=np.int64)


class TiktokenTokenizer:
    """A byte-pair encoding: one of tiktoken's own, or a trained one (see `isoflop.data.bpe`)."""

    def __init__(self, name: str, encoding: tiktoken.Encoding, pattern: str | None = None) -> None:
        """`pattern` cuts text into words; it is None for tiktoken's own, which bring theirs."""
        if END_OF_TEXT not in encoding.special_tokens_set:
            raise ValueError(f"the encoding {name!r} has no {END_OF_TEXT}, which ends a document")
        self.name = name
        self.encoding = encoding
        self.pattern = pattern
        self.vocab_size: int = encoding.max_token_value + 1
        self.end_of_text: int = encoding.eot_token

    @property
    def hash(self) -> str:
        return _hash(_description(self))

    def encode(self, text: str) -> Ids:
        parts = [self._encode(part) for part in cut_blanks(well_formed(text))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode(self, text: str) -> Ids:
        # Nothing allowed, nothing refused: what looks like a special token is text.
        return self.encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[Ids]:
        if threads == 1:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(threads) as pool:  # tiktoken works without holding the interpreter
            return list(pool.map(self.encode, texts))

    def decode(self, ids: Iterable[int]) -> str:
        known = list(_within(ids, self.vocab_size))
        try:
            return self.encoding.decode(known)
        except KeyError:  # an id that the vocabulary leaves unused, as an untrained model may write
            pieces = (self._bytes_of(id) for id in known)
            return b"".join("\ufffd".encode() if p is None else p for p in pieces).decode(
                errors="replace"
            )

    def token_bytes(self) -> npt.NDArray[np.int64]:
        lengths = [len(self._bytes_of(id) or b"") for id in range(self.vocab_size)]
        counts = np.array(lengths, dtype=np.int64)
        specials = [self.encoding.encode_single_token(s) for s in self.encoding.special_tokens_set]
        counts[specials] = 0
        return counts

    def _bytes_of(self, id: int) -> bytes | None:
        try:
            return self.encoding.decode_single_token_bytes(id)
        except KeyError:
            return None


def cut_blanks(text: str) -> list[str]:
    """The text in parts, cut after each LONGEST_BLANK blanks in a row: nearly always one part."""
    if len(text) <= LONGEST_BLANK:
        return [text]
    cuts = [run.end() for run in re.finditer(rf"\s{{{LONGEST_BLANK}}}", text)]
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in pairwise(edges) if a < b]


def trained_size(name: str) -> int | None:
    """The N of "bpe-N", or None for a tokenizer that needs no training.

    Raises ValueError for an N that is no number, or has no room for 256 bytes and the end of text.
    """
    if not name.startswith("bpe-"):
        return None
    size = name.removeprefix("bpe-")
    if not (size.isascii() and size.isdigit()) or not 257 <= int(size) <= 2**31:
        raise ValueError(
            f"data.tokenizer is {name!r}; the N of bpe-N must be a number of at least 257: "
            "256 bytes and the end of text"
        )
    return int(size)


def named(name: str) -> Tokenizer:
    """ "bytes", or one of tiktoken's encodings.

    Raises ValueError for an unknown name, and for an encoding that is neither cached nor to be had.
    """
    if name == BYTES:
        return ByteTokenizer()
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise ValueError(
            f"data.tokenizer is {name!r}; it must be 'bpe-N' (trained on the text), 'bytes', or "
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


def from_tokens(name: str, tokens: Sequence[bytes], pattern: str) -> TiktokenTokenizer:
    """A trained vocabulary: `tokens` in the order of their ids; the end of text follows them."""
    encoding = tiktoken.Encoding(
        name,
        pat_str=pattern,
        mergeable_ranks={token: id for id, token in enumerate(tokens)},
        special_tokens={END_OF_TEXT: len(tokens)},
    )
    return TiktokenTokenizer(name, encoding, pattern)


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write `encoding.json` into the folder, atomically, and return its path."""
    target = folder / FILE
    write_json(target, _description(tokenizer))
    return target


def load(path: Path) -> Tokenizer:
    """The tokenizer that `save` wrote; `path` is the file, or the folder that holds it.

    Raises ValueError that names the file if it is missing, damaged, or of a later format.
    """
    file = path / FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, where {FORMAT} is known")
        name = str(content["name"])
        if content["kind"] == "bpe":
            return from_tokens(name, _tokens(content["tokens"]), str(content["pattern"]))
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no tokenizer here") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a tokenizer that isoflop wrote ({error!r})") from error
    return named(name)


def _description(tokenizer: Tokenizer) -> dict[str, Any]:
    """All that the ids depend on, as plain values: the file's content, and what is hashed.

    One of tiktoken's own is known by its name: tiktoken checks the vocabulary against a hash.
    """
    if isinstance(tokenizer, TiktokenTokenizer) and tokenizer.pattern is not None:
        ids = range(tokenizer.end_of_text)
        tokens = [tokenizer.encoding.decode_single_token_bytes(id) for id in ids]
        return {
            "format": FORMAT,
            "kind": "bpe",
            "name": tokenizer.name,
            "pattern": tokenizer.pattern,
            "tokens": [base64.b64encode(token).decode() for token in tokens],
        }
    return {"format": FORMAT, "kind": "named", "name": tokenizer.name}


def _tokens(encoded: Sequence[str]) -> list[bytes]:
    tokens = [base64.b64decode(token, validate=True) for token in encoded]
    if len(set(tokens)) < len(tokens) or not {bytes([b]) for b in range(256)} <= set(tokens):
        raise ValueError("a token stands there twice, or a byte is missing")
    return tokens


def _hash(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def _within(ids: Iterable[int], vocab: int) -> Iterator[int]:
    for id in ids:
        if not 0 <= id < vocab:
            raise ValueError(f"token id {id} is outside the vocabulary of {vocab}")
        yield int(id)
