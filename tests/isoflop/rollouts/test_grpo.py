"""Does the reward rise, and is the gradient the one that the definition says?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoflop.rollouts.generate import Sampling, generate
from isoflop.rollouts.grpo import Settings, Step, relative, surrogate, train
from isoflop.rollouts.rewards import Task
from isoflop.rollouts.rubric import Rubric
from models import GPT2Config, LlamaConfig
from models.interface import Config, Model


class Letters:
    """a to o, and 15 for the end of text."""

    name = "letters"
    end_of_text = 15

    def encode(self, text: str) -> NDArray[np.uint32]:
        return np.array([ord(letter) - 97 for letter in text], dtype=np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(chr(97 + i) for i in ids)


def share_of_a(completion: str) -> float:
    return completion.count("a") / max(1, len(completion))


def build(config: Config) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build()


GPT2 = GPT2Config(vocab=16, context=16, width=16, depth=1, heads=2)
TASKS = [Task(prompt="bc"), Task(prompt="d"), Task(prompt="")]


@pytest.mark.parametrize(
    "config", [GPT2, LlamaConfig(vocab=16, context=16, width=16, depth=1, heads=2)]
)
def test_the_reward_rises(config: Config) -> None:
    def taught() -> list[Step]:
        model = build(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return train(
            model, optimizer, TASKS, Rubric([share_of_a]), Letters(), steps=25,
            settings=Settings(samples=8, new_tokens=10),
        )  # fmt: skip

    steps = taught()
    rewards = [step.reward or 0 for step in steps]
    assert np.mean(rewards[:3]) < 0.2 and np.mean(rewards[-3:]) > 0.6
    assert steps[-1].entropy < steps[0].entropy
    assert {step.rollouts for step in steps} == {24}
    assert taught() == steps, "equal arguments, equal steps"


def test_advantages_are_relative_to_the_group_and_nothing_without_a_reward() -> None:
    found = relative([1.0, 0.0, None, 5.0, 7.0, None], [0, 0, 0, 1, 1, 2])
    np.testing.assert_allclose(found, [0.5, -0.5, 0, -1, 1, 0])


def test_the_gradient_is_that_of_each_rollout_by_itself() -> None:
    """Padding, batching and the shift by one are right if single rows without any agree."""
    model = build(GPT2)
    seeds = [[1, 2], [3, 4]]
    prompts = [np.array([1, 2, 3, 4, 5]), np.array([6])]
    rows = generate(model, prompts, seeds, Sampling(1.0, 8, (15, 3, 7)))
    assert len({len(row.completion_ids) for row in rows}) > 1, "or nothing is padded"
    advantages = np.array([1, -0.5, 0.25, 2], np.float32)
    surrogate(model, rows, advantages, 1.0).backward()  # type: ignore[no-untyped-call]
    together = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    tokens = sum(len(row.completion_ids) for row in rows)
    for row, advantage in zip(rows, advantages, strict=True):
        ids = torch.tensor([*row.prompt_ids.tolist(), *row.completion_ids.tolist()])
        logprobs = model(ids[None, :-1])[0].log_softmax(-1)
        own = logprobs.gather(1, ids[1:, None])[-len(row.completion_ids) :, 0]
        np.testing.assert_allclose(own.detach(), row.logprobs, atol=1e-4)
        (-advantage * own.sum() / tokens).backward()
    alone = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_settings_that_cannot_learn_are_refused() -> None:
    with pytest.raises(ValueError, match="samples is 1"):
        Settings(samples=1)
    with pytest.raises(ValueError, match="temperature is 0"):
        Settings(temperature=0)
