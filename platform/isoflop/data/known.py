"""What is the lowest loss that any honest model can reach? On this source it is known exactly.

    known:SEED[,words=1024][,states=64][,choices=64][,exponent=1.0][,length=256][,documents=4096]

A seeded machine writes the text. In each hidden state it may say `choices` of its `words`, the
r-th commonest with a probability in proportion to r^-exponent (Zipf 1935), and the word together
with the state gives the next state (a unifilar hidden Markov model). Every document begins in state
0 and has `length` words, so whoever knows the machine and has read the document knows the state.

**The floor.** Every state has the same probabilities, for other words, so each word costs the same
H = -sum p ln p nats in expectation, whatever was said before. (In general a unifilar machine's
entropy rate is the average of its states' entropies, weighted by how often they are visited;
Shannon 1948, theorem 7.) Every word is written as a blank and four letters, so that

    nats per byte   H / 5                     under every lossless tokenizer
    nats per token  H                         per word token, under "words-N" with N > words + 256,
                                              where each word is one token
                    H length / (length + 1)   the end of text counted in: it is certain

are exact in expectation. A model whose window begins inside a document cannot know the state at
once, so it stays above. The surprisals of the words are independent and alike: over n words the
mean of the best possible model has the standard error `deviation` / sqrt(n). A loss that is lower
by several of these has seen what it should predict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from isoflop.data.documents import Damage, Document, Part, Source, Stamp

PREFIX = "known:"
FORMAT = 1  # another number writes another text
WORD_BYTES = 5

_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
_SYLLABLES = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
_DOCUMENTS_PER_PART = 4096

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Known(Source):
    """The machine, as its name states it. Equal values, equal text, on every machine."""

    seed: int
    words: int = 1024
    states: int = 64
    choices: int = 64  # words that a state may say
    exponent: float = 1.0
    length: int = 256  # words in a document
    documents: int = 4096

    def __post_init__(self) -> None:
        most = len(_SYLLABLES) ** 2
        for name, low, high in (
            ("seed", 0, 2**63 - 1),
            ("words", 2, most),
            ("states", 1, 1024),
            ("choices", 2, self.words),
            ("length", 1, 2**20),
            ("documents", 2, 2**40),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"{name} of data.source is {value}; it must be from {low} to {high}"
                )
        if not 0 <= self.exponent <= 10:
            raise ValueError(f"exponent of data.source is {self.exponent}; it must be from 0 to 10")

    @property
    def name(self) -> str:  # type: ignore[override]
        values = (f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "seed")
        return f"{PREFIX}{self.seed},{','.join(values)}"

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Of the choices of any state, the commonest first (choices,)."""
        weights: npt.NDArray[np.float64] = np.arange(1.0, self.choices + 1) ** -self.exponent
        return weights / float(weights.sum())

    @property
    def entropy(self) -> float:
        """Nats per word, given the state: the floor."""
        return float(-(self.probabilities * np.log(self.probabilities)).sum())

    @property
    def deviation(self) -> float:
        """Standard deviation of a word's surprisal, in nats."""
        second = float((self.probabilities * np.log(self.probabilities) ** 2).sum())
        return math.sqrt(max(second - self.entropy**2, 0.0))

    @property
    def nats_per_byte(self) -> float:
        """The floor under every lossless tokenizer; over ln 2, bits per byte."""
        return self.entropy / WORD_BYTES

    @property
    def nats_per_token(self) -> float:
        """The floor under "words-N", with the certain end of text among the tokens."""
        return self.entropy * self.length / (self.length + 1)

    def standard_errors_below(self, nats_per_word: float, words: int) -> float:
        """How far a mean loss over so many words lies below the floor, in standard errors.

        Above 5 is no luck: the model has seen what it should predict. Negative: above the floor.
        """
        return (self.entropy - nats_per_word) * math.sqrt(words) / self.deviation

    @cached_property
    def vocabulary(self) -> list[str]:
        """The words, the commonest first; each with the blank before it."""
        places = np.argsort(_raw((self.seed, FORMAT, 0), len(_SYLLABLES) ** 2), kind="stable")
        pairs = (divmod(int(place), len(_SYLLABLES)) for place in places[: self.words])
        return [f" {_SYLLABLES[first]}{_SYLLABLES[second]}" for first, second in pairs]

    @cached_property
    def says(self) -> Indices:
        """The word that each state says as its r-th choice (states, choices).

        A state's choices are in the order of the vocabulary, so common words are common everywhere.
        """
        draws = _raw((self.seed, FORMAT, 1), self.states * self.words)
        order = np.argsort(draws.reshape(self.states, self.words), axis=1, kind="stable")
        return np.sort(order[:, : self.choices], axis=1)

    @cached_property
    def follows(self) -> Indices:
        """The state after each choice of each state (states, choices)."""
        draws = _raw((self.seed, FORMAT, 2), self.states * self.choices)
        states = (draws % np.uint64(self.states)).astype(np.int64)
        return states.reshape(self.states, self.choices)

    def write(self, first: int, last: int) -> Indices:
        """The words of the documents [first, last) as places in the vocabulary (D, length)."""
        cumulative = np.cumsum(self.probabilities)
        seeds = ((self.seed, FORMAT, 3, document) for document in range(first, last))
        draws = np.stack([_uniform(seed, self.length) for seed in seeds])
        ranks = np.minimum(np.searchsorted(cumulative, draws, side="right"), self.choices - 1)
        state = np.zeros(last - first, dtype=np.int64)
        words = np.empty_like(ranks)
        for t in range(self.length):
            words[:, t] = self.says[state, ranks[:, t]]
            state = self.follows[state, ranks[:, t]]
        return words

    def parts(self) -> list[Part]:
        starts = range(0, self.documents, _DOCUMENTS_PER_PART)
        ends = (min(start + _DOCUMENTS_PER_PART, self.documents) for start in starts)
        return [KnownPart(machine=self, start=a, end=b) for a, b in zip(starts, ends, strict=True)]

    def stamp(self) -> list[Stamp]:
        size = self.documents * self.length * WORD_BYTES
        return [(f"{self.name} of format {FORMAT}", 0, size, 0, 0)]


