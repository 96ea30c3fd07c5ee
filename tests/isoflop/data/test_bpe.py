"""Does tiktoken run a trained vocabulary exactly as the library that trained it?"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from isoflop.data import bpe
from isoflop.data.tokenizers import TiktokenTokenizer


@pytest.fixture(scope="module")
def reference(stdlib_texts: dict[str, str]) -> Tokenizer:
    """The same training by Hugging Face alone, encoding with its own code."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(bpe.PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1023, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(stdlib_texts.values(), trainer)
    return tokenizer


def test_real_text_is_encoded_alike(
    trained: TiktokenTokenizer, reference: Tokenizer, stdlib_texts: dict[str, str]
) -> None:
    for name, text in stdlib_texts.items():
        assert trained.encode(text).tolist() == reference.encode(text).ids, name


def test_english_is_encoded_alike(
    trained: TiktokenTokenizer, reference: Tokenizer, shared_data: Path
) -> None:
    for name in ("tinyshakespeare.txt", "wikitext2-valid.txt"):
        text = (shared_data / "text" / name).read_bytes().decode()[:300_000]
        assert trained.encode(text).tolist() == reference.encode(text).ids, name


# Letters, blanks and marks that cross every branch of the pattern, beside any character at all.
MIXED = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.text("aZé_ \t\n\r'st.ll09٣½𝟘\u0301\u200d\u3000😀中", max_size=12),
        st.sampled_from(
            ["self.", "    ", "def ", "'s", "'LL", "\r\n\r\n", "0x1f", "<|endoftext|>"]
        ),
    ),
    max_size=12,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=MIXED)
def test_any_text_is_encoded_alike(
    trained: TiktokenTokenizer, reference: Tokenizer, text: str
) -> None:
    ids = trained.encode(text).tolist()
    assert ids == reference.encode(text).ids
    assert trained.decode(ids) == text


def test_training_is_repeatable(stdlib_texts: dict[str, str]) -> None:
    texts = list(stdlib_texts.values())[:8]
    first, second = (bpe.train(texts, 600) for _ in range(2))
    assert first.vocab_size == 600
    assert first.hash == second.hash
    assert first.hash != bpe.train(texts, 599).hash


def test_a_small_text_gives_the_vocabulary_that_it_has() -> None:
    tokenizer = bpe.train(["abab abab"], 5000)
    assert 257 < tokenizer.vocab_size < 270
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert len(tokenizer.encode("abab")) < 4
    assert tokenizer.decode(tokenizer.encode("etwas ganz anderes: Ω")) == "etwas ganz anderes: Ω"


def test_the_smallest_vocabulary_is_bytes() -> None:
    tokenizer = bpe.train(["some text"], 257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode("Ωé")) == 4
    with pytest.raises(ValueError, match="256 is too small"):
        bpe.train(["some text"], 256)


def test_letters_are_one_per_byte() -> None:
    table = bpe.letters()
    assert sorted(table.values()) == list(range(256))
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    assert table["A"] == 65 and table["Ġ"] == 32
