"""Which byte-pair vocabulary does a text ask for?

Hugging Face's `tokenizers` trains it and tiktoken, several times faster at encoding, runs it. Both
cut text by the same pattern and merge the lowest rank first, so both give the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from isoflop.data.tokenizers import TiktokenTokenizer, cut_blanks, from_tokens

# Where merges may not cross: contractions, words with the one character before them, digits in twos
# (Python's source is full of short numbers), punctuation with its line ends, and blanks. Written so
# that the expression engines of both libraries read it alike: no `$`, which they do not.
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


def train(texts: Iterable[str], vocab_size: int) -> TiktokenTokenizer:
    """A byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019) of `vocab_size` ids.

    The end of text is one of them and has the last id. A text with too few pairs gives a smaller
    vocabulary: what counts is the tokenizer's own `vocab_size`. Equal texts, equal vocabularies.
    """
    if vocab_size < 257:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small; 256 bytes and the end of text"
        )
    return from_tokens(f"bpe-{vocab_size}", merge(texts, vocab_size - 1), PATTERN)


def merge(texts: Iterable[str], count: int) -> list[bytes]:
    """At most `count` tokens in the order of their ids: the 256 bytes, then merges as they came."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_letters])
    trainer = trainers.BpeTrainer(
        vocab_size=count,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_parts(texts), trainer)
    vocabulary: dict[str, int] = json.loads(tokenizer.to_str())["model"]["vocab"]
    table = letters()
    tokens = [bytes(table[letter] for letter in token) for token in sorted_by_id(vocabulary)]
    assert len(set(tokens)) == len(tokens) and {bytes([b]) for b in range(256)} <= set(tokens)
    return tokens


def sorted_by_id(vocabulary: dict[str, int]) -> list[str]:
    """The tokens of a vocabulary whose ids leave no gap: tiktoken ranks merges by their ids."""
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    assert [vocabulary[token] for token in tokens] == list(range(len(tokens)))
    return tokens


def letters() -> dict[str, int]:
    """The byte that each printable letter stands for in a byte-level vocabulary file.

    Radford et al. 2019: visible Latin-1 characters stand for themselves, and the other 68 bytes in
    turn for the characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + k): b for k, b in enumerate(others)}


def _parts(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from cut_blanks(text)
