"""Which runs, captures and prompts does a study's folder hold, and what was measured on them?

Only small files, and three columns of the newest captures, are read here: a study of thousands of
captures is listed in a second. Rows are read by capture, when somebody asks for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.rollouts import references, rows

if TYPE_CHECKING:
    import pyarrow

    from isoflop.rollouts.prompts import Tokenizer

ROLLOUT = "rollout/"

Point = tuple[int, float, float | None, float | None]  # step, value, low, high
Bound = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt of a set, and how often it was asked at a step."""

    spec: str
    prompt: str
    seeds: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """One run of the study that has written something."""

    run: str  # its identity
    folder: Path
    label: str
    axes: Mapping[str, Any]
    model: str
    loss: float | None
    captures: Mapping[int, Mapping[str, Path]]  # by step, in order; then by set
    questions: Sequence[Question] = field(repr=False)  # of all sets, as the newest captures asked
    metrics: Sequence[str]  # that rows have a value for, plugins' too
    curves: Mapping[str, Sequence[Point]] = field(repr=False)  # by metric, or SET/metric
    references: Mapping[str, Bound] = field(repr=False)  # of held-out text, by the same names
    data: Mapping[str, Any] = field(repr=False)  # the text, as the run states it

    def rows(self, samples: int | None = None) -> Mapping[str, int]:
        """In a capture of each set, as asked; of `samples` seeds at most."""
        found: dict[str, int] = {}
        for question in self.questions:
            seeds = question.seeds if samples is None else min(samples, question.seeds)
            found[question.spec] = found.get(question.spec, 0) + seeds
        return found

    def read(self, step: int, wanted: Callable[[str], bool] | None = None) -> pyarrow.Table:
        """All sets of a step, the columns that are `wanted`. Raises ValueError naming a file that
        cannot be read."""
        import pyarrow as pa

        tables = [_table(path, wanted) for path in self.captures[step].values()]
        return pa.concat_tables(tables, promote_options="permissive")


def runs(study: Path, wanted: str = "") -> list[Written]:
    """The runs with captures under a study's folder, smallest first by their axes.

    `wanted`: words that the label or the identity must have. Raises ValueError where there are
    none.
    """
    words = wanted.lower().split()
    found = [_written(path.parent, words) for path in sorted(study.glob("runs/*/run.json"))]
    known = [run for run in found if run is not None]
    if not known and words:
        raise ValueError(f"no run of {study} that wrote something has {wanted!r} in its label")
    if not known:
        raise ValueError(
            f"{study} holds no rollouts; give the folder of a study that has run with "
            "Rollouts(prompts=...), such as studies/results/scaling-grid"
        )
    return sorted(known, key=lambda run: [_sortable(value) for value in run.axes.values()])


def _sortable(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def _written(folder: Path, words: Sequence[str]) -> Written | None:
    described = _json(folder / "run.json")
    if not isinstance(described, dict):
        return None
    run, axes = described["run"], described.get("axes", {})
    label = " ".join(f"{name}={_short(value)}" for name, value in axes.items()) or folder.name
    captures = _captures(folder / "rollouts")
    said = f"{label} {described['identity']}".lower()
    if not captures or not all(word in said for word in words):
        return None
    questions, metrics, lengths = _asked(captures)
    return Written(
        run=described["identity"],
        folder=folder,
        label=label,
        axes=axes,
        model=str(run["model"].get("kind", "")),
        loss=(_json(folder / "result.json") or {}).get("loss"),
        captures=captures,
        questions=questions,
        metrics=metrics,
        curves=_curves(_json(folder / "history.json") or []),
        references=_references(folder / "rollouts", lengths | _stated(run.get("rollouts", {}))),
        data=run.get("data", {}),
    )


def _captures(folder: Path) -> dict[int, dict[str, Path]]:
    """`step-00000123.parquet` is of the set without a name, other sets have theirs behind."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("step-*.parquet")):
        step, _, name = path.stem.removeprefix("step-").partition(".")
        found.setdefault(int(step), {})[name] = path
    return found


def _asked(
    captures: Mapping[int, Mapping[str, Path]],
) -> tuple[list[Question], list[str], dict[str, int]]:
    """The prompts of the newest capture of each set, the metrics there, and the sets' lengths."""
    newest = {name: path for sets in captures.values() for name, path in sets.items()}
    questions: list[Question] = []
    metrics: dict[str, None] = {}
    lengths = {}
    for name, path in sorted(newest.items()):
        table = _table(path, {"prompt", "n_tokens"}.__contains__)
        seeds: dict[str, int] = {}
        for prompt in table["prompt"].to_pylist():
            seeds[prompt] = seeds.get(prompt, 0) + 1
        questions += [Question(spec=name, prompt=p, seeds=n) for p, n in seeds.items()]
        lengths[name] = max(table["n_tokens"].to_pylist(), default=0)
        metrics |= dict.fromkeys(_measured(path))
    return questions, list(metrics), lengths


def _table(path: Path, wanted: Callable[[str], bool] | None = None) -> pyarrow.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        return file.read(names if wanted is None else list(filter(wanted, names)))
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def _measured(path: Path) -> list[str]:
    """The metrics and rewards that a capture has a value of."""
    import pyarrow.parquet as pq

    described = pq.read_metadata(path)
    groups = [described.row_group(index) for index in range(described.num_row_groups)]
    empty = {
        part.path_in_schema
        for group in groups
        for part in (group.column(index) for index in range(group.num_columns))
        if part.statistics is not None and part.statistics.null_count == group.num_rows
    }
    names = [name for name in described.schema.to_arrow_schema().names if name not in empty]
    return [name[2:] for name in names if name[:2] == "m."] + [*rows.rewards(names)]


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    names: list[str] = pq.read_schema(path).names
    return names


def _stated(rollouts: Mapping[str, Any]) -> dict[str, int]:
    """The tokens that a run was asked for, by set."""
    specs = [{"name": "", **rollouts}, *rollouts.get("specs", ())]
    return {str(spec["name"]): int(spec["new_tokens"]) for spec in specs if "new_tokens" in spec}


def _references(folder: Path, lengths: Mapping[str, int]) -> dict[str, Bound]:
    """What held-out text of the rollouts' length measures, by the names that curves have."""
    found: dict[str, Bound] = {}
    known = references.read(folder)
    for name, length in lengths.items():
        for metric, item in references.of_set(known, name, length).items():
            if item.value is not None:
                low = item.value if item.low is None else item.low
                high = item.value if item.high is None else item.high
                found[f"{name}/{metric}" if name else metric] = (item.value, low, high)
    return found


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, list[Point]]:
    curves: dict[str, list[Point]] = {}
    for record in history:
        for name, value in record.items():
            bound = name.endswith((".low", ".high"))
            if bound or not name.startswith(ROLLOUT) or not math.isfinite(value):
                continue
            low, high = record.get(f"{name}.low"), record.get(f"{name}.high")
            point = (int(record["step"]), float(value), low, high)
            curves.setdefault(name.removeprefix(ROLLOUT), []).append(point)
    return curves


