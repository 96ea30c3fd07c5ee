"""What does a taskset of `verifiers` v1 say of the traces in a file? A program of its own.

    python outside_worker.py package.module:Class traces.jsonl scores.jsonl

Runs where `verifiers` is installed and isoflop need not be: it imports nothing of isoflop.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(taskset: str, asked: Path, answered: Path) -> None:
    """Writes one line of rewards, metrics and errors for every line of `asked`."""
    tasks = load(taskset)
    with asked.open(encoding="utf-8") as file:
        episodes = [json.loads(line) for line in file]
    results = asyncio.run(_all(tasks, episodes))
    answered.write_text("".join(json.dumps(result) + "\n" for result in results))


def load(taskset: str) -> dict[str, Any]:
    """The tasks of a taskset by the text of their prompts."""
    from verifiers import v1 as vf

    module, _, name = taskset.partition(":")
    if not name:
        raise SystemExit(f"{taskset!r} names no class; it must be package.module:Class")
    kind = getattr(importlib.import_module(module), name)
    made = kind(vf.TasksetConfig(id=taskset)) if issubclass(kind, vf.Taskset) else kind()
    return {task.data.prompt_text: task for task in made.load()}


async def _all(tasks: dict[str, Any], episodes: list[Any]) -> list[dict[str, Any]]:
    return [await _one(tasks, record["traces"][0]) for record in episodes]


async def _one(tasks: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    from verifiers import v1 as vf

    task = tasks.get(record["task"]["data"]["prompt"])
    if task is None:
        return {"rewards": {}, "metrics": {}, "error": "no task has this prompt"}
    trace = vf.WireTrace.model_validate({**record, "rewards": {}, "metrics": {}, "errors": []})
    error = None
    try:
        await task.score(trace)
    except Exception as failure:  # whatever a task of somebody else raises is a fact about it
        error = f"{type(failure).__name__}: {failure}"
    rewards = {
        name: None if reward is None else {"score": reward.score, "weight": reward.weight}
        for name, reward in trace.rewards.items()
    }
    return {"rewards": rewards, "metrics": dict(trace.metrics), "error": error}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
