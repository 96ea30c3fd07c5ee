"""Which byte-pair vocabulary does a text ask for?

`rustbpe` trains it, and tiktoken runs it. Both cut text by the same pattern and merge the lowest
rank first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from isoflop.data.encodings import TiktokenTokenizer, cut_blanks, from_tokens

# Where merges may not cross: contractions, words with the one character before them, digits in twos
# (Python's source is full of short numbers), punctuation with its line ends, and blanks. Written so
# that the expression engines of all libraries read it alike: no `$`, which they do not.
PATTERN = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)",
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",
        r"\p{N}{1,2}",
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",
        r"\s*[\r\n]",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# The trainer holds this many texts at once, of at most so many characters each.
_HELD, _LONGEST = 256, 2**16


def train(texts: Iterable[str], vocab_size: int) -> TiktokenTokenizer:
    """A byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019) of `vocab_size` ids.

    The end of text is one of them and has the last id. A text with too few pairs gives a smaller
    vocabulary: what counts is the tokenizer's own `vocab_size`. Equal texts, equal vocabularies,
    on any number of threads.
    """
    if vocab_size < 257:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small; 256 bytes and the end of text"
        )
    return from_tokens(f"bpe-{vocab_size}", merge(texts, vocab_size - 1), PATTERN)


def merge(texts: Iterable[str], count: int) -> list[bytes]:
    """At most `count` tokens in the order of their ids: the 256 bytes, then merges as they came."""
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(_pieces(texts), count, buffer_size=_HELD, pattern=PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    # Two merges may spell the same bytes: the first is the token.
    tokens = list(dict.fromkeys(bytes(token) for token, _ in ranks))
    assert tokens[:256] == [bytes([b]) for b in range(256)]
    return tokens


def letters() -> dict[str, int]:
    """The byte that each printable letter stands for in a byte-level vocabulary file.

    Radford et al. 2019: visible Latin-1 characters stand for themselves, and the other 68 bytes in
    turn for the characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + k): b for k, b in enumerate(others)}


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones in pieces that end with a line where they can: memory stays bounded."""
    for text in texts:
        for part in cut_blanks(text):
            start = 0
            while len(part) - start > _LONGEST:
                line = part.rfind("\n", start, start + _LONGEST) + 1
                end = line or start + _LONGEST
                yield part[start:end]
                start = end
            yield part[start:]
