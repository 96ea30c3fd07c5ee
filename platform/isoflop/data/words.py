"""Which words, or which characters, does a text consist of?

Both vocabularies hold the 256 bytes besides, so that whatever they lack can still be spelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from isoflop.data import bpe
from isoflop.data.encodings import TiktokenTokenizer, from_tokens

_BYTES = [bytes([b]) for b in range(256)]
_COUNTED = 2**20  # different words that are counted at once; above, those met once are forgotten
_LONGEST = 64  # bytes of a word that may be a token


def train_words(texts: Iterable[str], vocab_size: int) -> TiktokenTokenizer:
    """The commonest words, each with the blank before it: "the" and " the" are two.

    Words are the pieces that `bpe.PATTERN` cuts: letters, short numbers, punctuation, blanks. The
    `vocab_size` ids are the bytes, the words from the commonest on, and the end of text. A text
    with fewer words gives a smaller vocabulary. Equal texts, equal vocabularies.
    """
    import regex  # unlike re, it knows letters

    if vocab_size < 257:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small; 256 bytes and the end of text"
        )
    pieces = regex.compile(bpe.PATTERN)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(match.group() for match in pieces.finditer(text))
        if len(counts) > _COUNTED:
            counts = Counter({word: count for word, count in counts.items() if count > 1})
    words = sorted((-count, word.encode()) for word, count in counts.items())
    chosen = [word for _, word in words if 1 < len(word) <= _LONGEST][: vocab_size - 257]
    return from_tokens(f"words-{vocab_size}", _BYTES + chosen, bpe.PATTERN)


def train_characters(texts: Iterable[str]) -> TiktokenTokenizer:
    """Every character of the text a token; those beyond ASCII in the order of their code points."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    beyond = sorted(character for character in seen if character > "\x7f")
    return from_tokens("characters", _BYTES + [c.encode() for c in beyond], r"(?s:.)")
