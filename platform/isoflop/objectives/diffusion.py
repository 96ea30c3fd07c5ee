"""How well does the model fill in hidden tokens? A bound on the text's likelihood, in nats.

Of a row's N tokens, n are hidden, with n uniform in 1..N and all choices of n tokens equally
likely. The model sees the rest, and the bound is the mean over n of N / n times the cross entropy
of the hidden tokens:

    -log p(x)  <=  E_n [ (N / n) sum over hidden i of -log p(x_i | what is not hidden) ]

That is the continuous-time bound of absorbing diffusion with its weight 1 / t, integrated over the
number of hidden tokens (Sahoo et al. 2024, MDLM, eq. 10; Ou et al. 2024; Nie et al. 2025, LLaDA,
eq. 14), which has no weight above N. Rows take their n from evenly spread phases, so the n of a
step cover 1..N.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isoflop.data.rows import Rows, uniforms
from isoflop.objectives.interface import Batch, Forward
from isoflop.objectives.loss import cross_entropy


class Unmasking:
    """Predict the hidden tokens. The blank, and any other marker, is never what stands there."""

    def __init__(self, vocab: int, blank: int) -> None:
        self.vocab, self.blank = vocab, blank

    def batch(self, rows: Rows) -> Batch:
        """The same tokens as a model that reads left to right predicts: each row's last T."""
        ids = rows.ids[:, 1:]
        documents = None if rows.documents is None else rows.documents[:, 1:]
        present = np.ones(ids.shape, dtype=bool) if documents is None else documents >= 0
        hidden, shares = _hide(rows, present)
        inputs = {
            "tokens": torch.from_numpy(np.where(hidden, self.blank, ids)),
            "times": torch.from_numpy(shares).float(),
        }
        if documents is not None:
            inputs["documents"] = torch.from_numpy(documents.copy())
        return Batch(
            inputs=inputs,
            targets=torch.from_numpy(ids.copy()),
            weights=torch.from_numpy(hidden / shares[:, None]).float(),
            tokens=torch.from_numpy(present).float(),
        )

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Sum over hidden tokens of -log p / share in nats: a bound on the whole text's."""
        return cross_entropy(forward, batch, self.vocab)


def _hide(
    rows: Rows, present: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Which tokens (B, T) are hidden, and the share (B,) that they are of those present."""
    draws = uniforms(rows.seeds, present.shape[1] + 1)
    phases = draws[:, -1] if rows.phases is None else rows.phases
    lengths = np.maximum(present.sum(axis=1), 1)  # a row of padding hides nothing
    counts = 1 + np.floor(phases * lengths)
    keys = np.where(present, draws[:, :-1], np.inf)
    ranks = keys.argsort(axis=1).argsort(axis=1)
    return (ranks < counts[:, None]) & present, counts / lengths
