"""What did this run write at this step? One parquet file that holds all of it, row by row.

A capture asks every prompt with every seed, measures what comes back, and writes
`step-00000123.parquet`. The seeds follow from the prompt's text and the number of the sample alone,
never from the run, so two runs of a study, or two steps of one, differ by their weights only and
can be compared in pairs.

    schedule -> Budget.affords -> Capture -> aggregates for the tracker
                                     |
                                parquet rows -> read

Every aggregate can be recomputed from the rows, and a capture that is there already is read instead
of made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.generate import Rollout, Sampling, generate
from isoflop.rollouts.metrics import METRICS, Missing, Sample, score, summarise
from isoflop.rollouts.statistics import Aggregate
from isoflop.run import Rollouts
from models.interface import Model

if TYPE_CHECKING:
    import pandas
    import pyarrow

VERSION = "1"  # of the rows: their columns, how they are sampled, and what the metrics mean
VALUES = tuple(metric.name for metric in METRICS if metric.level == "rollout")


class Tokenizer(Protocol):
    """What a capture needs of `isoflop.data.tokenizers.Tokenizer`."""

    @property
    def name(self) -> str: ...
    @property
    def end_of_text(self) -> int: ...
    def encode(self, text: str) -> NDArray[np.uint32]: ...
    def decode(self, ids: Iterable[int]) -> str: ...


def prompt_id(prompt: str) -> str:
    """12 hex digits: the hash of the prompt's text."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def prompt_ids(prompts: Sequence[str], tokenizer: Tokenizer) -> list[NDArray[np.uint32]]:
    """Each prompt as tokens. The empty one starts from the end of text, as documents do."""
    start = np.array([tokenizer.end_of_text], dtype=np.uint32)
    return [tokenizer.encode(prompt) if prompt else start for prompt in prompts]