def completed(run: Written) -> dict[str, list[Point]]:
    """The run's curves, with the captures that its history does not tell of: those that another
    process made beside it, and those made after it had ended. Their rows are measured."""
    from isoflop.rollouts.metrics import VALUES
    from isoflop.rollouts.rows import aggregates

    curves = {name: list(points) for name, points in run.curves.items()}
    told = {(p[0], name.rpartition("/")[0]) for name, points in curves.items() for p in points}
    for step, sets in run.captures.items():
        for name, path in sets.items():
            if (step, name) in told or not {f"m.{value}" for value in VALUES} <= {*_columns(path)}:
                continue
            for metric, found in aggregates(_table(path)).items():
                if found.value is not None:
                    key = f"{name}/{metric}" if name else metric
                    curves.setdefault(key, []).append((step, found.value, found.low, found.high))
    _later(run, curves)
    return {name: sorted(points, key=lambda point: point[0]) for name, points in curves.items()}


def _later(run: Written, curves: dict[str, list[Point]]) -> None:
    """Add what was measured when the run had ended: by packages, judges and rubrics."""
    from isoflop.rollouts.metrics import VALUES
    from isoflop.rollouts.statistics import mean

    late = [name for name in run.metrics if name not in VALUES or name == "judged"]
    if not late:
        return
    for step, sets in run.captures.items():
        for spec, path in sets.items():
            known = {name: rows.column(name, _columns(path)) for name in late}
            wanted = {place for place in known.values() if place} | {"prompt_id"}
            table = _table(path, wanted.__contains__)
            for name, place in known.items():
                key = f"{spec}/{name}" if spec else name
                if place is None or step in {point[0] for point in curves.get(key, ())}:
                    continue
                prompts = table["prompt_id"].to_pandas().astype("category").cat.codes.to_numpy()
                found = mean(table[place].to_pylist(), prompts)
                if found.value is not None:
                    curves.setdefault(key, []).append((step, found.value, found.low, found.high))


def prepared(study: Path, run: Written) -> Path | None:
    """The folder of the run's prepared text, in the storage that the study's folder lies in."""
    wanted = run.data.get("fingerprint")
    for manifest in (study.resolve().parent / "data").rglob("prepared.json"):
        described = _json(manifest)
        if isinstance(described, dict) and described.get("fingerprint") == wanted:
            return manifest.parent
    return None


def tokenizer(study: Path, run: Written) -> Tokenizer | None:
    """What the run's ids mean; None where its vocabulary is not here."""
    from isoflop.data.tokenizers import load, named

    folder = prepared(study, run)
    try:
        if folder is not None:
            return load(folder)
        return named(str(run.data.get("tokenizer")))
    except ValueError:  # trained on a text that was prepared elsewhere: shown without its tokens
        return None


def chosen(captures: Sequence[int], most: int) -> list[int]:
    """At most so many steps, the first and the last among them, evenly by their order."""
    if most >= len(captures):
        return list(captures)
    if most < 2:
        return [captures[-1]]
    last = len(captures) - 1
    places = {round(index * last / (most - 1)) for index in range(most)}
    return [captures[place] for place in sorted(places)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # none yet, or torn by a crash
        return None
