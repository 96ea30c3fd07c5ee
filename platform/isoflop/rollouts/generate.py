"""What does a model write after these prompts, once for each seed?

A row is one prompt with one seed. Rows are decoded side by side against a key-value cache: each
prompt is read once and its cache repeated over its seeds, logits are taken at the last position
only, and rows that have finished are dropped. Every row draws its random numbers from its own seed,
up front, so what it writes does not depend on which rows it is decoded with.

Prompts of nearly equal length share a batch: it starts from the shortest, and a longer prompt's
remaining tokens are fed in place of sampled ones. All rows so stand at the same position, and a
model needs no padding and no mask.

Letters: R rows, P prompts, S seeds per prompt, N steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.interface import Model

CHECK = 8  # steps between two looks at which rows have finished: each look waits for the device
COMPACT = 0.75  # rows are dropped once fewer than this share of them are still writing


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen, and when a rollout ends."""

    temperature: float  # 0 is greedy
    new_tokens: int
    stop_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0")
        if self.new_tokens < 1:
            raise ValueError(f"new_tokens is {self.new_tokens}; it must be at least 1")
        if any(token < 0 for token in self.stop_ids):
            raise ValueError(f"stop_ids is {self.stop_ids}; token ids are at least 0")


@dataclass(frozen=True, eq=False)
class Rollout:
    """One continuation of one prompt. The token that stopped it is its last one."""

    prompt_index: int
    sample: int  # which of the prompt's seeds
    prompt_ids: NDArray[np.int32]  # as it was fed: its last tokens, where it was too long
    completion_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]  # of each token, nats, under the model at temperature 1
    entropies: NDArray[np.float32]  # of the distribution it was drawn from, nats, temperature 1
    stop: Literal["stop", "length"]


