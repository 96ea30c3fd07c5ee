"""How does a capture's row become what is shown: tokens in their text, loops, copies, numbers?

A token is a span of the text, its probability one digit (`digits`). Lengths count UTF-16 units,
since that is what a browser's strings are made of.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts import rows as kept_rows
from isoflop.rollouts.certainty import course
from isoflop.rollouts.metrics import METRICS
from isoflop.rollouts.repetition import survival

if TYPE_CHECKING:
    import pyarrow

SHOWN = tuple(metric.name for metric in METRICS if metric.level != "corpus")

COLUMNS = {
    "spec", "prompt_id", "sample_id", "text", "completion_ids", "logprobs", "entropies",
    "stop_condition", "copied", "n_tokens",
}  # fmt: skip

Row = list[Any]
COPY = 6  # where in a row its copied stretches stand


def needed(column: str) -> bool:
    """Whether a column of a capture takes part in what is shown."""
    return column in COLUMNS or column.startswith(("m.", "reward"))


def rows(
    table: pyarrow.Table,
    *,
    prompts: Mapping[tuple[str, str], int],
    samples: int,
    vocabulary: Vocabulary | None,
    names: Sequence[str],
) -> list[Row]:
    """Rows of a capture as [prompt, sample, text, spans, digits, loop, copy, ended, metrics].

    Those of `prompts` (by set and id: their numbers) with a sample below `samples`. `vocabulary`:
    None where it is unknown: then there are no spans.
    """
    found = []
    columns = {name: table[name].to_pylist() for name in ("spec", "prompt_id", "sample_id", "text")}
    asked = list(zip(columns["spec"], columns["prompt_id"], strict=True))
    kept = [
        index
        for index, (key, sample) in enumerate(zip(asked, columns["sample_id"], strict=True))
        if key in prompts and sample < samples
    ]
    part = table.take(kept)
    texts = [columns["text"][index] for index in kept]
    lengths = _lengths(texts, part["completion_ids"], vocabulary)
    likely = _likely(part["logprobs"])
    ended, values = part["stop_condition"].to_pylist(), _metrics(part, names)
    copies = _copies(part)
    for place, index in enumerate(kept):
        loop = values["loop_onset"][place] if "loop_onset" in values else None
        found.append(
            [
                prompts[asked[index]],
                columns["sample_id"][index],
                texts[place],
                lengths[place],
                likely[place],
                None if loop is None else int(loop),
                copies[place],
                int(ended[place] == "stop"),
                [values[name][place] for name in names],
            ]
        )
    return found


def _lengths(
    texts: Sequence[str], ids: pyarrow.ChunkedArray, vocabulary: Vocabulary | None
) -> list[list[int] | None]:
    """`Vocabulary.spans` of each text."""
    if vocabulary is None or not texts:
        return [None] * len(texts)
    lists = ids.combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return vocabulary.all_spans(texts, flat, lists.value_lengths().to_numpy())


def _likely(logprobs: pyarrow.ChunkedArray) -> list[str]:
    """`digits` of each row; of all at once, which is ten times as fast."""
    values = logprobs.combine_chunks()
    flat = digits(values.flatten().to_numpy(zero_copy_only=False))
    ends = np.concatenate([[0], np.cumsum(values.value_lengths().to_numpy())]).tolist()
    return [flat[a:b] for a, b in pairwise(ends)]


def _metrics(table: pyarrow.Table, names: Sequence[str]) -> dict[str, list[float | None]]:
    nothing: list[float | None] = [None] * table.num_rows
    places = {
        name: kept_rows.column(name, table.column_names)
        for name in dict.fromkeys([*names, "loop_onset"])
    }
    return {
        name: nothing if place is None else _rounded(table[place]) for name, place in places.items()
    }


def _rounded(column: pyarrow.ChunkedArray) -> list[float | None]:
    """To four digits, as `_plain` has them; None where a value is none or not finite."""
    values = column.to_numpy().astype(np.float64)
    known = np.isfinite(values) & (values != 0)
    size = np.floor(np.log10(np.abs(values[known])))
    scale = 10.0 ** (3 - size)
    values[known] = np.round(values[known] * scale) / scale
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _copies(table: pyarrow.Table) -> list[list[int] | None]:
    """First token and length, in turn, of each row's stretches that the run had read."""
    if "copied" not in table.column_names:
        return [None] * table.num_rows
    return [stretches or None for stretches in table["copied"].to_pylist()]


