"""What is kept of a capture? A row for each rollout, in one parquet file per step and set.

`step-00000123.parquet` is of the set without a name, `step-00000123.NAME.parquet` of another. Log
probabilities and entropies are kept in half precision; metrics were computed before that. Where a
metric `m.NAME` has no value, `why.NAME` has the reason. `copied` holds the first token and the
length of each stretch that the run had read, in turn. Rewards, where a rubric gave some, are in
`reward` and `reward.NAME`, with their `reward_weights`, and `why.reward.NAME` where a function
failed. Everything but `seconds` (of processor
time per rollout, as far as writing them goes) follows from the weights, the prompts and the seeds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.captures import Spec
from isoflop.rollouts.generate import Rollout
from isoflop.rollouts.measured import Metric, Missing, Sample, number
from isoflop.rollouts.metrics import VALUES, score, summarise
from isoflop.rollouts.novelty import Copies, Seen
from isoflop.rollouts.prompts import Prompt, Tokenizer, row_seed, set_id
from isoflop.rollouts.rubric import Score, Scores
from isoflop.rollouts.statistics import Aggregate, mean

if TYPE_CHECKING:
    import pandas
    import pyarrow

VERSION = "4"  # of the rows: their columns, how they are sampled, and what the metrics mean


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What all rows of a capture have in common."""

    run: str  # its identity
    step: int  # optimizer steps
    tokens: int
    flops: float
    study: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)  # plain values: written as JSON


def path(folder: Path, step: int, name: str = "") -> Path:
    """Where the rows of a step and a set lie."""
    return folder / f"step-{step:08d}{name and f'.{name}'}.parquet"


def samples(
    rollouts: Sequence[Rollout],
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    *,
    step: int,
    seen: Seen | Missing,
) -> list[Sample]:
    """The rollouts as the metrics look at them."""
    known: Sequence[Copies | Missing]
    if isinstance(seen, Missing):
        known = [seen] * len(rollouts)
    else:
        known = seen.copies([row.completion_ids for row in rollouts])
    return [
        Sample(
            row.completion_ids,
            written(row, tokenizer),
            prompts[row.prompt_index].text,
            row.logprobs,
            row.entropies,
            row.stop == "stop",
            _truth(prompts[row.prompt_index], step),
            copies,
        )
        for row, copies in zip(rollouts, known, strict=True)
    ]


def written(row: Rollout, tokenizer: Tokenizer) -> str:
    """The rollout's text, without the token that ended it."""
    ids = row.completion_ids[:-1] if row.stop == "stop" else row.completion_ids
    # Bytes that are no character yet may decode to what UTF-8 cannot hold.
    return tokenizer.decode(ids.tolist()).encode("utf-8", "replace").decode()


def _truth(prompt: Prompt, step: int) -> NDArray[np.integer] | Missing:
    if prompt.truth is None:
        return Missing("the prompt is no prefix of a known text")
    if prompt.first_read is not None and prompt.first_read > step:
        return Missing("training has not read the prompt's text yet")
    return prompt.truth


