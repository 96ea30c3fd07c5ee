"""How long does the page of a large study take, to be built and to be opened?

A study is made up as its runs would have left it: real rows of windows of the standard library's
source, with every metric, in as many parquet files as there are captures. Then the page is built,
and opened in Chromium where that and the package `playwright` are installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.data.tokenizers import named
from isoflop.rollouts import rows
from isoflop.rollouts.generate import Rollout
from isoflop.rollouts.measured import Missing
from isoflop.rollouts.prompts import Prompt
from isoflop.rollouts.report.page import build
from isoflop.run import Spec

if TYPE_CHECKING:
    import pyarrow

GOALS = {"build": 10.0, "open": 3.0}
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The study: 32 prompts with 8 seeds each make 256 rollouts a capture."""

    runs: int = 100
    captures: int = 50
    prompts: int = 32
    seeds: int = 8
    tokens: int = 128


def show(shape: Shape | None = None) -> int:
    """Print the table; 1 where a goal is missed."""
    shape = shape or Shape()
    count = shape.prompts * shape.seeds
    print(f"a study of {shape.runs} runs x {shape.captures} captures x {count} rollouts")
    with tempfile.TemporaryDirectory() as folder:
        study = make(Path(folder) / "study", shape)
        built = [_built(study) for _ in range(ROUNDS)]
        size = (study / "rollouts.html").stat().st_size / 1e6
        met = _said("built", built, GOALS["build"], f", {size:.1f} MB")
        chromium = shutil.which("chromium")
        if chromium is None or importlib.util.find_spec("playwright") is None:
            print("  not opened: needs Chromium and the package playwright")
        else:
            opened = opening(study / "rollouts.html", chromium, ROUNDS)
            met = _said("opened in Chromium", opened, GOALS["open"]) and met
    return 0 if met else 1


def _said(what: str, seconds: list[float], goal: float, more: str = "") -> bool:
    middle = sorted(seconds)[len(seconds) // 2]
    spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
    print(f"  {what:20} {middle:6.2f} s ({spread}){more}   goal {goal:g}")
    return middle <= goal


def _built(study: Path) -> float:
    began = time.perf_counter()
    build(study, study / "rollouts.html")
    return time.perf_counter() - began


def opening(page: Path, chromium: str, rounds: int) -> list[float]:
    """Seconds from the address to the first table, each time in a browser just started."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as play:
        for _ in range(rounds):
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            view = browser.new_page()
            began = time.perf_counter()
            view.goto(page.resolve().as_uri())
            view.wait_for_selector("body[data-ready]")
            seconds.append(time.perf_counter() - began)
            browser.close()
    return seconds


def make(study: Path, shape: Shape) -> Path:
    """The folder of such a study."""
    draws = np.random.default_rng(0)
    steps = np.unique(np.geomspace(1, 10**5, shape.captures).round().astype(int)).tolist()
    tables = [_table(draws, shape) for _ in range(min(4, len(steps)))]  # measured: the dear part
    records = [_record(table) for table in tables]
    for number in range(shape.runs):
        identity = f"{number:016x}"
        folder = study / "runs" / identity
        (folder / "rollouts").mkdir(parents=True)
        axes = {"width": 16 * (1 + number // 10), "seed": number % 10}
        run = {"model": {"kind": "gpt2"}, "data": {"tokenizer": "bytes"},
               "rollouts": {"prompts": ["x"], "new_tokens": shape.tokens}}  # fmt: skip
        _write(folder / "run.json", {"identity": identity, "axes": axes, "run": run})
        _write(folder / "result.json", {"loss": 4 - number / 100})
        history = [{"step": s, **records[i % len(tables)]} for i, s in enumerate(steps)]
        _write(folder / "history.json", history)
        for place, step in enumerate(steps):
            _capture(tables[place % len(tables)], folder / "rollouts", step, identity)
    return study


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _capture(table: pyarrow.Table, folder: Path, step: int, run: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, value in (("run", run), ("step", step)):
        column = pa.array([value] * table.num_rows)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, rows.path(folder, step), compression="zstd")


def _record(table: pyarrow.Table) -> dict[str, float]:
    record: dict[str, float] = {}
    for name, found in rows.aggregates(table).items():
        values = {"": found.value, ".low": found.low, ".high": found.high}
        record |= {f"rollout/{name}{end}": v for end, v in values.items() if v is not None}
    return record


def _table(draws: np.random.Generator, shape: Shape) -> pyarrow.Table:
    source = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()
    ids = np.frombuffer(source, np.uint8).astype(np.int32)
    tokenizer = named("bytes")
    prompts = [
        Prompt(f"prompt {index}: ", tokenizer.encode(f"prompt {index}: "))
        for index in range(shape.prompts)
    ]
    made = []
    for index in range(shape.prompts * shape.seeds):
        start = int(draws.integers(len(ids) - shape.tokens))
        entropies = draws.gamma(2, 1.0, size=shape.tokens).astype(np.float32)
        made.append(
            Rollout(
                prompt_index=index // shape.seeds,
                sample=index % shape.seeds,
                prompt_ids=prompts[index // shape.seeds].ids.astype(np.int32),
                completion_ids=ids[start : start + shape.tokens],
                logprobs=-draws.exponential(entropies).astype(np.float32),
                entropies=entropies,
                stop="length",
            )
        )
    spec = Spec(prompts=tuple(prompt.text for prompt in prompts), seeds=shape.seeds)
    measured = rows.samples(made, prompts, tokenizer, step=0, seen=Missing("made up"))
    stamp = rows.Stamp(run="", step=0, tokens=0, flops=0.0)
    return rows.table(made, measured, prompts, spec, stamp, tokenizer=tokenizer.name, seconds=0.0)
