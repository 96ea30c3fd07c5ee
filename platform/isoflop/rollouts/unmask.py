"""What does a denoiser write into the gaps of a text, once for each seed?

All hidden tokens are predicted in each pass; some of them are kept, and the next pass sees them.
Which ones: those that the model is surest of, or a random choice. With as many passes as gaps, one
token is written per pass.

    prompt + blanks -> pass -> keep some -> pass -> ... -> text

Every row draws from its own seed and shares a batch only with rows of its own length, so what it
writes does not depend on which rows those are.

Letters: R rows, T tokens of a row, V vocabulary, N passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.rollouts.sampling import Rollout, Sampling, draw, ended, evaluating
from isoflop.targets import Framing
from models.interface import Denoiser

Ids = NDArray[np.int64]


def infill(
    model: Denoiser,
    texts: Sequence[NDArray[np.integer]],
    seeds: Sequence[int],
    sampling: Sampling,
    framing: Framing | None = None,
    *,
    batch: int = 256,
) -> list[tuple[Ids, NDArray[np.float32], NDArray[np.float32]]]:
    """Each text with its blanks (the last id of the model's vocabulary) filled in, from its seed.

    For each text: its ids (T,), and for every place that was blank the log probability of what was
    written there and the entropy, in nats, when it was written; 0 elsewhere. Neither `new_tokens`
    nor the stop ids matter.

    Raises ValueError for a text that is longer than the context or holds unknown ids.
    """
    if len(texts) != len(seeds):
        raise ValueError(f"{len(texts)} texts need as many seeds, not {len(seeds)}")
    checked = [_checked(model, text, index) for index, text in enumerate(texts)]
    found: dict[int, tuple[Ids, NDArray[np.float32], NDArray[np.float32]]] = {}
    with evaluating(model):
        for rows in _batches(checked, batch):
            canvas = np.stack([checked[row] for row in rows])
            parts = _fill(model, canvas, [seeds[row] for row in rows], sampling, framing)
            found |= dict(zip(rows, zip(*parts, strict=True), strict=True))
    return [found[row] for row in range(len(texts))]


def unmask(
    model: Denoiser,
    prompts: Sequence[NDArray[np.integer]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    framing: Framing | None,
    batch: int,
) -> list[Rollout]:
    """Rollouts as `generate` gives them: `new_tokens` blanks behind each prompt, filled in.

    All blanks are filled whatever they become; a row counts up to its first stop.
    """
    blanks = np.full(sampling.new_tokens, model.config.vocab - 1)
    owners = [(index, i) for index, own in enumerate(seeds) for i in range(len(own))]
    texts = [np.concatenate((prompts[index], blanks)) for index, _ in owners]
    flat = [seeds[index][i] for index, i in owners]
    filled = infill(model, texts, flat, sampling, framing, batch=batch)
    rows = []
    for (index, i), (ids, logprobs, entropies) in zip(owners, filled, strict=True):
        own = slice(len(prompts[index]), None)
        written = ids[own].astype(np.int32)
        count, stop = ended(written, sampling.stop_ids)
        rows.append(
            Rollout(
                prompt_index=index,
                sample=i,
                prompt_ids=np.asarray(prompts[index]).astype(np.int32),
                completion_ids=written[:count],
                logprobs=logprobs[own][:count],
                entropies=entropies[own][:count],
                stop=stop,
            )
        )
    return rows


def _checked(model: Denoiser, text: NDArray[np.integer], index: int) -> Ids:
    config = model.config
    ids = np.asarray(text).astype(np.int64)
    if ids.ndim != 1 or not 0 < len(ids) <= config.context:
        raise ValueError(
            f"text {index} has shape {ids.shape}; it must have 1 to {config.context} tokens"
        )
    if ids.min() < 0 or ids.max() >= config.vocab:
        raise ValueError(f"text {index} holds ids outside the vocabulary of {config.vocab} tokens")
    return ids


def _batches(texts: Sequence[Ids], batch: int) -> Iterator[list[int]]:
    """Rows of equal length, at most `batch` together."""
    by_length: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(row)
    for rows in by_length.values():
        yield from (rows[start : start + batch] for start in range(0, len(rows), batch))


def _fill(
    model: Denoiser,
    canvas: Ids,
    seeds: Sequence[int],
    sampling: Sampling,
    framing: Framing | None,
) -> tuple[Ids, NDArray[np.float32], NDArray[np.float32]]:
    """Texts (R, T) of one length without their blanks, and log probabilities and entropies."""
    device, blank = next(model.parameters()).device, model.config.vocab - 1
    uniforms, keys = (torch.from_numpy(x).to(device) for x in _drawn(seeds, canvas.shape[1]))
    tokens = torch.from_numpy(canvas).to(device)
    hidden = tokens == blank
    gaps = hidden.sum(dim=1)
    passes = min(int(gaps.max()), (framing.passes if framing else 0) or canvas.shape[1])
    surest = framing is None or framing.order == "confidence"
    logprobs, entropies = torch.zeros_like(uniforms), torch.zeros_like(uniforms)
    for step in range(passes):
        found, logprob, entropy = _predicted(model, tokens, hidden, uniforms, sampling)
        rank = torch.where(hidden, logprob if surest else keys, -torch.inf)
        order = rank.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        left = gaps * (passes - step - 1) // passes  # hidden after this pass, evenly fewer
        kept = hidden & (order < (hidden.sum(dim=1) - left).unsqueeze(1))
        tokens = torch.where(kept, found, tokens)
        logprobs = torch.where(kept, logprob, logprobs)
        entropies = torch.where(kept, entropy, entropies)
        hidden = hidden & ~kept
    return tokens.cpu().numpy(), logprobs.cpu().numpy(), entropies.cpu().numpy()


def _predicted(
    model: Denoiser, tokens: Tensor, hidden: Tensor, uniforms: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor]:
    """What one pass would write at each hidden place (R, T), and its logprob and entropy."""
    states = model.hidden(tokens, times=hidden.float().mean(dim=1))
    logits = model.head(states[hidden])[:, : model.config.text_vocab]
    seen = None
    if sampling.repetition != 1:
        marks = torch.zeros(len(tokens), model.config.vocab, dtype=torch.bool, device=tokens.device)
        seen = marks.scatter(1, tokens, True)[hidden.nonzero()[:, 0], : logits.shape[1]]
    parts = draw(logits, uniforms[hidden], sampling, seen)
    places = (tokens, torch.zeros_like(uniforms), torch.zeros_like(uniforms))
    found, logprob, entropy = (
        whole.masked_scatter(hidden, part.to(whole.dtype))
        for whole, part in zip(places, parts, strict=True)
    )
    return found, logprob, entropy


def _drawn(seeds: Sequence[int], length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two random numbers in [0, 1) for each place of each row, (R, T): for its token, and for when
    it is written in a random order.
    """
    drawn = [np.random.default_rng(seed).random((2, length), dtype=np.float32) for seed in seeds]
    both = np.stack(drawn)
    return both[:, 0], both[:, 1]
