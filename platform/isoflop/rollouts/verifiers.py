"""How do our rollouts read in the formats of Prime Intellect's `verifiers`, and theirs in ours?

    traces.jsonl                     v1: an episode a line, one trace of two messages in each
    results.jsonl + metadata.json    the classic API, until 0.3

The package is not imported: it is a hundred distributions, and each release has moved its classes.
What is written loads in its 0.4.0. Log probabilities there stand beside the tokens whose `mask` is
true, not beside all `token_ids`: a message may begin with tokens that the model did not sample.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.rollouts.rewards import Task, Trace
from isoflop.rollouts.rubric import Score

TRACES, RESULTS, METADATA = "traces.jsonl", "results.jsonl", "metadata.json"
UNSCORED = Score(None, {}, {})

Scored = tuple[Trace, Score]


def write_traces(folder: Path, scored: Sequence[Scored], *, name: str = "isoflop") -> Path:
    """`folder/traces.jsonl`, atomically: an episode for every rollout; `name`: of the prompts."""
    return _write_lines(folder / TRACES, (episode(trace, score, name) for trace, score in scored))


def episode(trace: Trace, score: Score, name: str) -> dict[str, Any]:
    """One rollout as a v1 episode: plain values."""
    state = trace.state
    key = f"{state.get('run')}:{state.get('step')}:{trace.task.prompt}:{trace.sample}"
    task = {
        "type": "Task",
        "data": {
            "id": trace.task.id or None,
            "prompt": trace.task.prompt,
            "answer": trace.task.answer,
            "info": dict(trace.task.info),
        },
    }
    made = {
        "id": _hash(key),
        "env": {"id": name},
        "task": task,
        "group": {"id": _hash(f"{state.get('run')}:{state.get('step')}:{trace.task.prompt}")},
        "ok": True,
        "traces": [_trace(trace, score, task, _hash(f"trace:{key}"))],
    }
    if "run" in state:
        step = int(state.get("step", 0))
        policy = {"start": step, "end": step}
        work = {"type": "eval", "step": step, "policy": policy}
        made["run"] = {"type": "train", "id": str(state["run"]), "work": work}
    return made


def _trace(trace: Trace, score: Score, task: dict[str, Any], key: str) -> dict[str, Any]:
    prompt, completion = trace.prompt_ids.tolist(), trace.completion_ids.tolist()
    asked = {
        "message": {"role": "user", "content": trace.task.prompt},
        "token_ids": prompt,
        "mask": [False] * len(prompt),
    }
    answered = {
        "parent": 0,
        "message": {"role": "assistant", "content": trace.completion},
        "sampled": True,
        "token_ids": completion,
        "mask": [True] * len(completion),
        "logprobs": _rounded(trace.logprobs),
        "entropies": _rounded(trace.entropies),
    }
    rewards, metrics = _split(score)
    return {
        "id": key,
        "task": task,
        "agent": {"config": {}},
        "nodes": [asked, answered],
        "rewards": rewards,
        "metrics": {**trace.metrics, **metrics},
        "info": {**trace.info, "sample": trace.sample, "state": trace.state},
        "is_completed": True,
        "ok": not score.errors,
        "stop_condition": trace.stop_condition,
        "errors": [
            {"type": "RewardError", "message": f"{part}: {reason}"}
            for part, reason in score.errors.items()
        ],
    }


def _split(score: Score) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Rewards with their weights, and metrics, which have none. A failure is null in both."""
    rewards: dict[str, Any] = {}
    metrics: dict[str, float | None] = {}
    for name, value in score.parts.items():
        weight = score.weights.get(name, 1.0)
        if weight:
            rewards[name] = None if value is None else {"score": value, "weight": weight}
        else:
            metrics[name] = value
    return rewards, metrics


def read_traces(path: Path) -> list[Scored]:
    """The rollouts of a `traces.jsonl` (or of the folder that holds one), whoever wrote it.

    The last sampled message of each trace is the completion, all before it the prompt. Raises
    ValueError that names the line which is no episode, or whose log probabilities do not match.
    """
    file = path / TRACES if path.is_dir() else path
    found = []
    for number, record in _lines(file):
        try:
            traces = record["traces"]
            found += [_from_trace(trace, record) for trace in traces]
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{file}, line {number}: no episode ({error!r})") from error
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
    return found


