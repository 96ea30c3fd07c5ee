"""What must every tokenizer do?

Text never becomes a special token unless its caller asks: "<|endoftext|>" in a document is encoded
as its characters. Every tokenizer but "ascii" gives any text back as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from isoflop.data.documents import well_formed

Ids = npt.NDArray[np.uint32]

END_OF_TEXT = "<|endoftext|>"
FORMAT = 1  # of a tokenizer's file


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
    def specials(self) -> dict[str, int]:
        """The special tokens by their names; the end of text is among them."""

    @property
    def hash(self) -> str:
        """16 hex digits of all that the ids depend on."""

    def encode(self, text: str, specials: bool = False) -> Ids:
        """The ids (T,) of a text, without an end of text.

        Names of special tokens in the text are text, unless `specials` asks for the tokens.
        """

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[Ids]:
        """The ids of each text, on `threads` threads."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text; incomplete UTF-8 becomes U+FFFD, a special token its name.

        Raises ValueError for an id outside the vocabulary.
        """

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of text that each id stands for (V,); 0 for specials and unused ids."""


class Base(ABC):
    """What all tokenizers here have in common."""

    name: str
    vocab_size: int
    end_of_text: int

    @property
    def specials(self) -> dict[str, int]:
        return {END_OF_TEXT: self.end_of_text}

    @property
    def hash(self) -> str:
        content = json.dumps(self.description(), sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def description(self) -> dict[str, Any]:
        """All that the ids depend on, as plain values: a file's content, and what is hashed."""
        return {"format": FORMAT, "kind": "named", "name": self.name}

    def encode(self, text: str, specials: bool = False) -> Ids:
        whole = well_formed(text)
        if not specials:
            return self._encode(whole)
        known = self.specials
        longest_first = sorted(map(re.escape, known), key=len, reverse=True)
        parts = re.split(f"({'|'.join(longest_first)})", whole)
        pieces = [
            np.array([known[part]], dtype=np.uint32) if part in known else self._encode(part)
            for part in parts
        ]
        return np.concatenate(pieces)

    @abstractmethod
    def _encode(self, text: str) -> Ids:
        """The ids (T,) of a text that is well-formed."""

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[Ids]:
        if threads == 1:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self._shown, within(ids, self.vocab_size))).decode(errors="replace")

    def _shown(self, id: int) -> bytes:
        """An id as a reader sees it: an unused one, as an untrained model may write, is U+FFFD."""
        piece = self.bytes_of(id)
        return "\ufffd".encode() if piece is None else piece

    @abstractmethod
    def bytes_of(self, id: int) -> bytes | None:
        """The bytes that an id stands for, of a special token its name; None if it is unused."""

    def token_bytes(self) -> npt.NDArray[np.int64]:
        lengths = [len(self.bytes_of(id) or b"") for id in range(self.vocab_size)]
        counts = np.array(lengths, dtype=np.int64)
        counts[list(self.specials.values())] = 0
        return counts


def within(ids: Iterable[int], vocab: int) -> Iterator[int]:
    """The ids. Raises ValueError for one outside the vocabulary."""
    for id in ids:
        if not 0 <= id < vocab:
            raise ValueError(f"token id {id} is outside the vocabulary of {vocab}")
        yield int(id)
