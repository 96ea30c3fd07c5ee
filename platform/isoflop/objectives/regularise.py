"""What does training add to the loss? Terms that held-out losses are free of.

    smoothing   some of each target's weight spread over the vocabulary (Szegedy et al. 2016)
    z_loss      the squared logarithm of the softmax's normaliser (de Brebisson & Vincent 2016, as
                Chowdhery et al. 2022 use it), which keeps logits from drifting
    contrast    InfoNCE (van den Oord et al. 2018) on pooled states: stretches of one row are told
                from those of the other rows; several positives as in Khosla et al. 2020, eq. 2

Letters: B rows, T positions, D width, V vocabulary, P stretches of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.objectives.interface import Batch, Forward, Objective
from isoflop.targets import Regularisers
from models.interface import Head


def losses(
    terms: Regularisers, objective: Objective, forward: Forward, batch: Batch
) -> tuple[Tensor, Tensor | None]:
    """The objective's own sum in nats, and what the terms add to it, both to be divided by the
    batch's count; None where there are no terms. One forward pass.
    """
    if not terms.any:
        return objective.loss(forward, batch), None

    def score(states: Tensor, head: Head) -> Tensor:
        logits = head(states).float()
        logits = logits[..., : objective.vocab] if objective.vocab else logits
        return torch.stack(_terms(terms, states, logits, batch))

    pure, added = forward(**batch.inputs, score=score)
    return pure, added


def _terms(
    terms: Regularisers, states: Tensor, logits: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    weights = torch.ones_like(logits[..., 0]) if batch.weights is None else batch.weights
    normaliser = logits.logsumexp(dim=-1)
    each = normaliser - logits.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    pure = (each * weights).sum()
    added = torch.zeros_like(pure)
    if terms.smoothing:
        uniform = ((normaliser - logits.mean(dim=-1)) * weights).sum()
        added = added + terms.smoothing * (uniform - pure)
    if terms.z_loss:
        added = added + terms.z_loss * (normaliser.square() * weights).sum()
    if terms.contrast:
        counts = torch.ones_like(weights) if batch.predicted is None else batch.predicted
        pooled = stretches(states.float(), counts, terms.stretches)
        added = added + terms.contrast * counts.sum() * contrast(pooled, terms.temperature)
    return pure, added


def stretches(states: Tensor, counts: Tensor, parts: int) -> Tensor:
    """The mean states (B, P, D) of P equally long stretches of states (B, T, D), over positions
    with counts (B, T) above 0.
    """
    present = (counts > 0).to(states.dtype).unsqueeze(-1)
    pieces = zip(states.tensor_split(parts, 1), present.tensor_split(parts, 1), strict=True)
    means = [(x * here).sum(1) / here.sum(1).clamp(min=1) for x, here in pieces]
    return torch.stack(means, dim=1)


def contrast(pooled: Tensor, temperature: float) -> Tensor:
    """InfoNCE in nats over stretches (B, P, D): for each, the mean over the other stretches of its
    row of -log softmax of cosines / temperature, among all stretches but itself.
    """
    B, P, _ = pooled.shape
    unit = torch.nn.functional.normalize(pooled.flatten(0, 1), dim=-1)
    itself = torch.eye(B * P, dtype=torch.bool, device=pooled.device)
    rows = torch.arange(B, device=pooled.device).repeat_interleave(P)
    positive = (rows[:, None] == rows[None, :]) & ~itself
    log_p = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=-1)
    return -log_p.where(positive, 0.0).sum() / (B * P * (P - 1))
