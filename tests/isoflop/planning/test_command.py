"""Does `isoflop plan` say what a budget pays for, and write a study that builds just that?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.cli import main
from isoflop.planning import money, writing
from isoflop.planning.grid import Ask, design
from isoflop.planning.pilot import without
from isoflop.planning.shapes import ladder
from isoflop.run import Text
from isoflop.study import main as study_main
from models import GPT2Config

QUICK = ["--arch", "gpt2", "--tokenizer", "bpe-512", "--context", "32", "--worlds", "20"]


def planned(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *QUICK, *arguments])
    return int(str(ended.value.code or 0))


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert planned("--json", *arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_written_plan_is_a_study_that_runs(
    tmp_path: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / "my_plan.py", tmp_path / "plan.png"
    arguments = ["--budget", "1e12", "--data", str(text_folder), "--picture", str(picture)]
    assert planned(*arguments, "--write", str(path)) == 0
    shown = capsys.readouterr().out
    assert "20 tokens a parameter" in shown and "would be detected" in shown
    assert f"written: {path}" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    study = writing.load(path)
    assert study.name == "my-plan" and study.question.startswith("How does gpt2 scale from")
    assert {run.data.source for run in (study.run(**p) for p in study.points)} == {str(text_folder)}
    with pytest.raises(SystemExit) as ended:
        study_main(study, ["--smoke", "--storage", str(tmp_path / "results")])
    assert not ended.value.code
    assert "The study is ready to run" in capsys.readouterr().out
    assert planned(*arguments, "--write", str(path)) == 2
    assert "it is there already" in capsys.readouterr().err


def test_the_numbers_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "--budget", "1e12", "--throughput", "1e9", "--price", "3.6")
    rows = found["points"]
    assert sum(row["budget"] * row["seeds"] for row in rows) == pytest.approx(found["flops"])
    assert found["hours"] == pytest.approx(found["flops"] / 1e9 / 3600)
    assert found["dollars"] == pytest.approx(3.6 * found["hours"])
    assert sum(row["hours"] for row in rows) == pytest.approx(found["hours"])
    assert found["runs"] == sum(row["seeds"] for row in rows)
    near, far = found["power"]["gpt2"]
    assert near["flops"] == found["budgets"][-1] and far["flops"] == found["target_flops"]
    assert far["flops"] == 10 * near["flops"] and near["difference"] < far["difference"]


def test_hours_and_dollars_buy_flops(capsys: pytest.CaptureFixture[str]) -> None:
    hours = as_json(capsys, "--hours", "0.1", "--throughput", "3e9")
    dollars = as_json(capsys, "--dollars", "0.2", "--price", "2", "--throughput", "3e9")
    assert hours["flops"] == pytest.approx(0.1 * 3600 * 3e9, rel=0.02)
    assert dollars["flops"] == hours["flops"] and dollars["dollars"] == pytest.approx(0.2, rel=0.02)


def test_hours_of_this_machine_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    # Enough for a plan on a machine ten times slower than any we have seen.
    found = as_json(capsys, "--hours", "0.2")
    assert 1e9 < found["flops"] < 1e18
    assert found["hours"] == pytest.approx(0.2, rel=0.5)  # the noise of two measurements


WRONG = {
    "nothing": ([], "one of the arguments"),
    "price": (["--dollars", "3"], "--dollars needs --price"),
    "zero": (["--budget", "0"], "--budget is 0.0; it must be above 0"),
    "arch": (["--budget", "1e12", "--arch", "rnn"], "--arch 'rnn': known are"),
    "tokenizer": (["--budget", "1e12", "--tokenizer", "bpe-x"], "the N of bpe-N"),
    "little": (["--budget", "1e6"], "pay for no 3 budgets"),
    "pilot": (["--budget", "1e12", "--pilot", "nowhere.csv"], "there is no file nowhere.csv"),
    "memory": (["--budget", "1e12", "--memory", "1e-6"], "no run of the plan fits in memory"),
    "name": (["--budget", "1e12", "--write", "my plan.txt"], "end in .py"),
    "worlds": (["--budget", "1e12", "--worlds", "2"], "worlds is 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_said(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = WRONG[case]
    assert planned(*arguments) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_would_build_other_runs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"gpt2": ladder(GPT2Config, vocab=512, context=32)}
    ask = Ask(data=Text(tokenizer="bpe-512"), context=32, memory=1e12)
    made = design(1e12, shapes, without(), ask)
    path = tmp_path / "odd.py"
    options: dict[str, Any] = {"seeds": 1, "question": "Is it?", "source": "no pilot"}
    monkeypatch.setattr(writing, "TEMPLATE", writing.TEMPLATE.replace("warmup=0.1", "warmup=0.2"))
    with pytest.raises(ValueError, match="0 are among the plan's"):
        writing.write(path, made, **options)
    monkeypatch.setattr(writing, "TEMPLATE", "raise OSError('no')")
    with pytest.raises(ValueError, match="does not run: no"):
        writing.write(path, made, **options)
    assert not path.exists()


def test_this_machine_has_memory() -> None:
    size, what = money.device_memory()
    assert size > 2**27 and what
