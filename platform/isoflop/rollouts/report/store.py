"""Which runs, captures and prompts does a study's folder hold, and what was measured on them?

Only small files are read here: a study of thousands of captures is listed in a second. Rows are
read by capture, when somebody asks for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

    from isoflop.rollouts.prompts import Tokenizer

ROLLOUT = "rollout/"

Point = tuple[int, float, float | None, float | None]  # step, value, low, high


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """One run of the study that has written something."""

    run: str  # its identity
    folder: Path
    label: str
    axes: Mapping[str, Any]
    model: str
    loss: float | None
    captures: Mapping[int, Path]  # by step, in order
    curves: Mapping[str, Sequence[Point]] = field(repr=False)  # by metric
    data: Mapping[str, Any] = field(repr=False)  # the text, as the run states it
    rollouts: Mapping[str, Any] = field(repr=False)  # what it was asked

    @property
    def rows(self) -> int:
        """In each of its captures, as planned."""
        return len(self.rollouts.get("prompts", ())) * int(self.rollouts.get("seeds", 1))

    def read(self, step: int) -> pyarrow.Table:
        """One capture. Raises ValueError naming a file that cannot be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(self.captures[step])
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{self.captures[step]} cannot be read ({error})") from error


def runs(study: Path) -> list[Written]:
    """The runs with captures under a study's folder, smallest first by their axes.

    Raises ValueError where there are none.
    """
    found = [_written(path.parent) for path in sorted(study.glob("runs/*/run.json"))]
    known = [run for run in found if run is not None]
    if not known:
        raise ValueError(
            f"{study} holds no rollouts; give the folder of a study that has run with "
            "Rollouts(prompts=...), such as studies/results/scaling-grid"
        )
    return sorted(known, key=lambda run: [_sortable(value) for value in run.axes.values()])


def _sortable(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def _written(folder: Path) -> Written | None:
    captures = {int(path.stem[5:]): path for path in sorted(folder.glob("rollouts/step-*.parquet"))}
    described = _json(folder / "run.json")
    if not captures or not isinstance(described, dict):
        return None
    run, axes = described["run"], described.get("axes", {})
    result = _json(folder / "result.json") or {}
    return Written(
        run=described["identity"],
        folder=folder,
        label=" ".join(f"{name}={_short(value)}" for name, value in axes.items()) or folder.name,
        axes=axes,
        model=str(run["model"].get("kind", "")),
        loss=result.get("loss"),
        captures=captures,
        curves=_curves(_json(folder / "history.json") or []),
        data=run.get("data", {}),
        rollouts=run.get("rollouts", {}),
    )


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
