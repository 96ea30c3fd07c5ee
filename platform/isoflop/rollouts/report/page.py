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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.metrics import METRICS, reference
from isoflop.rollouts.report import pieces, store
from isoflop.rollouts.report.store import Written

MOST_ROWS = 24_000  # in one page; some 500 bytes each
FEWEST = 4  # captures per run that are kept before samples go
WINDOWS = 128  # of held-out text, to draw the reference from

HeldOut = Callable[[Path], NDArray[np.integer]]  # a prepared text's folder to its held-out tokens


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
    samples = max(int(run.rollouts.get("seeds", 1)) for run in runs)
    captures = max(len(run.captures) for run in runs)
    fewest = min(FEWEST, captures)
    while captures > fewest and _rows(runs, captures, samples) > most:
        captures -= 1
    while samples > 1 and _rows(runs, captures, samples) > most:
        samples -= 1
    written = sum(len(run.captures) * run.rows for run in runs)
    held = _rows(runs, captures, samples)
    return Selection(captures=captures, samples=samples, rows=held, written=written)


def _rows(runs: Sequence[Written], captures: int, samples: int) -> int:
    return sum(
        min(len(run.captures), captures)
        * len(run.rollouts.get("prompts", ()))
        * min(samples, int(run.rollouts.get("seeds", 1)))
        for run in runs
    )


def build(
    study: Path, target: Path, *, most: int = MOST_ROWS, held_out: HeldOut | None = None
) -> Path:
    """Writes the page of a study's folder to `target` and returns it.

    `held_out`: gives the tokens that human reference values are measured on. Raises ValueError
    where the study has no rollouts.
    """
    runs = store.runs(study)
    selection = select(runs, most)
    asked = list(dict.fromkeys(prompt for run in runs for prompt in run.rollouts["prompts"]))
    names = list(pieces.SHOWN)
    sizes = _sizes(study)
    held = [_chunk(run, asked, selection, sizes(run), names) for run in runs]
    copied = any(row[pieces.COPY] for run in held for rows in run.values() for row in rows)
    about = {
        "study": study.name,
        "prompts": asked,
        "names": names,
        "metrics": [_described(metric) for metric in METRICS],
        "selection": asdict(selection),
        "reference": _reference(study, runs[0], held_out),
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
    curves = _pack([run.curves for run in runs])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(
        _render(about, curves, [_pack(chunk) for chunk in held], copied), encoding="utf-8"
    )
    partial.replace(target)
    return target


def _described(metric: Any) -> dict[str, str]:
    return {
        name: getattr(metric, name)
        for name in ("name", "level", "direction", "unit", "description")
    }


def _sizes(study: Path) -> Callable[[Written], NDArray[np.int64] | None]:
    """The bytes of each token id of a run's vocabulary, looked up once for each text."""
    known: dict[str, NDArray[np.int64] | None] = {}

    def of(run: Written) -> NDArray[np.int64] | None:
        key = json.dumps(run.data, sort_keys=True)
        if key not in known:
            found: Any = store.tokenizer(study, run)
            known[key] = None if found is None else found.token_bytes()
        return known[key]

    return of


def _chunk(
    run: Written,
    asked: Sequence[str],
    selection: Selection,
    sizes: NDArray[np.int64] | None,
    names: Sequence[str],
) -> dict[int, list[pieces.Row]]:
    from isoflop.rollouts.prompts import prompt_id

    numbers = {prompt_id(prompt): index for index, prompt in enumerate(asked)}
    return {
        step: pieces.rows(
            run.read(step), prompts=numbers, samples=selection.samples, sizes=sizes, names=names
        )
        for step in store.chosen(list(run.captures), selection.captures)
    }


def _reference(
    study: Path, run: Written, held_out: HeldOut | None
) -> Mapping[str, list[float | None]]:
    """Each metric on held-out text of the rollouts' length: value, low, high; {} where it is not.

    Of the first run's text, which all runs of a study share.
    """
    folder, tokenizer = store.prepared(study, run), store.tokenizer(study, run)
    if held_out is None or folder is None or tokenizer is None:
        return {}
    ids, size = held_out(folder), int(run.rollouts["new_tokens"])
    count = min(WINDOWS, len(ids) // size)
    if not count:
        return {}
    starts = np.linspace(0, len(ids) - size, count).astype(int)
    windows = [np.asarray(ids[start : start + size]).astype(np.int64) for start in starts]

    def text(window: NDArray[np.integer]) -> str:
        return tokenizer.decode(window.tolist())

    found = reference(windows, text)
    return {name: [each.value, each.low, each.high] for name, each in found.items()}


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
