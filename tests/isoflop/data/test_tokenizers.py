"""Does every tokenizer give text back, keep specials out of it, and survive being saved?"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isoflop.data import tokenizers
from isoflop.data.tokenizers import (
    AsciiTokenizer,
    ByteTokenizer,
    TiktokenTokenizer,
    Tokenizer,
)

KINDS = ["bytes", "trained", "gpt2", "words", "characters", "sentencepiece"]
ANY_TEXT = st.one_of(st.text(), st.text("<|endoftext|>ab \n\u2581\0", max_size=40))


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken"))
        return tokenizers.named("gpt2")


@pytest.fixture(scope="module")
def words(stdlib_texts: dict[str, str]) -> Tokenizer:
    return tokenizers.train("words-1k", list(stdlib_texts.values())[:10])


@pytest.fixture(scope="module")
def characters() -> Tokenizer:
    return tokenizers.train("characters", ["a naïve 中 text", "Ω😀"])


@pytest.fixture(scope="module")
def sentencepiece(stdlib_texts: dict[str, str]) -> Tokenizer:
    pytest.importorskip("sentencepiece")
    return tokenizers.train("sentencepiece-600", list(stdlib_texts.values())[:4])


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytes":
        return ByteTokenizer()
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


class TestContract:
    """What holds for every tokenizer."""

    @settings(max_examples=150, deadline=None)
    @given(text=ANY_TEXT)
    @example("\u2581a \u2581\u2581 <0x41></s><s>\0\n\r\n \t  ")
    def test_any_text_comes_back(self, tokenizer: Tokenizer, text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32
        assert tokenizer.decode(ids) == text

    def test_bytes_of_tokens_add_up_to_the_text(self, tokenizer: Tokenizer) -> None:
        text = "def f(x):\n    return 'Ω – 中'  # <|endoftext|>"
        assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())

    def test_the_name_of_a_special_token_is_text(self, tokenizer: Tokenizer) -> None:
        text = "a <|endoftext|> b <|fim_prefix|>"
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode(ids) == text

    def test_the_end_of_text_is_an_id_of_its_own(self, tokenizer: Tokenizer) -> None:
        end = tokenizer.end_of_text
        assert end == tokenizer.vocab_size - 1
        assert tokenizer.token_bytes()[end] == 0
        assert tokenizer.decode([end]) == "<|endoftext|>"
        unused = 1 if tokenizer.name.startswith("sentencepiece") else 0  # its "unknown"
        assert (tokenizer.token_bytes()[:end] == 0).sum() == unused

    def test_special_tokens_are_made_when_asked_for(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.specials["<|endoftext|>"] == tokenizer.end_of_text
        ids = tokenizer.encode("a<|endoftext|>b<|endoftext|>", specials=True)
        one, two, end = tokenizer.encode("a"), tokenizer.encode("b"), [tokenizer.end_of_text]
        assert ids.tolist() == [*one, *end, *two, *end]
        assert ids.dtype == np.uint32
        assert tokenizer.decode(ids) == "a<|endoftext|>b<|endoftext|>"

    def test_a_batch_is_its_texts(self, tokenizer: Tokenizer) -> None:
        texts = ["one", "", "zwei Ω", "\n\n  three"]
        for threads in (1, 2):
            batch = tokenizer.encode_batch(texts, threads=threads)
            assert [ids.tolist() for ids in batch] == [tokenizer.encode(t).tolist() for t in texts]

    def test_saved_and_loaded_it_is_the_same(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        path = tokenizers.save(tokenizer, tmp_path)
        for again in (tokenizers.load(path), tokenizers.named(str(tmp_path))):
            assert again.name == tokenizer.name
            assert again.hash == tokenizer.hash
            assert again.vocab_size == tokenizer.vocab_size
            assert again.end_of_text == tokenizer.end_of_text
            assert np.array_equal(again.encode("def f(x): 'é'"), tokenizer.encode("def f(x): 'é'"))
        assert not list(tmp_path.glob(".*"))
        others = {"vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
                  "tokenizer_config.json"}  # fmt: skip
        byte_pairs = tokenizer.name.startswith("bpe-")
        assert {file.name for file in tmp_path.iterdir()} - {path.name} == (
            others if byte_pairs else set()
        )

    def test_it_can_be_sent_to_another_process(self, tokenizer: Tokenizer) -> None:
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.hash == tokenizer.hash
        assert np.array_equal(again.encode("some text"), tokenizer.encode("some text"))

    @pytest.mark.parametrize("id", [-1, 60_000])
    def test_an_id_outside_the_vocabulary_is_an_error(self, tokenizer: Tokenizer, id: int) -> None:
        with pytest.raises(ValueError, match=rf"token id {id} is outside the vocabulary"):
            tokenizer.decode([0, id])

    def test_lone_surrogates_are_replaced(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"

    def test_half_a_character_is_shown_as_such(self, tokenizer: Tokenizer) -> None:
        first = next(i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]) == "\ufffd")
        assert tokenizer.decode([first, *tokenizer.encode("a")]) == "\ufffda"


def test_hashes_tell_tokenizers_apart(request: pytest.FixtureRequest) -> None:
    found = [request.getfixturevalue(kind) for kind in KINDS if kind != "bytes"]
    found += [ByteTokenizer(), AsciiTokenizer()]
    assert len({tokenizer.hash for tokenizer in found}) == len(KINDS) + 1


class TestAscii:
    @settings(max_examples=150, deadline=None)
    @given(text=ANY_TEXT)
    def test_once_stripped_it_stays_as_it_is(self, text: str) -> None:
        ids = AsciiTokenizer().encode(text)
        shown = AsciiTokenizer().decode(ids)
        assert AsciiTokenizer().encode(shown).tolist() == ids.tolist()
        assert AsciiTokenizer().token_bytes()[ids].sum() == len(shown.encode())

    @settings(max_examples=50, deadline=None)
    @given(text=st.text([*map(chr, range(32, 127)), "\n", "\t"]))
    def test_ascii_comes_back(self, text: str) -> None:
        assert AsciiTokenizer().decode(AsciiTokenizer().encode(text)) == text

    def test_what_it_strips(self) -> None:
        shown = AsciiTokenizer().decode(AsciiTokenizer().encode("“Naïve” – it’s ﬁne…\r\n中\x07"))
        assert shown == '"Naive" - it\'s fine...\n'

    def test_it_can_be_saved(self, tmp_path: Path) -> None:
        tokenizers.save(AsciiTokenizer(), tmp_path)
        again = tokenizers.load(tmp_path)
        assert again.name == "ascii" and again.vocab_size == 98
        assert again.encode("a", specials=True).tolist() == AsciiTokenizer().encode("a").tolist()


class TestWords:
    def test_a_known_word_is_a_token(self) -> None:
        words = tokenizers.train("words-300", ["the cat, the dog", "the cat"])
        assert words.decode(words.encode("the cat")[:1]) == "the"
        assert [words.decode([id]) for id in words.encode("the dog the")] == ["the", " dog", " the"]
        assert words.vocab_size == 256 + len({"the", " the", " cat", " dog"}) + 1

    def test_the_commonest_stay(self) -> None:
        words = tokenizers.train("words-259", ["aa bb bb cc cc cc dd"])
        assert words.vocab_size == 259
        assert len(words.encode(" cc")) == 1 and len(words.encode(" dd")) == 3

    def test_unknown_characters_are_spelled(self, characters: Tokenizer) -> None:
        assert len(characters.encode("naïve 中 text")) == 12
        assert len(characters.encode("文")) == 3
        assert characters.vocab_size == 256 + len("ï中Ω😀") + 1


class TestSentencePiece:
    def test_somebody_elses_model(self, tmp_path: Path) -> None:
        """With the usual settings, which normalise text and put a blank before it."""
        package = pytest.importorskip("sentencepiece")
        path = tmp_path / "own.model"
        with path.open("wb") as file:
            package.SentencePieceTrainer.train(
                sentence_iterator=iter(["the cat sat on the mat", "a dog"] * 50), model_writer=file,
                vocab_size=30, minloglevel=2, hard_vocab_limit=False,
            )  # fmt: skip
        found = tokenizers.named(str(path))
        assert found.decode(found.encode("the  cat")) == "the cat"
        assert set(found.specials) == {"<s>", "</s>", "<|endoftext|>"}
        assert found.encode("<s>a", specials=True)[0] == found.specials["<s>"]
        assert found.specials["<s>"] not in found.encode("<s>a")
        assert found.decode([*found.encode("a"), found.end_of_text]) == "a<|endoftext|>"
        again = tokenizers.load(tokenizers.save(found, tmp_path / "."))
        assert again.hash == found.hash

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        pytest.importorskip("sentencepiece")
        (tmp_path / "bad.model").write_bytes(b"not a model")
        with pytest.raises(ValueError, match=r"bad\.model is not a model of SentencePiece"):
            tokenizers.named(str(tmp_path / "bad.model"))
        with pytest.raises(ValueError, match=r"none\.model', which cannot be read"):
            tokenizers.named(str(tmp_path / "none.model"))

    def test_a_text_that_is_too_small(self) -> None:
        pytest.importorskip("sentencepiece")
        with pytest.raises(ValueError, match="cannot train 5000 ids on this text"):
            tokenizers.train("sentencepiece-5000", ["abc abd"])

    def test_without_the_package_it_says_how_to_install_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "sentencepiece", None)
        with pytest.raises(ValueError, match=r"pip install 'isoflop\[sentencepiece\]'"):
            tokenizers.train("sentencepiece-600", ["text"])


def test_bytes_are_utf8() -> None:
    assert ByteTokenizer().encode("aé").tolist() == [97, 195, 169]


def test_gpt2_is_the_published_vocabulary(gpt2: Tokenizer) -> None:
    assert gpt2.vocab_size == 50257
    assert gpt2.encode("hello world").tolist() == [31373, 995]


def test_a_million_blanks_are_encoded(trained: TiktokenTokenizer) -> None:
    """As one piece they overflow the stack of tiktoken's expression engine."""
    text = "a" + " " * 1_200_000 + "b\n"
    assert trained.decode(trained.encode(text)) == text


