"""Do our rollouts survive the formats of `verifiers`, and do theirs keep numbers beside tokens?"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.rollouts import outside
from isoflop.rollouts.rewards import Task, Trace
from isoflop.rollouts.rubric import Rubric, metric
from isoflop.rollouts.verifiers import (
    Scored,
    episode,
    read_results,
    read_traces,
    write_results,
    write_traces,
)

INSTALLED = importlib.util.find_spec("verifiers") is not None


def short(completion: str) -> float:
    if completion == "bad":
        raise ValueError("bad")
    return 1.0 if len(completion) < 4 else 0.0


@metric
def letters(completion: str) -> int:
    return len(completion)


def made(completion: str, prompt: str = "say: ", sample: int = 0) -> Trace:
    ids = np.frombuffer(completion.encode(), np.uint8).astype(np.int32)
    return Trace(
        task=Task(prompt=prompt, answer="x", info={"kind": "toy"}, id="p1"),
        completion=completion,
        prompt_ids=np.array([9, 8, 7], np.int32),
        completion_ids=ids,
        logprobs=-np.arange(1, len(ids) + 1, dtype=np.float32),
        entropies=np.full(len(ids), 0.5, np.float32),
        stop_condition="length",
        sample=sample,
        state={"run": "abc", "step": 12},
    )


def scored() -> list[Scored]:
    traces = [made("ab"), made("abcdef", sample=1), made("bad", prompt="")]
    scores = Rubric([(short, 0.5), letters]).score(traces)
    return list(zip(traces, scores.rows, strict=True))


def same(one: Trace, other: Trace) -> None:
    for name in ("prompt", "answer", "info"):
        assert getattr(one.task, name) == getattr(other.task, name)
    assert one.completion == other.completion
    for name in ("prompt_ids", "completion_ids", "logprobs"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name))


def test_traces_come_back(tmp_path: Path) -> None:
    before = scored()
    write_traces(tmp_path, before, name="toy")
    after = read_traces(tmp_path)
    assert len(after) == 3
    for (trace, score), (found, again) in zip(before, after, strict=True):
        same(trace, found)
        assert (found.sample, found.state) == (trace.sample, trace.state)
        assert again.reward == score.reward and again.parts == score.parts
    assert [score.reward for _, score in after] == [0.5, 0.0, None]


def test_equal_rollouts_have_equal_ids() -> None:
    (trace, score), (other, _), _ = scored()
    assert episode(trace, score, "toy") == episode(trace, score, "toy")
    assert episode(trace, score, "toy")["id"] != episode(other, score, "toy")["id"]
    assert episode(trace, score, "toy")["group"] == episode(other, score, "toy")["group"], (
        "samples of one prompt are one group"
    )


def foreign(mask: list[bool], logprobs: list[float]) -> str:
    """A trace as a chat model leaves it: its message begins with tokens of the template."""
    nodes = [
        {"message": {"role": "system", "content": "Be brief. "}, "token_ids": [1], "mask": [False]},
        {"parent": 0, "message": {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
         "token_ids": [2, 3], "mask": [False, False]},
        {"parent": 1, "message": {"role": "assistant", "content": "Yes"}, "sampled": True,
         "token_ids": [50, 51, 60, 61], "mask": mask, "logprobs": logprobs},
    ]  # fmt: skip
    trace = {"task": {"type": "T", "data": {"prompt": "Hi"}}, "nodes": nodes,
             "rewards": {"right": {"score": 0.5, "weight": 2.0}}, "metrics": {}}  # fmt: skip
    return json.dumps({"id": "e", "task": trace["task"], "traces": [trace]}) + "\n"


def test_logprobs_stand_beside_sampled_tokens_not_all_tokens(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(foreign([False, False, True, True], [-0.1, -0.2]))
    ((trace, score),) = read_traces(file)
    assert trace.completion_ids.tolist() == [60, 61]
    assert trace.prompt_ids.tolist() == [1, 2, 3, 50, 51]
    np.testing.assert_allclose(trace.logprobs, [-0.1, -0.2])
    assert (trace.task.prompt, trace.completion, score.reward) == ("Be brief. Hi", "Yes", 1.0)
    file.write_text(foreign([False, False, True, True], [-0.1, -0.2, -0.3, -0.4]))
    with pytest.raises(ValueError, match=r"line 1: 4 logprobs for 2 sampled tokens"):
        read_traces(file)


def test_results_come_back(tmp_path: Path) -> None:
    before = scored()
    sampling = {"temperature": 1.0, "max_tokens": 8}
    write_results(tmp_path, before, name="toy", model="abc@12", sampling=sampling)
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert (metadata["num_examples"], metadata["avg_reward"]) == (2, 0.25)
    assert metadata["avg_error"] == pytest.approx(1 / 3)
    after = read_results(tmp_path)
    for (trace, score), (found, again) in zip(before, after, strict=True):
        same(trace, found)
        assert again.reward == score.reward
    assert [trace.sample for trace, _ in after] == [0, 1, 0]


@pytest.mark.parametrize("line", ["{", "{}", '{"traces": [{"nodes": []}]}', '{"traces": 3}', "[]"])
def test_a_line_that_is_no_episode_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(foreign([False, False, True, True], [-1, -2]) + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_traces(file)


TASKS = """
from verifiers import v1 as vf

class Data(vf.TaskData):
    answer: str = ""

class Toy(vf.Task[Data]):
    @vf.reward(weight=2.0)
    async def right(self, task: Data, trace: vf.Trace) -> float:
        if trace.last_reply == "bad":
            raise RuntimeError("bad")
        return float(trace.last_reply == task.answer)

class Tasks(vf.Taskset[Toy, vf.TasksetConfig]):
    def load(self):
        yield Toy(Data(prompt="say: ", answer="ab"))
"""


def test_a_process_that_cannot_score_says_why() -> None:
    with pytest.raises(ValueError, match="cannot be started"):
        outside.score([made("ab")], "nowhere:Tasks", python="/nowhere/python")
    with pytest.raises(ValueError, match="nowhere"):
        outside.score([made("ab")], "nowhere:Tasks", python=sys.executable)


@pytest.mark.skipif(not INSTALLED, reason="verifiers is not installed")
def test_its_tasks_score_our_rollouts(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "toy_tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    traces = [made("ab"), made("abc"), made("bad"), made("ab", prompt="else")]
    scores = outside.score(traces, "toy_tasks:Tasks")
    assert scores.rewards == [2.0, 0.0, None, None]
    assert "no task has this prompt" in scores.rows[3].errors["task"]


@pytest.mark.skipif(not INSTALLED, reason="verifiers is not installed")
def test_it_loads_what_we_write(tmp_path: Path) -> None:
    from verifiers import v1 as vf

    for line in write_traces(tmp_path, scored(), name="toy").read_text().splitlines():
        loaded = vf.WireEpisode.model_validate_json(line)
        branch = loaded.traces[0].branches[0]
        assert len(branch.sampled_mask) == len(branch.token_ids)
        own = [
            x for x, sampled in zip(branch.logprobs, branch.sampled_mask, strict=True) if sampled
        ]
        assert own[:2] == [-1.0, -2.0]