@dataclass(frozen=True, kw_only=True)
class KnownPart(Part):
    """The documents [start, end) of a machine."""

    machine: Known
    start: int
    end: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.start}-{self.end}"

    @property
    def bytes(self) -> int:  # type: ignore[override]
        return (self.end - self.start) * self.machine.length * WORD_BYTES

    def documents(self, log: Damage) -> Iterator[Document]:
        vocabulary = self.machine.vocabulary
        for first in range(self.start, self.end, 64):
            words = self.machine.write(first, min(first + 64, self.end))
            for number, row in enumerate(words.tolist(), start=first):
                yield Document(str(number), "".join([vocabulary[word] for word in row]))


def named(name: str) -> Known:
    """The machine of "known:SEED,KEY=VALUE,...". Raises ValueError naming what is allowed."""
    seed, *options = name.removeprefix(PREFIX).split(",")
    kinds = {f.name: float if f.name == "exponent" else int for f in fields(Known)}
    try:
        values = dict([("seed", seed)] + [_option(option) for option in options])
        return Known(**{key: kinds[key](value) for key, value in values.items()})  # type: ignore[arg-type]
    except KeyError as error:
        raise ValueError(
            f"data.source {name!r} has no option {error}; allowed are {', '.join(kinds)}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"data.source {name!r} must read like 'known:0,words=1024,states=64' ({error})"
        ) from None


def _option(option: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not equals:
        raise ValueError(f"{option!r} is not KEY=VALUE")
    return key.strip(), value


def _raw(seed: tuple[int, ...], count: int) -> npt.NDArray[np.uint64]:
    """Bits that no release of numpy may change, unlike its distributions."""
    return np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)


def _uniform(seed: tuple[int, ...], count: int) -> npt.NDArray[np.float64]:
    return (_raw(seed, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
