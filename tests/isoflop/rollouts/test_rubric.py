"""Does a rubric call every function as it asks to be called, and never take a failure for a 0?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from isoflop.rollouts.rewards import Task, Trace, check, of_row
from isoflop.rollouts.rubric import Rubric, metric, reward


def made(completion: str = "four", answer: str = "four", **changes: Any) -> Trace:
    values: dict[str, Any] = {
        "task": Task(prompt="2 + 2 = ", answer=answer, info={"hard": False}, id="p"),
        "completion": completion,
        "prompt_ids": np.array([1, 2], np.int32),
        "completion_ids": np.array([3, 4, 5], np.int32),
        "logprobs": np.array([-0.5, -0.25, -1], np.float32),
        "entropies": np.array([1, 2, 3], np.float32),
        "stop_condition": "stop",
        "state": {"run": "r", "step": 7},
        "metrics": {"loop": 0.0},
    }
    return Trace(**{**values, **changes})


def exact(completion: str, answer: str) -> bool:
    return completion == answer


async def sure(task: Task, trace: Trace) -> dict[str, float]:
    assert task.answer == trace.task.data.answer
    return {"mean": float(trace.logprobs.mean()), "loop": trace.metrics["loop"]}


@metric
def words(completion: str, **rest: Any) -> int:
    assert set(rest) == {"prompt", "answer", "state", "info"}
    return len(completion.split())


@reward(weight=2)
def fails_on_five(completion: str, state: dict[str, Any], info: dict[str, Any]) -> float:
    assert state["step"] == 7 and info == {"hard": False}
    if completion == "five":
        raise RuntimeError("no five")
    return 0.5


def test_both_conventions_weigh_into_one_reward() -> None:
    scores = Rubric([exact, (sure, 4.0), words, fails_on_five]).score([made(), made("three")])
    first, second = scores.rows
    assert first.parts == pytest.approx(
        {"exact": 1, "mean": -1.75 / 3, "loop": 0, "words": 1, "fails_on_five": 0.5}
    )
    assert first.reward == pytest.approx(1 + 4 * -1.75 / 3 + 2 * 0.5)
    assert first.reward is not None and second.reward == pytest.approx(first.reward - 1)
    assert first.weights == {"exact": 1, "mean": 4, "loop": 4, "words": 0, "fails_on_five": 2}


def test_a_failure_is_null_and_counted_never_zero() -> None:
    rubric = Rubric([fails_on_five, words])
    scores = rubric.score([made("five"), made("six"), made("five")])
    assert scores.rewards == [None, 1.0, None]
    assert scores.failures == {"fails_on_five": 2}
    assert scores.rows[0].errors == {"fails_on_five": "RuntimeError: no five"}
    assert scores.columns()["reward.words"] == [1.0, 1.0, 1.0]
    found = scores.aggregates()["reward"]
    assert (found.value, found.rollouts, found.missing) == (1.0, 1, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", [1]])
def test_what_is_no_number_is_a_failure(value: Any) -> None:
    def odd() -> Any:
        return value

    (row,) = Rubric([odd]).score([made()]).rows
    assert row.reward is None and row.parts == {"odd": None} and list(row.errors) == ["odd"]


def test_a_metric_that_fails_leaves_the_reward() -> None:
    def broken() -> float:
        raise KeyError("x")

    (row,) = Rubric([exact, (broken, 0.0)]).score([made()]).rows
    assert row.reward == 1.0 and list(row.errors) == ["broken"]


def test_what_nobody_can_fill_is_refused() -> None:
    def asks(completion: str, runtime: object) -> float:
        return 0.0

    def mixes(trace: Trace, answer: str) -> float:
        return 0.0

    with pytest.raises(ValueError, match="'runtime'; it may ask for prompt, completion"):
        Rubric([asks])
    with pytest.raises(ValueError, match="mixes two conventions"):
        check(mixes)
    with pytest.raises(ValueError, match="'exact' twice"):
        Rubric([exact, (exact, 2.0)])
    with pytest.raises(ValueError, match="at least one"):
        Rubric([])


def test_rows_of_a_capture_are_scored() -> None:
    row = {
        "run": "r", "step": 7, "prompt": "2 + 2 = ", "prompt_id": "p", "sample_id": 3,
        "prompt_ids": [1], "completion_ids": [2, 3], "logprobs": [-1.0, -2.0],
        "entropies": [1.0, 1.0], "text": "four", "stop": "length", "m.loop": 0.0,
        "m.onset": None, "m.nan": float("nan"),
    }  # fmt: skip
    trace = of_row(row)
    assert trace.is_truncated and trace.sample == 3 and trace.metrics == {"loop": 0.0}
    assert Rubric([exact]).score_rows([row], {"2 + 2 = ": "four"}).rewards == [1.0]
