"""How likely is what one model wrote to another, frozen one of the same study?

Often the study's largest. A low surprise is no praise by itself: loops have the lowest, so it is
read beside repetition, and against what the judge makes of held-out text (Holtzman et al. 2020).

Letters: R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isoflop.rollouts import rows
from isoflop.rollouts.certainty import judged
from isoflop.rollouts.measured import Missing, Sample
from isoflop.rollouts.sampling import evaluating
from models.interface import Denoiser, EncoderDecoder, Model

Ids = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Read:
    """What a model makes of each token of a text (M,)."""

    logprobs: NDArray[np.float32]  # nats
    entropies: NDArray[np.float32]  # nats, of the distribution that the token is one of
    greedy: NDArray[np.bool_]  # whether it is the likeliest


def read(
    model: Model, prompts: Sequence[Ids], completions: Sequence[Ids], *, batch: int = 32
) -> list[Read | Missing]:
    """What the model makes of each completion's tokens behind its prompt.

    Missing where both together are longer than the model's context. Raises ValueError for a model
    that does not write from left to right.
    """
    if isinstance(model, Denoiser | EncoderDecoder):
        raise ValueError(
            f"{model.config.name} cannot judge: only a decoder gives the probability of a text"
        )
    both = [
        np.concatenate(pair).astype(np.int64) for pair in zip(prompts, completions, strict=True)
    ]
    found: list[Read | Missing] = [Missing("longer than the reference model's context")] * len(both)
    fitting = [i for i, ids in enumerate(both) if 1 < len(ids) <= model.config.context]
    order = sorted(fitting, key=lambda i: len(both[i]))
    with evaluating(model):
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            for i, seen in zip(some, _scored(model, [both[i] for i in some]), strict=True):
                own = slice(len(prompts[i]) - 1, None)
                found[i] = Read(seen.logprobs[own], seen.entropies[own], seen.greedy[own])
    return found


def _scored(model: Model, texts: Sequence[NDArray[np.int64]]) -> list[Read]:
    """Of each token but a text's first. Blanks stand behind the shorter ones, where no token looks
    back on them."""
    device = next(model.parameters()).device
    filled = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
    for row, text in zip(filled, texts, strict=True):
        row[: len(text)] = text
    tokens = torch.from_numpy(filled).to(device)
    known = model(tokens[:, :-1]).float().log_softmax(-1)
    values = known.gather(2, tokens[:, 1:].unsqueeze(2)).squeeze(2).cpu().numpy()
    entropies = torch.special.entr(known.exp()).sum(-1).cpu().numpy()
    greedy = (known.argmax(-1) == tokens[:, 1:]).cpu().numpy()
    ends = [len(text) - 1 for text in texts]
    return [Read(values[i, :n], entropies[i, :n], greedy[i, :n]) for i, n in enumerate(ends)]


def judge(file: Path, model: Model) -> int:
    """Write what `model` makes of the rows of a capture into its file; the number of them."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file).read()
    prompts, completions = (
        [row.values.to_numpy() for row in table[name]] for name in ("prompt_ids", "completion_ids")
    )
    values = [
        judged(Sample(ids, "", judged=seen.logprobs if isinstance(seen, Read) else seen))
        for ids, seen in zip(completions, read(model, prompts, completions), strict=True)
    ]
    for name, column in rows.metric_columns("judged", values).items():
        table = table.set_column(table.column_names.index(name), name, column)
    rows.write(table, file)
    return int(table.num_rows)
