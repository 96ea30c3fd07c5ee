"""What are rollouts worth that are there already?

A rubric, or a taskset of `verifiers` in a process of its own (`outside`), is asked of every row of
a run's captures. Its rewards go into the rows, in place of those that they had: the page, the
terminal and the export show them as they show metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from isoflop.rollouts import rows
from isoflop.rollouts.groups import pass_at
from isoflop.rollouts.rewards import Task, Trace, of_row
from isoflop.rollouts.rubric import Scores
from isoflop.rollouts.statistics import Aggregate

Scorer = Callable[[Sequence[Trace]], Scores]


def regard(
    folder: Path,
    scorer: Scorer,
    tasks: Sequence[Task] = (),
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Write what `scorer` says of all rollouts of a run's folder into their rows; their number.

    `tasks`: answers and infos by the prompts' texts, where the rows lack them. Raises ValueError
    where there are no rollouts.
    """
    import pyarrow.parquet as pq

    files = sorted((folder / "rollouts").glob("step-*.parquet"))
    if not files:
        raise ValueError(f"{folder} has no rollouts to reward")
    known = {task.prompt: task for task in tasks}
    count = 0
    for file in files:
        table = pq.ParquetFile(file).read()
        traces = []
        for row in table.to_pylist():
            task = known.get(row["prompt"])
            traces.append(of_row(row, task.answer, task.info) if task else of_row(row))
        scores = scorer(traces)
        rows.write(rows.rewarded(table, scores), file)
        count += len(traces)
        for line in told(scores):
            say(f"{file.name}  {line}")
    return count


def told(scores: Scores) -> Iterator[str]:
    """Each value with its interval, how often it failed, and pass@k of what is 0 or 1."""
    failures = scores.failures
    for name, found in scores.aggregates().items():
        plain = name.removeprefix("reward.")
        missing = failures.get(plain, 0) if plain != "reward" else found.missing
        lost = f", {missing} of {len(scores.rows)} without a value" if missing else ""
        yield f"{plain} {_text(found)}{lost}"
    for name, values in scores.columns().items():
        if {value for value in values if value is not None} <= {0.0, 1.0}:
            yield from _passed(name.removeprefix("reward."), values, scores.prompts)


def _passed(name: str, values: Sequence[float | None], prompts: Sequence[str]) -> Iterator[str]:
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    seeds = len(prompts) // max(1, len(number))
    flags = [None if value is None else value == 1 for value in values]
    groups = [number[prompt] for prompt in prompts]
    found = {k: pass_at(k, flags, groups) for k in sorted({1, seeds}) if k}
    said = ", ".join(f"pass@{k} {_text(one)}" for k, one in found.items())
    yield f"{name}: {said}"


def _text(found: Aggregate) -> str:
    if found.value is None:
        return "none"
    ends = "" if found.low is None else f" [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.value:.3g}{ends}"