def _from_trace(record: Mapping[str, Any], episode: Mapping[str, Any]) -> Scored:
    nodes = record["nodes"]
    last = max(index for index, node in enumerate(nodes) if node.get("sampled"))
    path, at = [], nodes[last].get("parent")
    while at is not None:
        path.append(nodes[at])
        at = nodes[at].get("parent")
    before, answer = path[::-1], nodes[last]
    ids, mask = np.array(answer.get("token_ids", []), np.int32), answer.get("mask", [])
    if len(mask) != len(ids):
        raise ValueError(f"{len(mask)} mask entries for {len(ids)} tokens")
    sampled = np.array(mask, dtype=np.bool_)
    lead = [token for node in before for token in node.get("token_ids", [])]
    scaffold = ids[: int(np.argmax(sampled))] if sampled.any() else ids
    data = record["task"]["data"]
    run = episode.get("run") or {}
    info = dict(record.get("info") or {})
    state = {"run": run.get("id"), "step": (run.get("work") or {}).get("step")}
    state |= info.pop("state", {}) or {}
    trace = Trace(
        task=Task(
            prompt="".join(_content(node["message"]) for node in before),
            answer=str(data.get("answer") or ""),
            info=data.get("info") or {},
            id=str(data.get("id") or ""),
        ),
        completion=_content(answer["message"]),
        prompt_ids=np.array([*lead, *scaffold.tolist()], dtype=np.int32),
        completion_ids=ids[sampled],
        logprobs=_beside(answer.get("logprobs"), int(sampled.sum()), "logprobs"),
        entropies=_beside(answer.get("entropies"), int(sampled.sum()), "entropies"),
        stop_condition=str(record.get("stop_condition") or ""),
        sample=int(info.pop("sample", 0)),
        state={name: value for name, value in state.items() if value is not None},
        info=info,
    )
    return trace, _score(record.get("rewards") or {}, record.get("metrics") or {})


def _beside(values: Sequence[float] | None, sampled: int, name: str) -> Any:
    """One for each sampled token, or none at all."""
    if values and len(values) != sampled:
        raise ValueError(f"{len(values)} {name} for {sampled} sampled tokens")
    return np.array(values or [], dtype=np.float32)


def _score(rewards: Mapping[str, Any], metrics: Mapping[str, float | None]) -> Score:
    parts: dict[str, float | None] = dict(metrics)
    weights = dict.fromkeys(metrics, 0.0)
    total: float | None = 0.0 if rewards else None
    for name, value in rewards.items():
        parts[name] = None if value is None else float(value["score"])
        weights[name] = 1.0 if value is None else float(value.get("weight", 1.0))
        part = parts[name]
        total = None if total is None or part is None else total + weights[name] * part
    errors = {name: "no value in the file" for name, value in parts.items() if value is None}
    return Score(total, parts, errors, weights)


def read_scores(record: Mapping[str, Any]) -> Score:
    """The `rewards` and `metrics` of a v1 trace; its `error`, if one is named, ends the reward."""
    score = _score(record["rewards"], record["metrics"])
    if not record.get("error"):
        return score
    return Score(None, score.parts, {"task": str(record["error"])}, score.weights)


