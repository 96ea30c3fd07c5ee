"""What do the tasks of an installed `verifiers` say of our rollouts?

They are asked in a process of their own, with an interpreter of their own if need be: the package
and ours need not share an environment. A task's scores come back as those of a rubric do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from isoflop.rollouts.rewards import Trace
from isoflop.rollouts.rubric import Scores
from isoflop.rollouts.verifiers import UNSCORED, read_scores, write_traces

WORKER = Path(__file__).with_name("outside_worker.py")


def score(
    traces: Sequence[Trace], taskset: str, *, python: str = sys.executable, seconds: float = 600
) -> Scores:
    """Every rollout scored by the task whose prompt it continues.

    `taskset`: "package.module:Class" of a v1 taskset that `python` can import. A rollout without
    such a task, or whose task fails, has no reward, and the reason. Raises ValueError if the
    process cannot load the taskset, or takes longer than `seconds`.
    """
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
        place = Path(folder)
        asked = write_traces(place, [(trace, UNSCORED) for trace in traces])
        answered = place / "scores.jsonl"
        # -P: beside the worker lies a file of ours that is called verifiers, too.
        command = [python, "-P", str(WORKER), taskset, str(asked), str(answered)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ValueError(f"taskset {taskset!r} took longer than {seconds:.0f} s") from None
        except OSError as error:
            raise ValueError(f"{python!r} cannot be started ({error})") from None
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise ValueError(f"taskset {taskset!r}: {said[-1] if said else 'its process died'}")
        rows = [read_scores(json.loads(line)) for line in answered.read_text().splitlines()]
    if len(rows) != len(traces):
        raise ValueError(f"taskset {taskset!r} answered {len(rows)} times for {len(traces)}")
    return Scores(tuple(rows), tuple(trace.task.prompt for trace in traces))
