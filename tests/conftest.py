"""What do the tests of the spine share? A small real text, and runs of a fraction of a second."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from isoflop.data.loader import Batches, windows
from isoflop.data.prepare import Prepared, prepare
from isoflop.orchestration.job import Job
from isoflop.run import AdamW, Evaluation, Run, Text, short
from isoflop.targets import suiting
from isoflop.training.evaluate import HeldOut
from isoflop.training.loop import Inputs
from models import (
    Config,
    DiffusionConfig,
    DiTConfig,
    GPT2Config,
    LlamaConfig,
    SerialT5Config,
    T5Config,
)

ROOT = Path(__file__).resolve().parents[1]

# A change is judged on the same examples each time; by hand, every run looks at new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

SMALL: dict[str, Config] = {
    "gpt2": GPT2Config(context=32, width=16, depth=2, heads=2),
    "llama": LlamaConfig(context=32, width=16, depth=2, heads=2),
    "diffusion": DiffusionConfig(context=32, width=16, depth=2, heads=2),
    "dit": DiTConfig(context=32, width=16, depth=1, heads=2),
    "t5": T5Config(context=32, width=16, depth=2, heads=2),
    "t5_serial": SerialT5Config(context=32, width=16, depth=1, heads=2),
    "llama-tied": LlamaConfig(context=32, width=16, depth=1, heads=4, kv_heads=2, tied=True),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n 2 --dist loadgroup` a file stays in one process, as its fixtures are made
    once, and so does all that shares the Ray cluster.
    """
    for item in items:
        shares = "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if shares else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As trials have it; more threads than cores would only make the suite slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of some 40 small modules of the standard library, about 300 kB."""
    folder = tmp_path_factory.mktemp("text")
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")):
        if 2_000 < path.stat().st_size < 10_000:
            shutil.copyfile(path, folder / path.name)
    assert len(list(folder.iterdir())) > 30
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where texts are prepared, once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def bytes_text(text_folder: Path, cache: Path) -> Prepared:
    return prepare(Text(source=str(text_folder), tokenizer="bytes", validation=0.1), cache)


@pytest.fixture(scope="session")
def bpe_text(text_folder: Path, cache: Path) -> Prepared:
    return prepare(Text(source=str(text_folder), tokenizer="bpe-512", validation=0.1), cache)


def small_run(model: str | Config = "gpt2", **changes: Any) -> Run:
    """20 steps of four windows of 32 bytes, unless `changes` say otherwise; not resolved."""
    config = SMALL[model] if isinstance(model, str) else model
    values: dict[str, Any] = {
        "model": config,
        "objective": suiting(config)(),
        "data": Text(source="somewhere", tokenizer="bytes", validation=0.1),
        "optimizer": AdamW(lr=1e-2),
        "batch_tokens": 128,
        "evaluation": Evaluation(tokens=512, times=3),
    }
    if not changes.keys() & {"tokens", "flops"}:
        values["tokens"] = 20 * 128
    return Run(**{**values, **changes})


@pytest.fixture(scope="session")
def unresolved() -> Callable[..., Run]:
    return small_run


@pytest.fixture(scope="session")
def make_run(bytes_text: Prepared) -> Callable[..., Run]:
    """`small_run`, resolved on the text as bytes."""

    def make(model: str | Config = "gpt2", **changes: Any) -> Run:
        run = small_run(model, **changes)
        return run.resolve(vocab=bytes_text.vocab, fingerprint=bytes_text.fingerprint)

    return make


@pytest.fixture(scope="session")
def make_inputs(bytes_text: Prepared) -> Callable[[Run], Inputs]:
    """What the loop reads for a run on the text as bytes."""

    def make(run: Run) -> Inputs:
        context = run.model.context
        batches = Batches(bytes_text.train(), context=context, rows=run.rows, seed=run.seed)
        count = max(1, run.evaluation.tokens // context)
        rows = windows(bytes_text.validation(), context, count)
        sizes = torch.from_numpy(bytes_text.tokenizer().token_bytes())
        return Inputs(batches=batches, held_out=HeldOut(rows, sizes))

    return make


@pytest.fixture
def make_job(tmp_path: Path, bytes_text: Prepared) -> Callable[..., Job]:
    """A job for a resolved run, in a folder of its own."""

    def make(run: Run, folder: str = "run", **axes: Any) -> Job:
        return Job(
            study="test",
            run=run,
            axes=axes,
            label=" ".join(f"{name}={short(value)}" for name, value in axes.items()),
            folder=tmp_path / folder,
            prepared=bytes_text,
            stop_file=tmp_path / "stop",
        )

    return make


@pytest.fixture
def start_jobs(tmp_path: Path) -> Iterator[Callable[[list[Job], int], list[subprocess.Popen[str]]]]:
    """Starts `world` processes that carry out the jobs together; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(jobs: list[Job], world: int) -> list[subprocess.Popen[str]]:
        spec = tmp_path / f"jobs-{len(started)}.json"
        spec.write_text(json.dumps([_described(job) for job in jobs]))
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
        script = ROOT / "tests" / "isoflop" / "run_job.py"
        for rank in range(world):
            command = [sys.executable, str(script), str(spec), str(rank), str(world)]
            started.append(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
        return started[-world:]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _described(job: Job) -> dict[str, Any]:
    return {
        "run": job.run.as_json(),
        "folder": str(job.folder),
        "prepared": str(job.prepared.folder),
        "stop_file": str(job.stop_file),
        "means": asdict(job.means),
    }