def write_results(
    folder: Path, scored: Sequence[Scored], *, name: str, model: str, sampling: Mapping[str, Any]
) -> Path:
    """`results.jsonl` and `metadata.json` of the classic API; `model`: how the run is called."""
    prompts = list(dict.fromkeys(trace.task.prompt for trace, _ in scored))
    number = {prompt: index for index, prompt in enumerate(prompts)}
    rows = [_result(trace, score, number[trace.task.prompt]) for trace, score in scored]
    known = [row["reward"] for row in rows if row["reward"] is not None]
    names = dict.fromkeys(part for row in rows for part in row["metrics"])
    metadata = {
        "env_id": name,
        "env_args": {},
        "model": model,
        "base_url": "",
        "num_examples": len(prompts),
        "rollouts_per_example": len(rows) // max(1, len(prompts)),
        "sampling_args": dict(sampling),
        "avg_reward": sum(known) / len(known) if known else None,
        "avg_metrics": {part: _average(row["metrics"].get(part) for row in rows) for part in names},
        "avg_error": sum(row["error"] is not None for row in rows) / max(1, len(rows)),
        "state_columns": ["trajectory"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / METADATA, [metadata])
    return _write_lines(folder / RESULTS, rows)


def _result(trace: Trace, score: Score, example: int) -> dict[str, Any]:
    prompt, completion = trace.prompt_ids.tolist(), trace.completion_ids.tolist()
    tokens = {
        "prompt_ids": prompt,
        "prompt_mask": [0] * len(prompt),
        "completion_ids": completion,
        "completion_mask": [1] * len(completion),
        "completion_logprobs": _rounded(trace.logprobs),
    }
    error = "; ".join(f"{part}: {reason}" for part, reason in score.errors.items()) or None
    parts = {part: value for part, value in score.parts.items() if value is not None}
    return {
        **parts,
        "example_id": example,
        "prompt": [{"role": "user", "content": trace.task.prompt}],
        "completion": [{"role": "assistant", "content": trace.completion}],
        "answer": trace.task.answer,
        "info": dict(trace.task.info),
        "reward": score.reward,
        "metrics": parts,
        "error": error,
        "is_completed": True,
        "is_truncated": trace.is_truncated,
        "stop_condition": trace.stop_condition,
        "trajectory": [{"tokens": tokens}],
    }


def read_results(folder: Path) -> list[Scored]:
    """The rollouts of a classic evaluation's folder. Raises ValueError naming a line that is none.

    Samples of one example are numbered in the order of the file.
    """
    file = folder / RESULTS if folder.is_dir() else folder
    seen: dict[Any, int] = {}
    found = []
    for number, row in _lines(file):
        try:
            sample = seen.get(row["example_id"], 0)
            seen[row["example_id"]] = sample + 1
            found.append(_from_result(row, sample))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{file}, line {number}: no result ({error!r})") from error
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
    return found


def _from_result(row: Mapping[str, Any], sample: int) -> Scored:
    steps = row.get("trajectory") or [{}]
    tokens = steps[-1].get("tokens") or {}
    mask = np.array(tokens.get("completion_mask", []), dtype=np.bool_)
    ids = np.array(tokens.get("completion_ids", []), dtype=np.int32)
    logprobs = np.array(tokens.get("completion_logprobs", []), dtype=np.float32)
    if not len(mask) == len(ids) == len(logprobs):
        raise ValueError(f"{len(ids)} tokens, {len(mask)} mask entries, {len(logprobs)} logprobs")
    trace = Trace(
        task=Task(
            prompt=_text(row["prompt"]),
            answer=str(row.get("answer") or ""),
            info=row["info"] if isinstance(row.get("info"), Mapping) else {},
            id=str(row["example_id"]),
        ),
        completion=_text(row["completion"]),
        prompt_ids=np.array(tokens.get("prompt_ids", []), dtype=np.int32),
        completion_ids=ids[mask],
        logprobs=logprobs[mask],
        entropies=np.array([], dtype=np.float32),
        stop_condition=str(row.get("stop_condition") or ""),
        sample=sample,
    )
    reward = row.get("reward")
    parts = {name: float(value) for name, value in (row.get("metrics") or {}).items()}
    errors = {"rollout": str(row["error"])} if row.get("error") else {}
    return trace, Score(None if reward is None else float(reward), parts, errors)


def _text(messages: Any) -> str:
    """Of a list of messages, or the text itself, as the completions mode had it."""
    return messages if isinstance(messages, str) else "".join(_content(m) for m in messages)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _average(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rounded(values: Any) -> list[float]:
    """JSON has no infinity: the least that a float32 holds stands for it."""
    finite = np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0.0)
    return [round(float(value), 5) for value in finite]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    if not file.is_file():
        raise ValueError(f"there is no {file}")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: no JSON ({error})") from error


def _write_lines(path: Path, records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, allow_nan=False, default=_plain) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def _plain(value: Any) -> Any:
    """Numbers of numpy and pandas, which the rows of a table hold."""
    return value.item() if hasattr(value, "item") else str(value)