def courses(table: pyarrow.Table) -> dict[str, dict[str, list[float | None]]]:
    """What changes along the text, by set: the mean entropy at each token, and the share of
    rollouts that are not yet in a loop there (times and shares)."""
    found: dict[str, dict[str, list[float | None]]] = {}
    specs = np.array(table["spec"].to_pylist())
    for name in dict.fromkeys(specs.tolist()):
        part = table.take(np.flatnonzero(specs == name))
        entropies = [row.values.to_numpy(zero_copy_only=False) for row in part["entropies"]]
        onsets = [math.inf if x is None else x for x in part["m.loop_onset"].to_pylist()]
        times, shares = survival(onsets, part["n_tokens"].to_numpy())
        found[str(name)] = {
            "entropy": [_plain(value) for value in course(entropies).tolist()],
            "times": [float(value) for value in times],
            "shares": [_plain(value) for value in shares.tolist()],
        }
    return found


def _plain(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


class Tokenizer(Protocol):
    """What spans need of `isoflop.data.vocabulary.Base`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def specials(self) -> dict[str, int]: ...
    def bytes_of(self, id: int) -> bytes | None: ...


class Vocabulary:
    """The bytes of each token id, as far as they are text: a special token has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = set(tokenizer.specials.values())
        unused = "\ufffd".encode()
        self.parts: list[bytes] = []
        for id in range(tokenizer.vocab_size):
            part = tokenizer.bytes_of(id)
            self.parts.append(b"" if id in special else unused if part is None else part)
        self.sizes = np.array([len(part) for part in self.parts], dtype=np.int64)

    def spans(self, text: str, ids: NDArray[np.integer]) -> list[int] | None:
        """The length of each token's part of the text that the ids decode to; None if they do not.

        A character that several tokens share belongs to the first of them; where bytes that are no
        UTF-8 were written, which the text holds as U+FFFD, to the one that ended it.
        """
        return self.all_spans([text], np.asarray(ids), np.array([len(ids)]))[0]

    def all_spans(
        self, texts: Sequence[str], ids: NDArray[np.integer], counts: NDArray[np.integer]
    ) -> list[list[int] | None]:
        """The same of many texts, of which each has so many of the ids: ten times as fast."""
        found = spans(texts, self.sizes[ids], counts)
        ends = np.cumsum(counts).tolist()
        for row, text in enumerate(texts):
            if "\ufffd" in text:
                own = ids[ends[row] - int(counts[row]) : ends[row]]
                found[row] = _decoded(text, [self.parts[id] for id in own.tolist()])
        return found


def _decoded(text: str, parts: Sequence[bytes]) -> list[int] | None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = [decoder.decode(part) for part in parts]
    if found:
        found[-1] += decoder.decode(b"", final=True)
    if "".join(found) != text:
        return None
    return [len(part.encode("utf-16-le")) // 2 for part in found]


def spans(
    texts: Sequence[str], sizes: NDArray[np.int64], counts: NDArray[np.integer]
) -> list[list[int] | None]:
    """The length of each token's part of each text of UTF-8, from its bytes: `sizes` of all tokens,
    of which each text has so many (`counts`). None where they do not add up. A character that
    several tokens share belongs to the first."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    bytes_ = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    units = np.where((bytes_ & 0xC0) == 0x80, 0, np.where(bytes_ >= 0xF0, 2, 1))
    before = np.concatenate([[0], np.cumsum(units)])  # UTF-16 units before each byte
    first = np.concatenate([[0], np.cumsum([len(part) for part in encoded])])
    tokens = np.concatenate([[0], np.cumsum(counts)])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    known = (np.diff(ends[tokens]) == np.diff(first)) & (np.diff(tokens) > 0)
    found: list[list[int] | None] = [None] * len(texts)
    shift = np.repeat(
        first[:-1] - ends[tokens[:-1]], counts
    )  # from the tokens' bytes to the texts'
    stops = np.clip(ends[1:] + shift, 0, len(bytes_))
    starts = np.clip(ends[:-1] + shift, 0, len(bytes_))
    lengths = (before[stops] - before[starts]).tolist()
    for row in np.flatnonzero(known).tolist():
        found[row] = lengths[tokens[row] : tokens[row + 1]]
    return found


# Probabilities from which on a token is a step paler. By factors: of a vocabulary of thousands most
# tokens of a small model are below a tenth, and a hundredth is not a thousandth.
STEPS = (0.001, 0.004, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 0.9)


def digits(logprobs: NDArray[np.floating]) -> str:
    """How probable each token was, as the number of `STEPS` it reaches, 0 to 9; not-a-number has
    none."""
    p = np.exp(np.nan_to_num(logprobs.astype(np.float64), nan=-math.inf, posinf=0.0))
    reached = np.searchsorted(STEPS, p, side="right")
    return bytes((reached + ord("0")).astype(np.uint8)).decode()