def table(
    rollouts: Sequence[Rollout],
    measured: Sequence[Sample],
    prompts: Sequence[Prompt],
    spec: Spec,
    stamp: Stamp,
    *,
    tokenizer: str,
    seconds: float,
) -> pyarrow.Table:
    """The rows, in the order of the rollouts."""
    import pyarrow as pa  # slow to load, and a run without rollouts never needs it

    asked = [prompts[row.prompt_index] for row in rollouts]
    columns = _same(spec, stamp, tokenizer, set_id(prompts), seconds, len(rollouts))
    ids, halves = pa.list_(pa.int32()), pa.list_(pa.float16())
    columns |= {
        "prompt_id": pa.array([prompt.key for prompt in asked], pa.string()),
        "first_read": pa.array([prompt.first_read for prompt in asked], pa.int64()),
        "sample_id": pa.array([row.sample for row in rollouts], pa.int32()),
        "seed": pa.array(
            [row_seed(p.text, r.sample) for p, r in zip(asked, rollouts, strict=True)], pa.int64()
        ),
        "prompt": pa.array([prompt.text for prompt in asked], pa.string()),
        "answer": pa.array([prompt.answer for prompt in asked], pa.string()),
        "info": pa.array([json.dumps(dict(p.info), sort_keys=True) for p in asked], pa.string()),
        "prompt_ids": pa.array([row.prompt_ids for row in rollouts], ids),
        "completion_ids": pa.array([row.completion_ids for row in rollouts], ids),
        "logprobs": pa.array([_half(row.logprobs) for row in rollouts], halves),
        "entropies": pa.array([_half(row.entropies) for row in rollouts], halves),
        "text": pa.array([sample.text for sample in measured], pa.string()),
        "stop_condition": pa.array([row.stop for row in rollouts], pa.string()),
        "copied": pa.array([_copied(sample) for sample in measured], ids),
        "n_tokens": pa.array([len(row.completion_ids) for row in rollouts], pa.int32()),
    }
    owners = [row.prompt_index for row in rollouts]
    for name, values in score(measured, owners).items():
        columns |= metric_columns(name, values)
    return pa.table(columns)


def _copied(sample: Sample) -> list[int] | None:
    """First token and length of each copied stretch in turn; None where nobody looked."""
    if isinstance(sample.copies, Missing):
        return None
    return [place for stretch in sample.copies.stretches for place in stretch]


def metric_columns(name: str, values: Sequence[float | Missing]) -> dict[str, pyarrow.Array]:
    """The values of a metric, and why there are none."""
    import pyarrow as pa

    reasons = [value.reason if isinstance(value, Missing) else None for value in values]
    return {
        f"m.{name}": pa.array([number(value) for value in values], pa.float64()),
        f"why.{name}": pa.array(reasons, pa.string()),
    }


def _same(
    spec: Spec, stamp: Stamp, tokenizer: str, prompts: str, seconds: float, count: int
) -> dict[str, pyarrow.Array]:
    import pyarrow as pa

    values = {
        "run": stamp.run,
        "study": stamp.study,
        "axes": json.dumps(stamp.axes, sort_keys=True),
        "step": stamp.step,
        "tokens_seen": stamp.tokens,
        "flops": float(stamp.flops),
        "spec": spec.name,
        "kind": spec.kind,
        "prompt_set": prompts,
        **_asked(spec),
        "seconds": seconds / max(1, count),
        "tokenizer": tokenizer,
        "version": VERSION,
    }
    return {name: pa.array([value] * count) for name, value in values.items()}


def scored_as(row: Mapping[str, Any]) -> Score:
    """The rewards of a row, as the rubric gave them."""
    parts = {name[7:]: row[name] for name in row if name.startswith("reward.")}
    errors = {name: row.get(f"why.reward.{name}") for name in parts}
    failed = {name: why for name, why in errors.items() if why}
    weights = json.loads(row.get("reward_weights") or "{}")
    return Score(row.get("reward"), parts, failed, weights)


def _asked(spec: Spec) -> dict[str, Any]:
    """How the model is asked, as rows state it."""
    return {
        "temperature": float(spec.temperature),
        "top_k": spec.top_k,
        "top_p": float(spec.top_p),
        "min_p": float(spec.min_p),
        "repetition": float(spec.repetition),
        "new_tokens": spec.new_tokens,
        "weights": spec.weights,
    }


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # beyond 65,504 nats is infinite
        return values.astype(np.float16)


def aggregates(rows: pyarrow.Table) -> dict[str, Aggregate]:
    """Every metric of a file's rows, and its rewards."""
    _, prompts = np.unique(rows["prompt_id"].to_pylist(), return_inverse=True)
    values = {name: rows[f"m.{name}"].to_pylist() for name in VALUES}
    ids = [row.values.to_numpy() for row in rows["completion_ids"]]
    paid = rewards(rows.column_names)
    return summarise(values, ids, prompts) | {
        name: mean(rows[column].to_pylist(), prompts) for name, column in paid.items()
    }