def row_seed(prompt: str, sample: int) -> int:
    """A 63-bit seed that depends on the prompt's text and the sample's number only."""
    digest = hashlib.sha256(f"{sample}:{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def schedule(steps: int, captures: int) -> tuple[int, ...]:
    """The optimizer steps after which to capture: 0, the end, and log-spaced ones between.

    At most `captures` of them, fewer where they would fall together; sorted.
    """
    if steps < 1 or captures < 2:
        raise ValueError(
            f"steps is {steps} and captures is {captures}; they must be at least 1 and 2"
        )
    points = np.geomspace(1, steps, captures)[1:].round().astype(int)
    return tuple(sorted({0, steps, *points.tolist()}))


def check(rollouts: Rollouts, context: int) -> None:
    """Raises ValueError where prompts repeat, or `new_tokens` leaves them no room in a context."""
    prompts, new_tokens = rollouts.prompts, rollouts.new_tokens
    if len(set(prompts)) < len(prompts):
        twice = next(prompt for prompt in prompts if prompts.count(prompt) > 1)
        raise ValueError(f"rollouts.prompts has {twice!r} twice; each prompt may stand there once")
    if new_tokens >= context:
        raise ValueError(
            f"rollouts.new_tokens is {new_tokens}; it must be below the model's context of "
            f"{context} tokens, which holds the prompt too"
        )


@dataclass
class Budget:
    """Is there time for this capture? Step 0 and the end are always taken, whatever they cost.

    One between is taken if, with it and with the one at the end, captures stay within `share` of
    the training time that the whole run will need at its pace so far. Those not taken are counted.
    """

    share: float
    skipped: int = 0

    def affords(
        self, *, spent: float, training: float, expected: float, done: float | None = None
    ) -> bool:
        """Seconds: `spent` on captures and `training` so far, `expected` for the next capture.

        `done`: the share of the run's steps that are taken. Without it only the training time so
        far counts, which rules out most captures early in a run.
        """
        if done in (0.0, 1.0):
            return True
        whole = training / done if done else training
        if spent + 2 * expected <= self.share * whole:
            return True
        self.skipped += 1
        return False


@dataclass(frozen=True, eq=False)
class Captured:
    """What one capture left: the file, what it says, and the wall seconds it took."""

    rows: Path
    aggregates: dict[str, Aggregate]
    seconds: float
    count: int  # rollouts
    reused: bool  # the file was there already


@dataclass(frozen=True, eq=False)
class Capture:
    """The prompts of one run, ready to be asked at any step: call it with the model.

    Raises ValueError where `check` does.
    """

    rollouts: Rollouts
    tokenizer: Tokenizer
    _: KW_ONLY
    folder: Path
    context: int  # the model's
    run: str  # its identity
    study: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)  # plain values: written as JSON

    def __post_init__(self) -> None:
        check(self.rollouts, self.context)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.parquet"

    def __call__(self, model: Model, *, step: int, tokens: int, flops: float) -> Captured:
        """The rollouts after `step` optimizer steps, `tokens` tokens and `flops` FLOPs of training.

        The model and torch's random state stay as they were. A readable file of the same step and
        run is taken for done.
        """
        began = time.perf_counter()
        path = self.path(step)
        table = self._done(path)
        reused = table is not None
        if table is None:
            table = self._table(self._generate(model), step, tokens, flops)
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(table, path)
        aggregates = _aggregates(table)
        return Captured(path, aggregates, time.perf_counter() - began, table.num_rows, reused)

    def _generate(self, model: Model) -> list[Rollout]:
        rollouts = self.rollouts
        ids = prompt_ids(rollouts.prompts, self.tokenizer)
        seeds = [
            [row_seed(prompt, i) for i in range(rollouts.seeds)] for prompt in rollouts.prompts
        ]
        stops = (self.tokenizer.end_of_text,)
        sampling = Sampling(rollouts.temperature, rollouts.new_tokens, stops)
        return generate(model, ids, seeds, sampling)

    def _table(self, rows: list[Rollout], step: int, tokens: int, flops: float) -> pyarrow.Table:
        import pyarrow as pa  # slow to load, and a run without rollouts never needs it

        prompts = [self.rollouts.prompts[row.prompt_index] for row in rows]
        texts = [self._text(row) for row in rows]
        samples = [
            Sample(
                row.completion_ids, text, prompt, row.logprobs, row.entropies, row.stop == "stop"
            )
            for row, text, prompt in zip(rows, texts, prompts, strict=True)
        ]
        ids, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
        same = {
            "run": self.run,
            "study": self.study,
            "axes": json.dumps(self.axes, sort_keys=True),
            "step": step,
            "tokens_seen": tokens,
            "flops": float(flops),
            "tokenizer": self.tokenizer.name,
            "version": VERSION,
        }
        columns = {name: pa.array([value] * len(rows)) for name, value in same.items()}
        columns |= {
            "prompt_id": pa.array([prompt_id(prompt) for prompt in prompts], pa.string()),
            "sample_id": pa.array([row.sample for row in rows], pa.int32()),
            "seed": pa.array([row_seed(p, r.sample) for p, r in zip(prompts, rows, strict=True)]),
            "prompt": pa.array(prompts, pa.string()),
            "prompt_ids": pa.array([row.prompt_ids for row in rows], ids),
            "completion_ids": pa.array([row.completion_ids for row in rows], ids),
            "logprobs": pa.array([row.logprobs for row in rows], floats),
            "entropies": pa.array([row.entropies for row in rows], floats),
            "text": pa.array(texts, pa.string()),
            "stop": pa.array([row.stop for row in rows], pa.string()),
            "n_tokens": pa.array([len(row.completion_ids) for row in rows], pa.int32()),
        }
        for name, values in score(samples).items():
            numbers = [None if isinstance(value, Missing) else value for value in values]
            columns[f"m.{name}"] = pa.array(numbers, pa.float64())
        return pa.table(columns)

    def _text(self, row: Rollout) -> str:
        """What was written, without the token that ended it."""
        written = row.completion_ids[:-1] if row.stop == "stop" else row.completion_ids
        # Bytes that are no character yet may decode to what UTF-8 cannot hold.
        return self.tokenizer.decode(written.tolist()).encode("utf-8", "replace").decode()

    def _done(self, path: Path) -> pyarrow.Table | None:
        """The rows that an earlier start of this run wrote; None if they must be made."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.exists():
            return None
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid):  # cut short by a full disk: written anew
            return None
        wanted = len(self.rollouts.prompts) * self.rollouts.seeds
        missing = {f"m.{name}" for name in VALUES} - set(table.column_names)
        if missing or table.num_rows != wanted:
            return None
        stamps = {
            (row["run"], row["version"]) for row in table.select(["run", "version"]).to_pylist()
        }
        return table if stamps <= {(self.run, VERSION)} else None


def _aggregates(table: pyarrow.Table) -> dict[str, Aggregate]:
    _, prompts = np.unique(table["prompt_id"].to_pylist(), return_inverse=True)
    values = {name: table[f"m.{name}"].to_pylist() for name in VALUES}
    ids = [row.values.to_numpy() for row in table["completion_ids"]]
    return summarise(values, ids, prompts)


def _write(table: pyarrow.Table, path: Path) -> None:
    """All of it or nothing, whenever the process dies."""
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(folder: Path) -> pandas.DataFrame:
    """The rows of all captures of a run, by step; an empty frame where there are none."""
    import pandas as pd
    import pyarrow.parquet as pq

    paths = sorted(folder.glob("step-*.parquet"))
    if not paths:
        return pd.DataFrame()
    rows: pandas.DataFrame = pd.concat(
        [pq.read_table(path).to_pandas() for path in paths], ignore_index=True
    )
    return rows