def test_only_long_runs_of_blanks_are_cut() -> None:
    longest = tokenizers.LONGEST_BLANK
    words = "x " * longest
    assert tokenizers.cut_blanks(words) == [words]
    parts = tokenizers.cut_blanks("x" + " " * (2 * longest + 1) + "y")
    assert [len(part) for part in parts] == [longest + 1, longest, 2]
    assert tokenizers.cut_blanks("") == [""]


def test_unused_ids_are_shown_and_count_nothing() -> None:
    """Vocabularies may have holes, and an untrained model may write them."""
    import tiktoken

    ranks = {bytes([b]): b for b in range(256)}
    specials = {"<|endoftext|>": 300}
    encoding = tiktoken.Encoding(
        "holes", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens=specials
    )
    tokenizer = TiktokenTokenizer("holes", encoding)
    assert tokenizer.decode([97, 270, 98, 300]) == "a\ufffdb<|endoftext|>"
    assert tokenizer.token_bytes().sum() == 256
    assert len(tokenizer.token_bytes()) == tokenizer.vocab_size == 301


def test_an_encoding_without_an_end_of_text_is_refused() -> None:
    import tiktoken

    ranks = {bytes([b]): b for b in range(256)}
    encoding = tiktoken.Encoding(
        "bare", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={}
    )
    with pytest.raises(ValueError, match="'bare' has no"):
        TiktokenTokenizer("bare", encoding)


