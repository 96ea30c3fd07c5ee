"""What does a model make of held-out text, where it writes its own with such and such certainty?

The references that only a model has: its entropy, surprise and calibration on text that people
wrote, of the rollouts' length and behind a prefix as long as theirs; and how much of it the model
would have gone on with word for word, which is the control of memorisation. Nothing is generated:
one pass over the text has them all, for models that write from left to right.

Letters: C windows, M tokens of each that are judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isoflop.captures import Spec
from isoflop.rollouts.catalogue import METRICS
from isoflop.rollouts.groups import unshared
from isoflop.rollouts.judge import Read, read
from isoflop.rollouts.measured import Missing, Sample, number
from isoflop.rollouts.metrics import cut, reasoned, score
from isoflop.rollouts.prompts import Held, Tokenizer
from isoflop.rollouts.references import windows
from isoflop.rollouts.statistics import Aggregate, mean
from models.interface import Denoiser, EncoderDecoder, Model

WINDOWS = 128  # of held-out text, at most


def control(
    model: Model, spec: Spec, files: Sequence[Held], tokenizer: Tokenizer
) -> dict[str, Aggregate]:
    """Every metric of a model's certainty, and of recall, on held-out text as `spec` asks; nothing
    for a model that does not write from left to right."""
    if isinstance(model, Denoiser | EncoderDecoder):
        return {}
    rests, found = _read(model, spec, files)
    samples = []
    for ids, seen in zip(rests, found, strict=True):
        own, stopped = cut(ids, tokenizer.end_of_text)
        kept = slice(len(own))
        samples.append(
            Sample(own, "", "", seen.logprobs[kept], seen.entropies[kept], stopped)
        )  # fmt: skip
    names = [m for m in METRICS if m.level == "token" and m.name != "judged"]
    values = score(samples, metrics=names)
    return {name: _mean(column) for name, column in values.items()} | _recalled(found, spec)


def judged(model: Model, spec: Spec, files: Sequence[Held], tokenizer: Tokenizer) -> Aggregate:
    """What a frozen model makes of held-out text: the reference of the metric of that name."""
    rests, found = _read(model, spec, files)
    values = [
        -float(seen.logprobs[: len(cut(ids, tokenizer.end_of_text)[0])].mean())
        for ids, seen in zip(rests, found, strict=True)
    ]
    return _mean(values)


def independent(spec: Spec, files: Sequence[Held], tokenizer: Tokenizer) -> Aggregate:
    """`unshared` of as many windows as a prompt has rollouts, from places far apart: what those who
    know nothing of each other write, the most that seeds could differ."""
    held = [cut(ids, tokenizer.end_of_text)[0] for ids in windows(files, spec.new_tokens)]
    groups = len(held) // spec.seeds
    values: list[float | Missing] = []
    owners: list[int] = []
    for index in range(groups):
        own = unshared([Sample(ids, "") for ids in held[index::groups][: spec.seeds]])
        values += own
        owners += [index] * len(own)
    return reasoned(mean([number(value) for value in values], owners, share=True), values)


def _read(
    model: Model, spec: Spec, files: Sequence[Held]
) -> tuple[list[NDArray[np.int64]], list[Read]]:
    lead = max(1, min(spec.prefix_tokens, model.config.context - spec.new_tokens))
    both = windows(files, lead + spec.new_tokens, WINDOWS)
    prefixes, rests = [ids[:lead] for ids in both], [ids[lead:] for ids in both]
    found = [seen for seen in read(model, prefixes, rests) if isinstance(seen, Read)]
    assert len(found) == len(both), "both fit into the context"
    return rests, found


def _recalled(found: Sequence[Read], spec: Spec) -> dict[str, Aggregate]:
    """The share of the tokens that would be the text's own until one is not: of the greedy ones,
    or, where tokens are drawn, as expected."""
    kept = [
        np.cumprod(seen.greedy if spec.temperature == 0 else np.exp(seen.logprobs.astype(float)))
        for seen in found
    ]
    return {
        "recalled": _mean([float(item.mean()) for item in kept], share=True),
        "recalled_exactly": _mean([float(item[-1]) for item in kept], share=True),
    }


def _mean(values: Sequence[float | Missing], *, share: bool = False) -> Aggregate:
    return mean([number(value) for value in values], range(len(values)), share=share)