def generate(
    model: Model,
    prompts: Sequence[NDArray[np.integer]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch: int = 256,
) -> list[Rollout]:
    """One rollout for every prompt and each of its seeds, in that order.

    A prompt longer than the context less `new_tokens` keeps its last tokens, so that all rollouts
    of a run have the same length and can be compared. At most `batch` rows are decoded at a time.
    The model's training modes and torch's global random state are left as they were.

    Raises ValueError if nothing of a prompt would fit, on an empty prompt (begin it with the end of
    text), on ids outside the vocabulary, and if there is not one list of seeds per prompt.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many lists of seeds, not {len(seeds)}")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    room = model.config.context - sampling.new_tokens
    if room < 1:
        raise ValueError(
            f"new_tokens is {sampling.new_tokens}, which leaves no room for a prompt in a context "
            f"of {model.config.context} tokens; it must be below that"
        )
    rows: list[Rollout] = []
    with _evaluating(model):
        for tasks in _batches(
            _tasks(prompts, seeds, room, model.config.vocab, batch), sampling, batch
        ):
            rows += _decode(model, tasks, sampling)
    return sorted(rows, key=lambda row: (row.prompt_index, row.sample))


@dataclass(frozen=True, eq=False)
class _Task:
    """Some of the seeds of one prompt: what is prefilled once."""

    prompt_index: int
    first_sample: int
    ids: NDArray[np.int64]
    seeds: tuple[int, ...]


def _tasks(
    prompts: Sequence[NDArray[np.integer]],
    seeds: Sequence[Sequence[int]],
    room: int,
    vocab: int,
    batch: int,
) -> list[_Task]:
    tasks = []
    for index, prompt in enumerate(prompts):
        ids = np.asarray(prompt)[-room:].astype(np.int64)
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"prompt {index} is empty; begin it with the end-of-text token")
        if ids.min() < 0 or ids.max() >= vocab:
            raise ValueError(f"prompt {index} holds ids outside the vocabulary of {vocab} tokens")
        for first in range(0, len(seeds[index]), batch):
            tasks.append(_Task(index, first, ids, tuple(seeds[index][first : first + batch])))
    return tasks


def _batches(tasks: list[_Task], sampling: Sampling, batch: int) -> Iterator[list[_Task]]:
    """Tasks with equally many seeds and nearly equal lengths, at most `batch` rows together.

    A prompt that is d tokens longer than its batch's shortest costs everyone d steps; a batch of
    its own would cost `new_tokens` steps. Half of that is where they part.
    """
    group: list[_Task] = []
    for task in sorted(tasks, key=lambda task: (len(task.seeds), len(task.ids))):
        if group and (
            len(task.seeds) != len(group[0].seeds)
            or (len(group) + 1) * len(task.seeds) > batch
            or len(task.ids) - len(group[0].ids) > sampling.new_tokens // 2
        ):
            yield group
            group = []
        group.append(task)
    if group:
        yield group


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is known of a batch before its first step; time runs along the first axis.

    Step t stands for the token at position `shortest + t`.
    """

    tasks: list[_Task]
    new_tokens: int

    @property
    def shortest(self) -> int:
        return len(self.tasks[0].ids)

    @property
    def steps(self) -> int:
        return len(self.tasks[-1].ids) - self.shortest + self.new_tokens

    @property
    def prefix(self) -> NDArray[np.int64]:
        """The tokens (P, shortest) that are read at once."""
        return np.stack([task.ids[: self.shortest] for task in self.tasks])

    @property
    def starts(self) -> NDArray[np.int64]:
        """The step (R,) at which each row begins to write its own tokens."""
        lengths = [len(task.ids) - self.shortest for task in self.tasks]
        return np.repeat(np.array(lengths), len(self.tasks[0].seeds))

    def forced(self) -> NDArray[np.int64]:
        """The prompts' remaining tokens (N, R), and -1 where the row writes its own."""
        tokens = np.full((self.steps, len(self.tasks)), -1, dtype=np.int64)
        for column, task in enumerate(self.tasks):
            rest = task.ids[self.shortest :]
            tokens[: len(rest), column] = rest
        return np.repeat(tokens, len(self.tasks[0].seeds), axis=1)

    def uniforms(self) -> NDArray[np.float32]:
        """Each row's random numbers (N, R) in [0, 1), from its own first token on."""
        drawn = np.zeros((self.steps, len(self.starts)), dtype=np.float32)
        seeds = [seed for task in self.tasks for seed in task.seeds]
        for row, (start, seed) in enumerate(zip(self.starts, seeds, strict=True)):
            values = np.random.default_rng(seed).random(self.new_tokens, dtype=np.float32)
            drawn[start : start + self.new_tokens, row] = values
        return drawn


def _decode(model: Model, tasks: list[_Task], sampling: Sampling) -> list[Rollout]:
    plan = _Plan(tasks, sampling.new_tokens)
    device = next(model.parameters()).device
    forced = torch.from_numpy(plan.forced()).to(device)
    uniforms = torch.from_numpy(plan.uniforms()).to(device)
    finish = torch.from_numpy(plan.starts + sampling.new_tokens).to(device)
    stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=device)
    seeds = len(tasks[0].seeds)

    written = torch.zeros_like(forced)
    logprobs, entropies = torch.zeros_like(uniforms), torch.zeros_like(uniforms)
    rows = torch.arange(forced.shape[1], device=device)  # those that are still decoded
    cache = model.new_cache(len(tasks), plan.shortest + plan.steps - 1)
    hidden = model.hidden(torch.from_numpy(plan.prefix).to(device), cache)
    logits = model.head(hidden[:, -1]).repeat_interleave(seeds, dim=0)
    cache = cache.expand(seeds)
    for step in range(plan.steps):
        token, logprob, entropy = _draw(logits, uniforms[step, rows], sampling.temperature)
        if step < plan.steps - sampling.new_tokens:  # some prompt has tokens left
            given = forced[step, rows]
            token = torch.where(given < 0, token, given)
        written[step, rows] = token
        logprobs[step, rows] = logprob
        entropies[step, rows] = entropy
        if step + 1 == plan.steps:
            break
        if step % CHECK == CHECK - 1:
            past = torch.where(forced[: step + 1, rows] < 0, written[: step + 1, rows], -1)
            done = torch.isin(past, stops).any(dim=0) | (finish[rows] <= step + 1)
            alive = torch.nonzero(~done).squeeze(1)
            if not len(alive):
                break
            if len(alive) < COMPACT * len(rows):
                cache = cache.keep(alive)
                rows, token = rows[alive], token[alive]
        logits = model.head(model.hidden(token.unsqueeze(1), cache)[:, -1])
    return _rows(plan, sampling, written, logprobs, entropies)


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """A token (R,) from logits (R, V) by inverting the distribution function at `uniform` (R,).

    Also its log probability and the entropy, both in nats and of the model's own distribution.
    """
    logits = logits.float()
    log_p = logits.log_softmax(dim=-1)
    p = log_p.exp()
    if temperature == 0:
        token = logits.argmax(dim=-1)
    else:
        weights = p if temperature == 1 else (logits / temperature).softmax(dim=-1)
        below = weights.cumsum(dim=-1)
        target = uniform.unsqueeze(1) * below[:, -1:]  # rounding may leave the sum beside 1
        token = torch.searchsorted(below, target, right=True).squeeze(1)
        token = token.clamp(max=logits.shape[-1] - 1)  # a diverged model's NaN lies past the end
    logprob = log_p.gather(1, token.unsqueeze(1)).squeeze(1)
    lowest = torch.finfo(log_p.dtype).min  # 0 log 0 is 0, where a model masks a token
    return token, logprob, -torch.linalg.vecdot(p, log_p.clamp(min=lowest))


def _rows(
    plan: _Plan, sampling: Sampling, written: Tensor, logprobs: Tensor, entropies: Tensor
) -> list[Rollout]:
    ids = written.cpu().numpy().astype(np.int32)
    measured = (logprobs.cpu().numpy(), entropies.cpu().numpy())
    owners = [(task, i) for task in plan.tasks for i in range(len(task.seeds))]
    rows = []
    for row, (start, (task, i)) in enumerate(zip(plan.starts, owners, strict=True)):
        own = slice(start, start + sampling.new_tokens)
        hits = np.flatnonzero(np.isin(ids[own, row], sampling.stop_ids))
        count = int(hits[0]) + 1 if len(hits) else sampling.new_tokens
        logprob, entropy = (values[own, row][:count].copy() for values in measured)
        rows.append(
            Rollout(
                prompt_index=task.prompt_index,
                sample=task.first_sample + i,
                prompt_ids=task.ids.astype(np.int32),
                completion_ids=ids[own, row][:count].copy(),
                logprobs=logprob,
                entropies=entropy,
                stop="stop" if len(hits) else "length",
            )
        )
    return rows


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """No gradients, no dropout, and every module back in the mode it had.

    Not `inference_mode`: a table that a model fills on first use could then not be trained with.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
