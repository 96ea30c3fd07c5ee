"""How well does the model write what was cut out of the text? Nats per token that it writes.

A row of text (a..j) with the spans bc and gh cut out:

    the encoder reads    a <0> d e f <1> i j
    the decoder writes   <0> b c <1> g h <2>

Sentinels <k> stand for the spans, and the first that no span has ends the writing (Raffel et al.
2020, section 3.1.4). In a mixture, a marker in front of what the encoder reads says which kind of
cut it was (Tay et al. 2022, UL2). Rows of documents are cut as they are: a row is one text here.

Letters: B rows, T tokens of a row, S positions that the encoder reads, U that the decoder writes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isoflop.data.rows import Rows, uniforms
from isoflop.objectives.interface import Batch, Forward
from isoflop.objectives.loss import cross_entropy
from isoflop.targets import Corruption, SpanDenoising

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Seeds = npt.NDArray[np.uint64]


class Denoising:
    """Cuts every row by random numbers of its own, always into as many tokens and spans."""

    def __init__(self, config: SpanDenoising, text_vocab: int) -> None:
        self.config, self.text_vocab = config, text_vocab
        self.vocab = text_vocab + config.markers
        self.blank = self.vocab - 1

    def batch(self, rows: Rows) -> Batch:
        """The same tokens as a model that reads left to right predicts: each row's last T."""
        ids = rows.ids[:, 1:]
        lengths = np.full(len(ids), ids.shape[1])
        if rows.documents is not None:  # padding stands at a row's ends: the text is moved to front
            present = rows.documents[:, 1:] >= 0
            lengths = present.sum(axis=1)
            ids = np.take_along_axis(ids, (~present).argsort(axis=1, kind="stable"), axis=1)
        read, written = self.config.lengths(ids.shape[1])
        source = np.full((len(ids), read), self.blank)
        target = np.full((len(ids), written), self.blank)
        kinds = self._kinds(rows.seeds)
        for kind, length in {*zip(kinds.tolist(), lengths.tolist(), strict=True)}:
            if length > 1:  # nothing can be cut out of a single token
                chosen = (kinds == kind) & (lengths == length)
                one, other = self._cut(ids[chosen, :length], rows.seeds[chosen], kind)
                source[chosen, : one.shape[1]] = one
                target[chosen, : other.shape[1]] = other
        return self._framed(source, target)

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Sum of -log p(target) in nats, over spans and sentinels."""
        return cross_entropy(forward, batch, self.vocab)

    def _framed(self, source: Ids, target: Ids) -> Batch:
        """The decoder reads what it should have written so far, after a blank."""
        start = np.full((len(target), 1), self.blank)
        tokens = np.concatenate((start, target[:, :-1]), axis=1)
        inputs = {"source": torch.from_numpy(source), "tokens": torch.from_numpy(tokens)}
        present, counted = source != self.blank, target != self.blank
        if not present.all():
            present[:, 0] = True  # attention must have something to read
            inputs["present"] = torch.from_numpy(present)
        weights = None if counted.all() else torch.from_numpy(counted).float()
        return Batch(inputs=inputs, targets=torch.from_numpy(target), weights=weights)

    def _kinds(self, seeds: Seeds) -> Ids:
        """Which corruption each row gets (B,)."""
        kinds = self.config.corruptions
        if len(kinds) == 1:
            return np.zeros(len(seeds), dtype=np.int64)
        return (uniforms(seeds, 1)[:, 0] * len(kinds)).astype(np.int64)

    def _cut(self, ids: Ids, seeds: Seeds, kind: int) -> tuple[Ids, Ids]:
        """Rows of equal length to what the encoder reads and what the decoder writes."""
        corruption = self.config.corruptions[kind]
        segments, spans = _segments(corruption, seeds, ids.shape[1])
        noise = segments % 2 == 1
        first = np.diff(segments, axis=1, prepend=-1) == 1
        marked = np.where(first, self.text_vocab + segments // 2, ids)
        source = np.where(noise, marked, ids)[~noise | first].reshape(len(ids), -1)
        target = np.where(noise, ids, marked)[noise | first].reshape(len(ids), -1)
        end = np.full((len(ids), 1), self.text_vocab + spans)
        if self.config.modes:
            mode = np.full((len(ids), 1), self.config.mode(corruption, self.text_vocab))
            source = np.concatenate((mode, source), axis=1)
        return source, np.concatenate((target, end), axis=1)


def _segments(corruption: Corruption, seeds: Seeds, length: int) -> tuple[Ids, int]:
    """Each token's segment (B, T), counted from 0: even ones stay, odd ones are cut out.

    And how many are cut out. A row begins with a segment that stays and ends with one that is cut,
    as in T5's released code.
    """
    noise, spans = corruption.cuts(length)
    draws = uniforms(seeds, 1 + length)[:, 1:]  # the first one chose the kind
    cut = _parts(noise, spans, draws[:, : noise - 1])
    kept = _parts(length - noise, spans, draws[:, noise - 1 :])
    ends = np.stack((kept, cut), axis=2).reshape(len(seeds), -1).cumsum(axis=1)[:, :-1]
    marks = np.zeros((len(seeds), length), dtype=np.int64)
    np.put_along_axis(marks, ends, 1, axis=1)
    return marks.cumsum(axis=1), spans


def _parts(total: int, parts: int, draws: npt.NDArray[np.float64]) -> Ids:
    """`total` split into `parts` lengths (B, parts) of at least 1, all splits equally likely.

    `draws` (B, total - 1 or more) in [0, 1) choose the places between two tokens that are split.
    """
    places = np.sort(draws[:, : total - 1].argsort(axis=1)[:, : parts - 1] + 1, axis=1)
    return np.diff(places, axis=1, prepend=0, append=total)
