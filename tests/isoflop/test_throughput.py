"""Does a study of speed measure, skip with a reason, advise, and leave its three files?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from isoflop import throughput
from isoflop.design import Study, grid
from isoflop.run import AdamW, Evaluation, Run, Text
from isoflop.training import precision
from isoflop.training.loop import Inputs
from isoflop.training.means import USUAL
from isoflop.training.throughput import Speed, advise, measure, product_speed
from models import GPT2Config


def study(text: Path) -> Study:
    def run(*, precision: str, rows: int) -> Run:
        return Run(
            model=GPT2Config(context=32, width=16, depth=1, heads=1),
            data=Text(source=str(text), tokenizer="bytes"),
            optimizer=AdamW(lr=1e-3),
            batch_tokens=32 * rows,
            tokens=320 * rows,
            precision=precision,  # type: ignore[arg-type]
            evaluation=Evaluation(tokens=64, times=1),
        )

    points = grid(precision=["float32", "float16"], rows=[4, 1, 2])
    return Study(name="fast", run=run, points=points, family="precision", budget="rows")


def test_the_command(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "has", lambda name, device: name == "float32")
    throughput.main(study(text_folder), ["--storage", str(tmp_path), "--seconds", "0.05"])
    shown = capsys.readouterr().out
    assert "\nfloat32\n" in shown and "float16: precision is 'float16', which this" in shown
    assert "tokens/s" in shown and str(tmp_path / "fast" / "report.html") in shown
    table = pd.read_csv(tmp_path / "fast" / "throughput.csv")
    assert table["rows"].tolist() == [1, 2, 4, 0]
    known = table[table["precision"] == "float32"]
    assert (known["tokens_per_second"] > 0).all() and (known["tokens"] == 32 * known["rows"]).all()
    assert known["of_product"].between(0, 1.5).all()
    expected = known["tokens_per_second"] * known["flops_per_second"].iloc[0]
    assert (expected / known["tokens_per_second"].iloc[0]).tolist() == pytest.approx(
        known["flops_per_second"].tolist(), rel=1e-6
    )
    page = (tmp_path / "fast" / "report.html").read_text()
    assert "data:image/png;base64," in page and "only emulates" in page
    assert (tmp_path / "fast" / "throughput.png").stat().st_size > 10_000


def test_what_takes_too_long_is_not_tried(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(throughput, "SLOWEST", 0.0)
    only = ["--only", "precision=float32"]
    throughput.main(study(text_folder), ["--storage", str(tmp_path), *only])
    assert "from here on not tried: a step takes" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "fast" / "throughput.csv")
    assert table["rows"].tolist() == [1] and table["tokens_per_second"].isna().all()
    assert not (tmp_path / "fast" / "throughput.png").exists()


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--only", "nothing=1"]])
def test_wrong_input_is_one_sentence(
    words: list[str], text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        throughput.main(study(text_folder), words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --")


def speed(rows: int, rate: float | None) -> Speed:
    return Speed(rows=rows, tokens=32 * rows, tokens_per_second=rate, note="" if rate else "no")


def test_the_advice_is_the_least_batch_that_is_nearly_as_fast() -> None:
    found = advise([speed(1, 100.0), speed(2, 190.0), speed(4, 196.0), speed(8, 200.0)])
    assert found is not None and (found.useful.rows, found.best.rows) == (2, 8)
    assert "2 rows (64 tokens) reach 190 tokens/s, 95% of the best; larger" in str(found)
    rising = advise([speed(2, 190.0), speed(1, 100.0), speed(4, None)])
    assert rising is not None and "the largest that was tried" in str(rising)
    assert advise([speed(1, None)]) is None


def test_out_of_memory_is_a_finding(
    make_run: Callable[..., Run], make_inputs: Callable[[Run], Inputs]
) -> None:
    run = make_run("gpt2")

    class Full:
        def batch(self, step: int, rank: int = 0, world: int = 1) -> None:
            raise torch.OutOfMemoryError("none left")

    found = measure(run, Full(), "cpu", USUAL, 0.1)  # type: ignore[arg-type]
    assert (found.note, found.tokens_per_second, found.rows) == ("out of memory", None, 4)


PEAKS = """
import torch
from isoflop.training.throughput import peak_of
for _ in range(2):
    peak = peak_of("cpu")
    block = torch.ones(50 * 2**18)
    del block
    assert 49 < (peak() or 0) / 2**20 < 60
torch.ones(100 * 2**18)
assert (peak_of("cpu")() or 0) < 20 * 2**20
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read there")
def test_the_peak_of_a_processors_memory() -> None:
    """50 MB that are there for a moment, whatever was there before: in a process of its own, since
    this one may hold memory that other tests have left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", PEAKS], env=environment, check=True, timeout=120)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_gpu_is_measured_by_precision_and_compiled(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torch.cuda.is_available()
    throughput.main(study(text_folder), ["--storage", str(tmp_path), "--seconds", "0.2"])
    table = pd.read_csv(tmp_path / "fast" / "throughput.csv")
    assert len(table) == 2 * 3 * 2 and (table["peak_bytes"] > 0).all()
    assert table["of_product"].between(0, 1).all()
    assert product_speed("cuda", "float16") > product_speed("cuda", "float32")
