"""How does another library load a byte-pair vocabulary that was trained here?

    vocab.json, merges.txt     as Radford et al. 2019 published theirs: letters for bytes
    special_tokens_map.json    the end of text
    tokenizer.json             all of it with the pattern, as Hugging Face's library writes it
    tokenizer_config.json      so that transformers loads it: AutoTokenizer.from_pretrained(FOLDER)

All is derived from the vocabulary; isoflop itself reads `encoding.json`.
"""

from __future__ import annotations

import json
import os
import secrets
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.data.bpe import letters
from isoflop.data.encodings import TiktokenTokenizer
from isoflop.data.vocabulary import END_OF_TEXT

Pair = tuple[bytes, bytes]
Json = dict[str, Any]


def write(tokenizer: TiktokenTokenizer, folder: Path) -> None:
    """Put the files into a folder, each whole or not at all."""
    assert tokenizer.pattern is not None
    tokens = tokenizer.tokens
    as_text = {byte: letter for letter, byte in letters().items()}

    def spelled(token: bytes) -> str:
        return "".join([as_text[byte] for byte in token])

    vocabulary = {spelled(token): id for id, token in enumerate(tokens)}
    pairs = [(spelled(first), spelled(second)) for first, second in merges(tokens)]
    specials = {"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    whole = vocabulary | {END_OF_TEXT: tokenizer.end_of_text}
    config = {
        **specials,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "split_special_tokens": True,  # text never becomes a special token
        "clean_up_tokenization_spaces": False,
    }
    files = {
        "vocab.json": json.dumps(whole, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in pairs), ""]),
        "special_tokens_map.json": json.dumps(specials),
        "tokenizer.json": json.dumps(
            hugging_face(vocabulary, pairs, tokenizer.pattern), ensure_ascii=False
        ),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }
    for name, content in files.items():
        _put(folder / name, content)


def merges(tokens: list[bytes]) -> list[Pair]:
    """The pair that each token after the bytes was merged from, in the order of the tokens.

    A token was made from the two pieces that all earlier merges leave of it (Sennrich et al. 2016).
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return [_halves(token, ranks) for token in tokens if len(token) > 1]


def _halves(token: bytes, ranks: dict[bytes, int]) -> Pair:
    pieces = [token[k : k + 1] for k in range(len(token))]
    while len(pieces) > 2:
        joined = (ranks.get(a + b) for a, b in pairwise(pieces))
        known = [(rank, k) for k, rank in enumerate(joined) if rank is not None]
        rank, k = min(known)
        assert rank < ranks[token], "a token must come after what it is made of"
        pieces[k : k + 2] = [pieces[k] + pieces[k + 1]]
    return pieces[0], pieces[1]


def hugging_face(vocabulary: dict[str, int], pairs: list[tuple[str, str]], pattern: str) -> Json:
    """The same encoding as plain values, in the form that Hugging Face's library reads.

    Written by hand: the library itself is not needed to prepare a text.
    """
    end = {"id": len(vocabulary), "content": END_OF_TEXT, "special": True, "normalized": False}
    pieces = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    as_letters = {"type": "ByteLevel", "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                pieces | {"invert": False},
                as_letters | {"add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": as_letters | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # whole pieces first, as tiktoken looks them up
            "vocab": vocabulary,
            "merges": [f"{first} {second}" for first, second in pairs],
        },
    }


def _put(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content.encode())
        os.replace(temporary, path)
    except BaseException:  # a full disk, say
        temporary.unlink(missing_ok=True)
        raise
