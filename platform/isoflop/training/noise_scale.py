"""How large a batch is worth its compute? The gradient noise scale, measured on one step's rows.

The gradient of a batch is the true gradient plus noise whose variance falls with the batch. From
the squared norms at two batch sizes follow, without bias, the squared norm of the true gradient and
the noise's variance; their ratio is the batch at which both are equal, B_simple (McCandlish et al.
2018, appendix A.1). Below it a larger batch saves steps almost in proportion; above it, hardly.

It is a measurement between two steps: weights, gradients and the next step's random numbers stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from isoflop.data.rows import Rows
from isoflop.objectives import Objective
from isoflop.run import Run
from isoflop.training.distributed import Ranks
from isoflop.training.precision import autocast
from models.interface import Model

CHUNKS = (
    8  # at most, while memory holds them: each is a backward pass, and all together cost one step
)


@dataclass(frozen=True)
class NoiseScale:
    """Estimates from one step; each scatters widely, so means are taken over several."""

    signal: float  # squared norm of the true gradient, as estimated (may come out below 0)
    noise: float  # trace of the covariance of one token's gradient

    @property
    def tokens(self) -> float | None:
        """B_simple in tokens; None where this step's noise drowned its signal."""
        return self.noise / self.signal if self.signal > 0 and self.noise > 0 else None


def noise_scale(history: Sequence[Mapping[str, float]]) -> float | None:
    """B_simple of a run in tokens: the ratio of means over its measurements, since a mean of ratios
    of such noisy numbers means nothing. The initial weights' is left out: it says little of a run.
    """
    measured = [r for r in history if "gradient/signal" in r and r["step"] > 0]
    signal = sum(r["gradient/signal"] for r in measured)
    noise = sum(r["gradient/noise"] for r in measured)
    return noise / signal if signal > 0 and noise > 0 else None


def combine(small: float, big: float, small_tokens: float, big_tokens: float) -> NoiseScale:
    """From mean squared gradient norms at two batch sizes in tokens (equations A.2 and A.3)."""
    if not 0 < small_tokens < big_tokens:
        raise ValueError(f"batches of {small_tokens} and {big_tokens} tokens must differ")
    signal = (big_tokens * big - small_tokens * small) / (big_tokens - small_tokens)
    noise = (small - big) / (1 / small_tokens - 1 / big_tokens)
    return NoiseScale(signal, noise)


def measure(
    model: Model,
    objective: Objective,
    rows: Rows,
    run: Run,
    ranks: Ranks,
    at_once: int | None = None,
) -> NoiseScale | None:
    """From this rank's rows of a step, in up to 8 equal chunks; None if all ranks hold one row.

    With several ranks the estimate is over all their chunks. There are more of them where no chunk
    may have more than `at_once` rows.
    """
    chunks = max(min(CHUNKS, len(rows)), -(-len(rows) // (at_once or len(rows))))
    size = len(rows) // chunks
    if chunks * ranks.world < 2:
        return None
    total: list[Tensor] = []
    squares = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for index in range(chunks):
        gradient = _gradient(model, objective, rows.part(slice(index * size, (index + 1) * size)),
                             run, ranks)  # fmt: skip
        squares += _square(gradient)
        total = gradient if not total else [a + b for a, b in zip(total, gradient, strict=True)]
    if ranks.world > 1:
        distributed.all_reduce(squares)
        for part in total:
            distributed.all_reduce(part)
    count = chunks * ranks.world
    tokens = size * run.model.context
    return combine(float(squares) / count, float(_square(total)) / count**2, tokens, tokens * count)


def _gradient(
    model: Model, objective: Objective, rows: Rows, run: Run, ranks: Ranks
) -> list[Tensor]:
    """Of the mean loss of some rows, without touching any parameter's own gradient."""
    batch = objective.batch(rows).to(ranks.device)
    with autocast(run.precision, ranks.device):
        loss = objective.loss(model, batch) / batch.count
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]


def _square(gradient: list[Tensor]) -> Tensor:
    norms = torch.stack([part.double().square().sum() for part in gradient])
    return norms.sum()
