"""How does what the models wrote become one page that opens anywhere?

`build` writes `rollouts.html`: nothing is fetched. The rows of each run lie in it compressed, and
the browser opens those it shows. A study that wrote more than fits is thinned, and the page says
so: whole captures go first, then samples; every run and prompt stays.

No text of a model can run as a script: it stands compressed in data elements, enters the page as
text nodes only, and the page's policy allows the one script whose hash it names.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.rollouts.metrics import METRICS
from isoflop.rollouts.report import pieces, store
from isoflop.rollouts.report.store import Written

if TYPE_CHECKING:
    import pyarrow

MOST_ROWS = 40_000  # in one page; some 250 bytes each
FEWEST = 4  # captures per run that are kept before samples go


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a study the page holds."""

    captures: int  # at most, per run
    samples: int
    rows: int  # in the page
    written: int  # by the study


def select(runs: Sequence[Written], most: int) -> Selection:
    """Whole captures and samples, about `most` rows at most, and one of each prompt at least."""
    if most < 1:
        raise ValueError(f"rows is {most}; it must be at least 1")
    samples = max(question.seeds for run in runs for question in run.questions)
    captures = max(len(run.captures) for run in runs)
    fewest = min(FEWEST, captures)
    written = _rows(runs, captures, samples)
    while captures > fewest and _rows(runs, captures, samples) > most:
        captures -= 1
    while samples > 1 and _rows(runs, captures, samples) > most:
        samples -= 1
    held = _rows(runs, captures, samples)
    return Selection(captures=captures, samples=samples, rows=held, written=written)


def _rows(runs: Sequence[Written], captures: int, samples: int) -> int:
    count = 0
    for run in runs:
        own = run.rows(samples)
        kept = store.chosen(list(run.captures), captures)
        count += sum(own[name] for step in kept for name in run.captures[step])
    return count


def build(study: Path, target: Path, *, most: int = MOST_ROWS, wanted: str = "") -> Path:
    """Writes the page of a study's folder to `target` and returns it.

    `wanted`: words that a run's label must have to stand in it. Raises ValueError where the study
    has no rollouts.
    """
    runs = store.runs(study, wanted)
    selection = select(runs, most)
    asked = list(dict.fromkeys((q.spec, q.prompt) for run in runs for q in run.questions))
    names = _names(runs)
    vocabulary = _vocabularies(study)
    held, courses = [], []
    for run in runs:
        kept = store.chosen(list(run.captures), selection.captures)
        tables = {step: run.read(step, pieces.needed) for step in kept}
        held.append(_chunk(tables, asked, selection, vocabulary(run), names))
        courses.append(pieces.courses(tables[max(tables)]))
    copied = any(row[pieces.COPY] for run in held for rows in run.values() for row in rows)
    about = {
        "study": study.name,
        "prompts": asked,
        "names": names,
        "metrics": [_described(metric) for metric in METRICS] + _worth(names),
        "selection": asdict(selection),
        "reference": _reference(runs),
        "rows": _counts(runs),
        "runs": [
            {
                "run": run.run,
                "label": run.label,
                "axes": {name: str(value) for name, value in run.axes.items()},
                "loss": run.loss,
                "steps": store.chosen(list(run.captures), selection.captures),
                "captures": len(run.captures),
            }
            for run in runs
        ],
    }
    curves = _pack({"means": [store.completed(run) for run in runs], "courses": courses})
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(
        _render(about, curves, [_pack(chunk) for chunk in held], copied), encoding="utf-8"
    )
    partial.replace(target)
    return target


def _names(runs: Sequence[Written]) -> list[str]:
    """Metrics of a rollout in the order of the catalogue, then plugins' and what judges say."""
    known = {name: None for run in runs for name in run.metrics}
    return [n for n in pieces.SHOWN if n in known] + [n for n in known if n not in pieces.SHOWN]


def _counts(runs: Sequence[Written]) -> dict[str, int]:
    """Rollouts of a capture, by set: the most that a run has."""
    counts: dict[str, int] = {}
    for run in runs:
        for name, count in run.rows().items():
            counts[name] = max(count, counts.get(name, 0))
    return counts


def _described(metric: Any) -> dict[str, Any]:
    fields = ("name", "level", "direction", "unit", "description", "least")
    return {name: getattr(metric, name) for name in fields}


def _worth(names: Sequence[str]) -> list[dict[str, Any]]:
    """Rewards, described as metrics are."""
    own = [name for name in names if name == "reward" or name.startswith("reward_")]
    says = {"reward": "the weighted sum of the rubric"}
    return [
        {"name": name, "level": "rollout", "direction": "up", "unit": "reward", "least": 0,
         "description": says.get(name, "by a function of the rubric")}
        for name in own
    ]  # fmt: skip


def _vocabularies(study: Path) -> Callable[[Written], pieces.Vocabulary | None]:
    """A run's vocabulary, looked up once for each text."""
    known: dict[str, pieces.Vocabulary | None] = {}

    def of(run: Written) -> pieces.Vocabulary | None:
        key = json.dumps(run.data, sort_keys=True)
        if key not in known:
            found: Any = store.tokenizer(study, run)
            known[key] = None if found is None else pieces.Vocabulary(found)
        return known[key]

    return of


def _chunk(
    tables: Mapping[int, pyarrow.Table],
    asked: Sequence[tuple[str, str]],
    selection: Selection,
    vocabulary: pieces.Vocabulary | None,
    names: Sequence[str],
) -> dict[int, list[pieces.Row]]:
    from isoflop.rollouts.prompts import prompt_id

    numbers = {(spec, prompt_id(prompt)): i for i, (spec, prompt) in enumerate(asked)}
    return {
        step: pieces.rows(
            table, prompts=numbers, samples=selection.samples, vocabulary=vocabulary, names=names
        )
        for step, table in tables.items()
    }


def _reference(runs: Sequence[Written]) -> Mapping[str, list[float]]:
    """Each metric on held-out text of the rollouts' length: value, low, high, by curve.

    Runs share their held-out text, but novelty is against what each has read, and of a vocabulary
    each has its own: the band then holds all of theirs.
    """
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, (value, low, high) in run.references.items():
            own = found.setdefault(name, [value, low, high])
            own[1:] = [min(own[1], low), max(own[2], high)]
    return found


def _pack(value: Any) -> str:
    """JSON, compressed, in letters that end no element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 5, mtime=0)).decode()


def _render(about: Mapping[str, Any], curves: str, chunks: Sequence[str], copied: bool) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("isoflop.rollouts.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = _beside("page.js"), _beside("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        name=about["study"],
        about=_pack(about),
        curves=curves,
        chunks=chunks,
        copied=copied,
        script=Markup(script),
        style=Markup(style),
        digest=digest,
    )


@cache
def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
