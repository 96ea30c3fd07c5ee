"""How are SentencePiece's models trained and run (Kudo & Richardson 2018)?

The package is optional. A model trained here is byte-pair encoding on characters, with line ends as
tokens of their own, bytes for what it does not know, and nothing normalised: any text comes back as
it was. A model that somebody else trained does what it does, and need not be lossless.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.data.vocabulary import END_OF_TEXT, FORMAT, Base, Ids, within

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SUFFIX = ".model"

_BLANK = "\u2581"  # what stands for a space inside of a model
_PROBE = f"  two\n\n blanks {_BLANK} Ωé中😀 \t</s><0x41>"
_SMALLEST = 512  # the bytes, line ends, some characters, and the merges that make it worth while
_LONGEST = 4096  # characters of a line that are trained on at once


class SentencePieceTokenizer(Base):
    """A model of SentencePiece. The end of text is not the model's own, but the id after its last.

    Tokens that the model itself keeps for control ("<s>") are specials; text never becomes one.
    """

    def __init__(self, name: str, model: bytes) -> None:
        """Raises ValueError if `model` is none, or without the package."""
        self.name = name
        self.model = model
        self.vocab_size = int(self.processor.get_piece_size()) + 1
        self.end_of_text = self.vocab_size - 1

    @cached_property
    def processor(self) -> SentencePieceProcessor:
        try:
            loaded: SentencePieceProcessor = _package().SentencePieceProcessor(
                model_proto=self.model
            )
        except RuntimeError as error:
            raise ValueError(f"{self.name} is not a model of SentencePiece ({error})") from None
        return loaded

    @cached_property
    def lossless(self) -> bool:
        """Whether every text comes back as it was: tried on one that holds what models lose."""
        return b"".join(map(self._shown, self._encode(_PROBE))) == _PROBE.encode()

    @cached_property
    def _pieces(self) -> list[bytes | None]:
        return [_piece(self.processor, id) for id in range(self.end_of_text)]

    @property
    def specials(self) -> dict[str, int]:
        control = filter(self.processor.is_control, range(self.end_of_text))
        own = {self.processor.id_to_piece(id): id for id in control}
        return {**own, END_OF_TEXT: self.end_of_text}

    def description(self) -> dict[str, Any]:
        model = base64.b64encode(self.model).decode()
        return {"format": FORMAT, "kind": "sentencepiece", "name": self.name, "model": model}

    def __getstate__(self) -> dict[str, Any]:
        cached = ("processor", "lossless", "_pieces")
        return {key: value for key, value in self.__dict__.items() if key not in cached}

    def _encode(self, text: str) -> Ids:
        """A model's sign for a space is spelled in bytes where the text itself has it."""
        spelled = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in _BLANK.encode()]
        unknown = self.processor.unk_id()
        if _BLANK not in text or unknown in spelled:
            return np.array(self.processor.encode(text), dtype=np.uint32)
        ids: list[int] = []
        for k, part in enumerate(text.split(_BLANK)):
            ids += [*(spelled if k else []), *self.processor.encode(part)]
        return np.array(ids, dtype=np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        known = list(within(ids, self.vocab_size))
        if self.lossless:
            return super().decode(known)
        # The model alone knows which of its blanks it put there itself.
        parts: list[list[int]] = [[]]
        for id in known:
            if id == self.end_of_text:
                parts.append([])
            else:
                parts[-1].append(id)
        return END_OF_TEXT.join(self.processor.decode(part) for part in parts)

    def bytes_of(self, id: int) -> bytes | None:
        return END_OF_TEXT.encode() if id == self.end_of_text else self._pieces[id]


def train(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """A model of exactly `vocab_size` ids, the end of text and the unused "unknown" among them.

    The trainer holds all lines at once: at most the first two million are told to it. Raises
    ValueError for a text that has too few pairs for so many ids. Equal texts, equal models.
    """
    if vocab_size < _SMALLEST:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small; SentencePiece needs {_SMALLEST}"
        )
    model = io.BytesIO()
    try:
        _package().SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            vocab_size=vocab_size - 1,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n"],
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            max_sentence_length=4 * _LONGEST,
            input_sentence_size=2_000_000,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"SentencePiece cannot train {vocab_size} ids on this text ({error})"
        ) from None
    return SentencePieceTokenizer(f"sentencepiece-{vocab_size}", model.getvalue())


def opened(path: Path) -> SentencePieceTokenizer:
    """Somebody's model, from its file. Raises ValueError if it is missing or none."""
    try:
        return SentencePieceTokenizer(str(path), path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"data.tokenizer is {str(path)!r}, which cannot be read ({error})"
        ) from None


def from_description(content: dict[str, Any]) -> SentencePieceTokenizer:
    """What `SentencePieceTokenizer.description` told."""
    model = base64.b64decode(content["model"], validate=True)
    return SentencePieceTokenizer(str(content["name"]), model)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST):
                yield line[start : start + _LONGEST]


def _piece(processor: SentencePieceProcessor, id: int) -> bytes | None:
    piece: str = processor.id_to_piece(id)
    if processor.is_byte(id):
        return bytes([int(piece[3:5], 16)])
    if processor.is_unknown(id) or processor.is_unused(id):
        return None
    return piece.encode() if processor.is_control(id) else piece.replace(_BLANK, " ").encode()


def _package() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(
            "this tokenizer needs the package sentencepiece: pip install 'isoflop[sentencepiece]'"
        ) from None
    return sentencepiece
