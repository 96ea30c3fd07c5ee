"""What has a study recorded so far? One row per run: the source of every fit, figure and report.

Rows come from the run folders, so a run that failed, or has not been started, has its row too.
MLflow holds the same numbers for looking at; nothing is ever read back from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.data import known
from isoflop.orchestration.job import FINAL, Job, result
from isoflop.run import Run

if TYPE_CHECKING:
    import pandas as pd

RESULTS = (
    "loss", "best_loss", "bits_per_byte", "train_loss", "seconds", "tokens_per_second",
    "utilisation",
)  # fmt: skip


def described(run: Run, unique_tokens: int) -> dict[str, Any]:
    """What is known of a resolved run before it starts: sizes, tokens, FLOPs by three conventions.

    Everything is a flat number or string, comparable between runs.
    """
    assert run.tokens is not None
    count, tokens = run.model.parameters(), run.tokens
    shape = dict(_flat(asdict(run.model), "model"))
    return {
        "model": run.model.name,
        **shape,
        **{f"params_{name}": size for name, size in asdict(count).items()},
        "tokens": tokens,
        "unique_tokens": unique_tokens,
        "epochs": tokens / unique_tokens,
        "steps": run.steps,
        "batch_tokens": run.batch_tokens,
        "optimizer": run.optimizer.name,
        "learning_rate": run.optimizer.lr,
        "weight_decay": run.optimizer.weight_decay,
        "beta2": run.optimizer.betas[1],
        "decay": run.schedule.decay,
        "warmup": run.schedule.warmup,
        "seed": run.seed,
        "tokenizer": run.data.tokenizer,
        "text": run.data.fingerprint,
        "flops": float(run.training_flops),
        **_flops_by_part(run),
        "flops_if_dense": _flops_if_dense(run),
        "flops_6nd_all": 6.0 * count.all * tokens,
        "flops_6nd_without_embeddings": 6.0 * count.without_embeddings * tokens,
    }


def _flops_by_part(run: Run) -> dict[str, float]:
    """Training FLOPs of the linear maps, of attention and of the head, which add up to `flops`."""
    count, tokens = run.model.flops_per_token(), run.steps * run.batch_tokens
    parts = {"body": count.body, "attention": count.attention, "head": count.head}
    return {f"flops_{name}": 3.0 * part * tokens for name, part in parts.items()}


def _flops_if_dense(run: Run) -> float:
    """Training FLOPs if each token passed through every expert, where experts are routed."""
    count = run.model.parameters()
    idle = 6.0 * (count.all - count.active) * run.steps * run.batch_tokens
    return float(run.training_flops) + idle


def _flat(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Every value that is set, by its path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.{name}")
        elif value is not None:
            yield f"{path}.{name}", value


def table(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row per job, whatever became of it (`status`: finished, diverged, failed, stopped,
    missing).
    """
    import pandas as pd

    return pd.DataFrame([_row(job) for job in jobs])


def _row(job: Job) -> dict[str, Any]:
    ended = result(job.folder) or {"status": "missing"}
    return {
        "run": job.run.identity,
        "label": job.label,
        "study": job.study,
        "status": ended["status"],
        "error": ended.get("error"),
        **{f"axis.{name}": value for name, value in job.axes.items()},
        **described(job.run, job.prepared.train_tokens),
        **ended.get("data", {}),  # exact, where the sizes of the text are not
        **{name: ended.get(name) for name in RESULTS},
        **_floor(job.run),
        "flops_shared": _shared(job.run, ended),
        "flops_recomputed": _recomputed(job.run) if ended.get("checkpointing") else 0.0,
        "noise_scale": ended.get("noise_scale"),
        "capture_seconds": ended.get("capture_seconds"),
        "capture_share": ended.get("capture_share"),  # of the training time; see Rollouts.budget
        "captures_skipped": ended.get("captures_skipped"),
        "captures_later": ended.get("captures_later", 0),  # made when the study's runs were over
        "captures_waiting": len(ended.get("captures_waiting", ())),
        "later_seconds": ended.get("later_seconds", 0.0),
        "evaluation_seconds": ended.get("evaluation_seconds"),
        "started": ended.get("started"),
        "ended": ended.get("ended"),
        "device": ended.get("device"),
        "workers": ended.get("workers"),
        "host": ended.get("host"),
        "code": ended.get("versions", {}).get("code"),
        **ended.get("rollouts", {}),
    }


def _floor(run: Run) -> dict[str, float]:
    """The entropy of a text that is known to have one: what no honest run ends below."""
    if not run.data.source.startswith(known.PREFIX):
        return {}
    return {"floor_bits_per_byte": known.named(run.data.source).nats_per_byte / math.log(2)}


def _shared(run: Run, ended: Mapping[str, Any]) -> float:
    """FLOPs of a trunk that another run trained; `flops` counts them as if alone."""
    steps = ended.get("shared_steps") or 0
    return float(run.model.flops_per_token().training * steps * run.batch_tokens)


def _recomputed(run: Run) -> float:
    """FLOPs that activation checkpointing adds, which `flops` does not count."""
    return float(run.model.flops_per_token().recomputed * run.steps * run.batch_tokens)


def curves(jobs: Sequence[Job]) -> dict[str, pd.DataFrame]:
    """Every logged record of each run that has any, by identity; NaN where a metric was not
    measured.
    """
    import pandas as pd

    histories = {job.run.identity: records(job.folder) for job in jobs}
    return {run: pd.DataFrame(history) for run, history in histories.items() if history}


def records(folder: Path) -> list[dict[str, float]]:
    """Of the whole run, or of an unfinished one up to its newest checkpoint that can be read: one
    may be torn, or make room for another while a running study is reported on.
    """
    checkpoints = sorted(folder.glob("checkpoints/step-*/state.json"), reverse=True)
    for path in (folder / "history.json", *checkpoints):
        try:
            values = json.loads(path.read_text())
            history: list[dict[str, float]]
            history = values if isinstance(values, list) else values["progress"]["history"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        return history
    return []


def rollouts(jobs: Sequence[Job]) -> pd.DataFrame:
    """All captured rows of all runs; an empty frame if there are none."""
    import pandas as pd

    from isoflop.rollouts.capture import read

    parts = [read(job.folder / "rollouts") for job in jobs if (job.folder / "rollouts").is_dir()]
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def references(jobs: Sequence[Job]) -> dict[str, dict[str, float]]:
    """What each rollout metric is on held-out text of the rollouts' length, by the metric's column
    in the table, then by run: novelty is against what each has read, entropy the model's own."""
    from isoflop.rollouts.references import of_set, read

    found: dict[str, dict[str, float]] = {}
    for job in jobs:
        known = read(job.folder / "rollouts")
        for spec in job.run.rollouts.asked:
            for metric, item in of_set(known, spec.name, spec.new_tokens).items():
                if item.value is not None:
                    name = f"rollout/{spec.name}/{metric}" if spec.name else f"rollout/{metric}"
                    found.setdefault(name, {})[job.run.identity] = item.value
    return found


def save(frame: pd.DataFrame, path: Path) -> None:
    """As parquet, atomically."""
    partial = path.with_name(f".{path.name}.partial")
    frame.to_parquet(partial)
    partial.replace(path)


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that have no final result: what a command still has to run."""
    return [job for job in jobs if (result(job.folder) or {}).get("status") not in FINAL]