def rewards(columns: Sequence[str]) -> dict[str, str]:
    """The columns of rewards by their names as metrics: `reward`, and `reward_NAME` of each."""
    own = [name for name in columns if name == "reward" or name.startswith("reward.")]
    return {name.replace(".", "_", 1): name for name in own}


def column(name: str, columns: Collection[str]) -> str | None:
    """Where the values of a metric, or of a reward, stand in rows; None where they do not."""
    found = f"m.{name}"
    return found if found in columns else rewards(list(columns)).get(name)


def rewarded(table: pyarrow.Table, scores: Scores) -> pyarrow.Table:
    """The same rows with their rewards, in place of those that they had."""
    import pyarrow as pa

    old = [name for name in table.column_names if name.removeprefix("why.").startswith("reward")]
    table = table.drop_columns(old)
    for name, values in scores.columns().items():
        table = table.append_column(name, pa.array(values, pa.float64()))
    weights = json.dumps(
        {name: value for row in scores.rows for name, value in row.weights.items()}
    )
    table = table.append_column("reward_weights", pa.array([weights] * table.num_rows))
    for name in dict.fromkeys(part for row in scores.rows for part in row.errors):
        reasons = [row.errors.get(name) for row in scores.rows]
        table = table.append_column(f"why.reward.{name}", pa.array(reasons, pa.string()))
    return table


def samples_of(rows: pyarrow.Table) -> list[Sample]:
    """The rollouts of a file as metrics look at them, as far as rows keep it: without the text that
    a prompt was taken from, and what had been read."""
    return [
        Sample(
            np.asarray(row["completion_ids"], np.int32), row["text"], row["prompt"],
            np.asarray(row["logprobs"], np.float32), np.asarray(row["entropies"], np.float32),
            row["stop_condition"] == "stop",
        )
        for row in rows.select(
            ["completion_ids", "text", "prompt", "logprobs", "entropies", "stop_condition"]
        ).to_pylist()
    ]  # fmt: skip


def measure(file: Path, metrics: Sequence[Metric]) -> dict[str, Aggregate]:
    """Write further metrics (plugins') into a capture's rows; their aggregates. One of a whole
    corpus has no value in a row, only its aggregate."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file).read()
    _, prompts = np.unique(table["prompt_id"].to_pylist(), return_inverse=True)
    found = samples_of(table)
    values = score(found, prompts, metrics)
    for name, column in values.items():
        for title, made in metric_columns(name, column).items():
            if title in table.column_names:
                table = table.drop_columns(title)
            table = table.append_column(title, made)
    write(table, file)
    plain = {name: [number(item) for item in column] for name, column in values.items()}
    return summarise(plain, [sample.ids for sample in found], prompts, metrics)


def done(file: Path, run: str, prompts: Sequence[Prompt], spec: Spec) -> pyarrow.Table | None:
    """The rows that an earlier start of this run wrote, asked in the same way; None if they must be
    made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.exists():
        return None
    try:
        rows = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowInvalid):  # cut short by a full disk: written anew
        return None
    missing = {f"m.{name}" for name in VALUES} - set(rows.column_names)
    wanted = {"run": run, "version": VERSION, "prompt_set": set_id(prompts), **_asked(spec)}
    missing |= set(wanted) - set(rows.column_names)
    if missing or rows.num_rows != len(prompts) * spec.seeds:
        return None
    stamps = {tuple(row.values()) for row in rows.select(list(wanted)).to_pylist()}
    return rows if stamps <= {tuple(wanted.values())} else None


def write(rows: pyarrow.Table, file: Path) -> None:
    """All of it or nothing, whenever the process dies."""
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.part")
    with temporary.open("wb") as content:
        pq.write_table(rows, content, compression="zstd")
        content.flush()
        os.fsync(content.fileno())
    os.replace(temporary, file)


def read(folder: Path) -> pandas.DataFrame:
    """The rows of all captures of a run, by step; an empty frame where there are none."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(folder.glob("step-*.parquet"))
    if not paths:
        return pd.DataFrame()
    tables = [pq.ParquetFile(file).read() for file in paths]
    rows: pandas.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    return rows
