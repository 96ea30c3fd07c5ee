"""How does tiktoken run a vocabulary: its own, or one that was trained here?

It cuts text into pieces by a pattern. A piece that is a token is that token; any other is spelled
in bytes, which are joined as long as two neighbours make a token, the lowest id first.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken

from isoflop.data.vocabulary import END_OF_TEXT, FORMAT, Base, Ids, within

# tiktoken's regular expressions overflow their stack on about a million blanks in a row, and bring
# the process down; a run this long is cut. No shorter run is touched.
LONGEST_BLANK = 2**16


class TiktokenTokenizer(Base):
    """One of tiktoken's own encodings, or a trained one (see `isoflop.data.bpe` and `words`)."""

    def __init__(self, name: str, encoding: tiktoken.Encoding, pattern: str | None = None) -> None:
        """`pattern` cuts text into pieces; it is None for tiktoken's own, which bring theirs."""
        if END_OF_TEXT not in encoding.special_tokens_set:
            raise ValueError(f"the encoding {name!r} has no {END_OF_TEXT}, which ends a document")
        self.name = name
        self.encoding = encoding
        self.pattern = pattern
        self.vocab_size: int = encoding.max_token_value + 1
        self.end_of_text: int = encoding.eot_token

    @property
    def specials(self) -> dict[str, int]:
        names = sorted(self.encoding.special_tokens_set)
        return {name: self.encoding.encode_single_token(name) for name in names}

    @property
    def tokens(self) -> list[bytes]:
        """Of a trained vocabulary, in the order of their ids, without the end of text."""
        ids = range(self.end_of_text)
        return [self.encoding.decode_single_token_bytes(id) for id in ids]

    def description(self) -> dict[str, Any]:
        """One of tiktoken's own is known by its name: tiktoken checks it against a hash."""
        if self.pattern is None:
            return super().description()
        return {
            "format": FORMAT,
            "kind": "bpe",
            "name": self.name,
            "pattern": self.pattern,
            "tokens": [base64.b64encode(token).decode() for token in self.tokens],
        }

    def _encode(self, text: str) -> Ids:
        # Nothing allowed, nothing refused: what looks like a special token is text.
        parts = [
            self.encoding.encode_to_numpy(part, allowed_special=set(), disallowed_special=())
            for part in cut_blanks(text)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def decode(self, ids: Iterable[int]) -> str:
        known = list(within(ids, self.vocab_size))
        try:
            return self.encoding.decode(known)
        except KeyError:  # an id that the vocabulary leaves unused
            return super().decode(known)

    def bytes_of(self, id: int) -> bytes | None:
        try:
            return self.encoding.decode_single_token_bytes(id)
        except KeyError:
            return None


def from_tokens(name: str, tokens: Sequence[bytes], pattern: str) -> TiktokenTokenizer:
    """A trained vocabulary: `tokens` in the order of their ids; the end of text follows them."""
    encoding = tiktoken.Encoding(
        name,
        pat_str=pattern,
        mergeable_ranks={token: id for id, token in enumerate(tokens)},
        special_tokens={END_OF_TEXT: len(tokens)},
    )
    return TiktokenTokenizer(name, encoding, pattern)


def from_description(content: dict[str, Any]) -> TiktokenTokenizer:
    """What `TiktokenTokenizer.description` told. Raises ValueError if no text could rely on it."""
    tokens = [base64.b64decode(token, validate=True) for token in content["tokens"]]
    if len(set(tokens)) < len(tokens) or not {bytes([b]) for b in range(256)} <= set(tokens):
        raise ValueError("a token stands there twice, or a byte is missing")
    return from_tokens(str(content["name"]), tokens, str(content["pattern"]))


def cut_blanks(text: str) -> list[str]:
    """The text in parts, cut after each LONGEST_BLANK blanks in a row: nearly always one part."""
    if len(text) <= LONGEST_BLANK:
        return [text]
    cuts = [run.end() for run in re.finditer(rf"\s{{{LONGEST_BLANK}}}", text)]
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in pairwise(edges) if a < b]
