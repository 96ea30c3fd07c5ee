"""Which tokenizers need no training and no file? Raw bytes, and stripped ASCII."""

from __future__ import annotations

import unicodedata

import numpy as np

from isoflop.data.vocabulary import END_OF_TEXT, Base, Ids

BYTES = "bytes"
ASCII = "ascii"

# What NFKD leaves as it is, though ASCII has a character for it.
_ALIKE = str.maketrans("‘’‚‛“”„‟–—―−‐", "''''\"\"\"\"-----")
_LETTERS = bytes([*b"\t\n", *range(32, 127)])
_IDS = bytes(max(_LETTERS.find(byte), 0) for byte in range(256))
_REST = bytes(set(range(256)) - set(_LETTERS))


class ByteTokenizer(Base):
    """UTF-8 itself: 256 ids, and the end of text. The baseline that needs no vocabulary."""

    name = BYTES
    vocab_size = 257
    end_of_text = 256

    def _encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def bytes_of(self, id: int) -> bytes:
        return END_OF_TEXT.encode() if id == self.end_of_text else bytes([id])


class AsciiTokenizer(Base):
    """Tab, line feed and the 95 visible characters, and the end of text: 98 ids.

    Lossy: the text is decomposed (NFKD, so that é loses its accent), quotes and dashes become
    plain, and what is then no such character goes. What comes back from `decode` encodes to the
    same ids again; bits per byte are those of that stripped text. NFKD is Python's own, so
    characters that Unicode added lately may differ between versions of Python.
    """

    name = ASCII
    vocab_size = len(_LETTERS) + 1
    end_of_text = len(_LETTERS)

    def _encode(self, text: str) -> Ids:
        letters = unicodedata.normalize("NFKD", text.translate(_ALIKE)).encode("ascii", "ignore")
        return np.frombuffer(letters.translate(_IDS, _REST), dtype=np.uint8).astype(np.uint32)

    def bytes_of(self, id: int) -> bytes:
        return END_OF_TEXT.encode() if id == self.end_of_text else _LETTERS[id : id + 1]
