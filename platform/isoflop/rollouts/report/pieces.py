"""How does a capture's row become what is shown: tokens in their text, loops, copies, numbers?

A token is a span of the text, its probability one digit. Lengths count UTF-16 units, since that is
what a browser's strings are made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.metrics import METRICS

if TYPE_CHECKING:
    import pyarrow

COPIED = ("copied_start", "copied_length")  # tokens; where a capture looked for them
SHOWN = tuple(metric.name for metric in METRICS if metric.level == "rollout")

Row = list[Any]
COPY = 6  # where in a row its copied span stands


def rows(
    table: pyarrow.Table,
    *,
    prompts: Mapping[str, int],
    samples: int,
    sizes: NDArray[np.int64] | None,
    names: Sequence[str],
) -> list[Row]:
    """Rows of a capture as [prompt, sample, text, spans, digits, loop, copy, ended, metrics].

    Those of `prompts` (by id: their numbers) with a sample below `samples`. `sizes`: bytes of each
    token id, or None where the vocabulary is unknown: then there are no spans.
    """
    found = []
    columns = {name: table[name].to_pylist() for name in ("prompt_id", "sample_id", "text")}
    kept = [
        index
        for index, (prompt, sample) in enumerate(
            zip(columns["prompt_id"], columns["sample_id"], strict=True)
        )
        if prompt in prompts and sample < samples
    ]
    stop = "stop_condition" if "stop_condition" in table.column_names else "stop"
    part = table.take(kept)
    ids, logprobs = part["completion_ids"], part["logprobs"]
    ended, values = part[stop].to_pylist(), _metrics(part, names)
    copies = _copies(part)
    for place, index in enumerate(kept):
        text = columns["text"][index]
        own = ids[place].values.to_numpy(zero_copy_only=False)
        lengths = None if sizes is None else spans(text, sizes[own])
        loop = values["loop_onset"][place] if "loop_onset" in values else None
        found.append(
            [
                prompts[columns["prompt_id"][index]],
                columns["sample_id"][index],
                text,
                lengths,
                digits(logprobs[place].values.to_numpy(zero_copy_only=False)),
                None if loop is None else int(loop),
                copies[place],
                int(ended[place] == "stop"),
                [_plain(values[name][place]) for name in names],
            ]
        )
    return found


def _metrics(table: pyarrow.Table, names: Sequence[str]) -> dict[str, list[float | None]]:
    nothing: list[float | None] = [None] * table.num_rows
    return {
        name: table[f"m.{name}"].to_pylist() if f"m.{name}" in table.column_names else nothing
        for name in dict.fromkeys([*names, "loop_onset"])
    }


def _copies(table: pyarrow.Table) -> list[list[int] | None]:
    """Token and length of each row's longest span that the run had read, where that is known."""
    if not set(COPIED) <= set(table.column_names):
        return [None] * table.num_rows
    starts, lengths = (table[name].to_pylist() for name in COPIED)
    pairs = zip(starts, lengths, strict=True)
    return [[int(a), int(b)] if a is not None and b else None for a, b in pairs]


def _plain(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def spans(text: str, sizes: NDArray[np.int64]) -> list[int] | None:
    """The length of each token's part of the text, from its bytes; None where they do not add up.

    That is where bytes that are no UTF-8 were written, which the text holds as U+FFFD. A character
    that several tokens share belongs to the first.
    """
    encoded = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    ends = np.cumsum(sizes)
    if not len(ends) or ends[-1] != len(encoded):
        return None
    units = np.where((encoded & 0xC0) == 0x80, 0, np.where(encoded >= 0xF0, 2, 1))
    places = np.concatenate([[0], np.cumsum(units)])[np.concatenate([[0], ends])]
    lengths: list[int] = np.diff(places).tolist()
    return lengths


def digits(logprobs: NDArray[np.floating]) -> str:
    """Each token's probability in tenths, 0 to 9; not-a-number counts as 0."""
    p = np.exp(np.nan_to_num(logprobs.astype(np.float64), nan=-math.inf, posinf=0.0))
    tenths = np.clip((p * 10).astype(np.int64), 0, 9)
    return bytes((tenths + ord("0")).astype(np.uint8)).decode()