@pytest.mark.parametrize(
    ("name", "size"),
    [("bpe-257", 257), ("bpe-2048", 2048), ("bpe-2k", 2048), ("bpe-32k", 32768), ("gpt2", None),
     ("words-4k", None), ("characters", None)],
)  # fmt: skip
def test_the_size_of_a_trained_vocabulary(name: str, size: int | None) -> None:
    assert tokenizers.trained_size(name) == size


@pytest.mark.parametrize(
    ("name", "full"),
    [("bpe-4k", "bpe-4096"), ("words-4k", "words-4096"), ("characters", "characters"),
     ("sentencepiece-1k", "sentencepiece-1024"), ("gpt2", None), ("bytes", None), ("ascii", None)],
)  # fmt: skip
def test_which_names_need_training(name: str, full: str | None) -> None:
    found = tokenizers.trainer(name)
    assert (found and found.name) == full


def test_keys_tell_trainers_apart() -> None:
    names = ("bpe-2k", "bpe-4k", "words-4k", "characters", "sentencepiece-4k")
    keys = {found.key for name in names if (found := tokenizers.trainer(name))}
    assert len(keys) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "bpe-",
        "bpe-256",
        "bpe-x",
        "bpe--3",
        "bpe-1e3",
        "bpe-²",
        "bpe-9999999999",
        "bpe-k",
        "words-3",
        "words-",
    ],
)
def test_a_wrong_size_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*at least 257"):
        tokenizers.trained_size(name)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'gpt-two'.*'bpe-N'.*'bytes'.*cl100k_base.*gpt2"):
        tokenizers.named("gpt-two")


def test_offline_without_the_vocabulary_it_says_what_to_do(tmp_path: Path) -> None:
    """In a process of its own: tiktoken keeps what it once loaded."""
    code = "from isoflop.data import tokenizers; tokenizers.named('p50k_base')"
    nowhere = "http://127.0.0.1:9"  # the discard port: nothing listens
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment |= {"TIKTOKEN_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"https_proxy": nowhere, "http_proxy": nowhere}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: data.tokenizer is 'p50k_base'"), result.stderr
    assert "TIKTOKEN_CACHE_DIR" in last


class TestDamagedFiles:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"encoding\.json: there is no tokenizer"):
            tokenizers.load(tmp_path)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99, "kind": "bpe"}'])
    def test_not_a_tokenizer(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "encoding.json").write_text(content)
        with pytest.raises(ValueError, match=r"encoding\.json: not a tokenizer"):
            tokenizers.load(tmp_path)

    def test_a_token_too_few_or_twice(self, tmp_path: Path, trained: TiktokenTokenizer) -> None:
        path = tokenizers.save(trained, tmp_path)
        whole = json.loads(path.read_text())
        for tokens in (whole["tokens"][1:], [*whole["tokens"], whole["tokens"][0]]):
            path.write_text(json.dumps({**whole, "tokens": tokens}))
            with pytest.raises(ValueError, match="not a tokenizer"):
                tokenizers.load(path)
