"""Is the trained vocabulary the right one, and do other libraries run it exactly alike?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from isoflop.data import bpe, exchange
from isoflop.data.tokenizers import TiktokenTokenizer, save


@pytest.fixture(scope="module")
def folder(trained: TiktokenTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(trained, tmp_path_factory.mktemp("saved")).parent


@pytest.fixture(scope="module")
def reference(folder: Path) -> Tokenizer:
    """The vocabulary as Hugging Face reads it from our files, encoding with its own code.

    Only the merges in their order count here, not which pieces are whole tokens.
    """
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    split = pre_tokenizers.Split(Regex(bpe.PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


def test_transformers_loads_what_was_saved(
    trained: TiktokenTokenizer, folder: Path, stdlib_texts: dict[str, str]
) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    assert len(loaded) == trained.vocab_size
    assert loaded.eos_token_id == trained.end_of_text
    texts = [*list(stdlib_texts.values())[:5], "Ω 中 é \x00 12345", "a <|endoftext|> b"]
    for text in texts:
        ids = loaded(text)["input_ids"]
        assert ids == trained.encode(text).tolist()
        assert loaded.decode(ids) == text


def test_it_is_what_hugging_face_would_train(stdlib_texts: dict[str, str]) -> None:
    """Another trainer, the same pattern: ties apart, the same tokens."""
    texts = list(stdlib_texts.values())
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(bpe.PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1023, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    table = bpe.letters()
    other = {bytes(table[letter] for letter in token) for token in tokenizer.get_vocab()}
    assert len(other ^ set(bpe.merge(texts, 1023))) <= 20


def test_every_merge_is_found_again(trained: TiktokenTokenizer) -> None:
    tokens = trained.tokens
    pairs = exchange.merges(tokens)
    assert [first + second for first, second in pairs] == tokens[256:]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    assert all(max(ranks[a], ranks[b]) < ranks[a + b] for a, b in pairs)


def test_vocabularies_do_not_depend_on_threads() -> None:
    """Each in a process of its own: the trainer's threads start once, and hashes are salted."""
    code = (
        "import argparse; from isoflop.data import bpe; from pathlib import Path;"
        "text = [Path(argparse.__file__).read_text()];"
        "print(bpe.train(text, 700).hash)"
    )
    shown = set()
    for threads in ("1", "3"):
        environment = os.environ | {
            "RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        shown.add(done.stdout)
    assert len(shown) == 1


def test_long_texts_are_trained_on_in_pieces() -> None:
    """So that the trainer's buffer stays small; pieces end with lines and lose nothing."""
    text = "".join(f"line {k}\n" for k in range(20_000)) + "x" * 200_000
    pieces = list(bpe._pieces([text]))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 2**16 and pieces[0].endswith("\n")


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
