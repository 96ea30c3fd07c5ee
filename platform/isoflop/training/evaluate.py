"""How well does the model predict held-out text? Nats per token, and bits per byte of the text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, distributed

from isoflop.data.rows import Rows, joined
from isoflop.objectives import Objective
from isoflop.training.distributed import Ranks
from models.interface import Model


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source's windows among those of a mixture, and its share of the training rows."""

    name: str
    windows: range
    share: float


@dataclass(frozen=True)
class HeldOut:
    """The validation windows of a study, and the size (V,) in bytes of each token's text."""

    rows: Rows
    token_bytes: Tensor
    sources: tuple[Source, ...] = ()  # of a mixture

    @staticmethod
    def of(
        sources: Mapping[str, Rows], token_bytes: Tensor, shares: Mapping[str, float]
    ) -> HeldOut:
        """Each source's windows together; a single source without a name ("") is no mixture."""
        if set(sources) == {""}:
            return HeldOut(sources[""], token_bytes)
        ends = itertools.accumulate((len(rows) for rows in sources.values()), initial=0)
        placed = tuple(
            Source(name=name, windows=range(start, end), share=shares[name])
            for name, (start, end) in zip(sources, itertools.pairwise(ends), strict=True)
        )
        return HeldOut(joined(list(sources.values())), token_bytes, placed)


@dataclass(frozen=True)
class Score:
    """Mean loss in nats per token; the same loss in bits per byte compares across tokenizers.

    Of a mixture: of a text that is mixed as the training rows are, and of each source (`parts`).
    """

    loss: float
    bits_per_byte: float
    parts: Mapping[str, Score] = field(default_factory=dict)


@torch.no_grad()
def evaluate(model: Model, text: HeldOut, objective: Objective, ranks: Ranks, rows: int) -> Score:
    """The score over all windows, `rows` at a time, shared out over the ranks.

    The model is left in the mode (training or not) in which it came.
    """
    was_training = model.training
    model.eval()
    sources = text.sources or (Source(name="", windows=range(len(text.rows)), share=1.0),)
    try:
        totals = torch.stack([_total(model, text, s, objective, ranks, rows) for s in sources])
    finally:  # memory may run out, and less be tried
        model.train(was_training)
    if ranks.world > 1:
        totals = totals.to(ranks.device)
        distributed.all_reduce(totals)
    scores = [_score(*total) for total in totals.tolist()]
    if not text.sources:
        return scores[0]
    # A token of the mixture is one of source i with the probability of its share.
    shares = torch.tensor([source.share for source in sources], dtype=torch.float64)
    totals = totals.cpu()
    mixed = shares @ (totals / totals[:, 1:2].clamp(min=1.0)) * totals[:, 1].sum()
    named = {source.name: score for source, score in zip(sources, scores, strict=True)}
    return replace(_score(*mixed.tolist()), parts=named)


def _total(
    model: Model, text: HeldOut, source: Source, objective: Objective, ranks: Ranks, rows: int
) -> Tensor:
    """Nats, tokens and their bytes of a source's windows, as far as they are this rank's."""
    total = torch.zeros(3, dtype=torch.float64)
    end = source.windows.stop
    for start in range(source.windows.start + ranks.rank * rows, end, ranks.world * rows):
        batch = objective.batch(text.rows.part(slice(start, min(start + rows, end))))
        nats = objective.loss(model, batch.to(ranks.device))
        size = batch.measure(text.token_bytes)
        total += torch.tensor([float(nats), float(batch.count), size])
    return total


def _score(nats: float, tokens: float, size: float) -> Score:
    return Score(nats / max(1.0, tokens), nats / math.log(2) / max(1.0, size))


def points(steps: int, times: int) -> tuple[int, ...]:
    """The steps after which a run is evaluated: the end, and halving backwards from it."""
    return tuple(sorted({max(1, round(steps / 2**k)) for k in range(times)}))
