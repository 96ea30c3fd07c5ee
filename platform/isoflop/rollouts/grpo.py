"""How does a pre-trained model learn what a rubric rewards? Group relative policy optimisation.

A step asks each prompt with several seeds, scores what comes back, and follows the gradient of

    - sum over rollouts i and their tokens t of  A_i log p(token t) / number of tokens

with the advantage A_i = r_i - mean reward of the rollouts of its prompt (Shao et al. 2024, without
the division by the group's standard deviation, and normalised by the tokens of the whole batch, as
Liu et al. 2025 argue). One update per batch: the policy is the one that wrote, so there is no ratio
to clip, and no KL term. Rollouts without a reward are left out.

The rollouts are those of `generate` and of a capture: same rows, ids, log probabilities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.rollouts.generate import Rollout, Sampling, generate
from isoflop.rollouts.prompts import Tokenizer, prompt_ids
from isoflop.rollouts.rewards import Task, Trace
from isoflop.rollouts.rubric import Rubric
from models.interface import Model


class Optimizer(Protocol):
    """What a step needs of one of torch's."""

    def step(self) -> object: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of every step."""

    samples: int = 8  # rollouts per prompt: a group
    new_tokens: int = 32
    temperature: float = 1.0
    clip: float = 1.0  # largest global gradient norm
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}; a group needs at least 2 to compare")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step saw, before its update."""

    step: int
    reward: float | None  # mean over the rollouts that have one
    entropy: float  # nats, mean over tokens: its fall is the price of the reward
    gradient_norm: float
    rollouts: int
    missing: int  # rollouts without a reward


def train(
    model: Model,
    optimizer: Optimizer,
    tasks: Sequence[Task],
    rubric: Rubric,
    tokenizer: Tokenizer,
    *,
    steps: int,
    settings: Settings,
    report: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """`steps` updates of the model. Equal arguments give equal steps, to the bit.

    Raises ValueError where `generate` does: prompts and `new_tokens` share the model's context.
    """
    found = []
    for number in range(steps):
        found.append(_step(model, optimizer, tasks, rubric, tokenizer, number, settings))
        report(found[-1])
    return found


def _step(
    model: Model,
    optimizer: Optimizer,
    tasks: Sequence[Task],
    rubric: Rubric,
    tokenizer: Tokenizer,
    number: int,
    settings: Settings,
) -> Step:
    ids = prompt_ids([task.prompt for task in tasks], tokenizer)
    seeds = [
        [_seed(settings.seed, number, task.prompt, sample) for sample in range(settings.samples)]
        for task in tasks
    ]
    sampling = Sampling(settings.temperature, settings.new_tokens, (tokenizer.end_of_text,))
    rows = generate(model, ids, seeds, sampling)
    traces = [trace_of(row, tasks[row.prompt_index], tokenizer) for row in rows]
    rewards = rubric.score(traces).rewards
    groups = [row.prompt_index for row in rows]
    advantages = relative(rewards, groups)
    loss = surrogate(model, rows, advantages, settings.temperature)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
    known = [reward for reward in rewards if reward is not None]
    return Step(
        step=number,
        reward=float(np.mean(known)) if known else None,
        entropy=float(np.concatenate([row.entropies for row in rows]).mean()),
        gradient_norm=float(norm),
        rollouts=len(rows),
        missing=len(rows) - len(known),
    )


def relative(
    rewards: Sequence[float | None], groups: Sequence[int] | NDArray[np.integer]
) -> NDArray[np.float32]:
    """Each reward less the mean of its group (R,); 0 where there is none: it moves nothing."""
    values = np.array([np.nan if reward is None else reward for reward in rewards])
    known, group = np.isfinite(values), np.asarray(groups)
    size = np.bincount(group[known], minlength=group.max() + 1)
    total = np.bincount(group[known], weights=values[known], minlength=group.max() + 1)
    means = total / np.maximum(size, 1)
    return np.where(known, values - means[group], 0).astype(np.float32)


def surrogate(
    model: Model, rows: Sequence[Rollout], advantages: NDArray[np.float32], temperature: float
) -> Tensor:
    """The scalar whose gradient is the policy's: of the distribution that was drawn from.

    Rows of B differ in length: they are padded behind their ends, where a causal model's earlier
    outputs do not look, and the padding's tokens weigh nothing.
    """
    device = next(model.parameters()).device
    longest = max(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    tokens = np.zeros((len(rows), longest), dtype=np.int64)
    weights = np.zeros((len(rows), longest), dtype=np.float32)
    for place, row in enumerate(rows):
        start, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.completion_ids)
        tokens[place, :end] = np.concatenate([row.prompt_ids, row.completion_ids])
        weights[place, start:end] = advantages[place]
    written = sum(len(row.completion_ids) for row in rows)
    read = torch.from_numpy(tokens).to(device)
    logits = model(read[:, :-1]).float() / temperature
    logprobs = logits.log_softmax(dim=-1).gather(2, read[:, 1:, None]).squeeze(2)
    loss: Tensor = -(torch.from_numpy(weights[:, 1:]).to(device) * logprobs).sum() / written
    return loss


def trace_of(row: Rollout, task: Task, tokenizer: Tokenizer) -> Trace:
    own = row.completion_ids[:-1] if row.stop == "stop" else row.completion_ids
    return Trace(
        task=task,
        completion=tokenizer.decode(own.tolist()),
        prompt_ids=row.prompt_ids,
        completion_ids=row.completion_ids,
        logprobs=row.logprobs,
        entropies=row.entropies,
        stop_condition=row.stop,
        sample=row.sample,
    )


def _seed(seed: int, step: int, prompt: str, sample: int) -> int:
    text = f"{seed}:{step}:{sample}:{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
