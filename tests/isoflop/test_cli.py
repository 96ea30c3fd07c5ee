"""Does the `isoflop` command say what it can do, and what it cannot?"""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.cli import main, parser


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(str(ended.value.code or 0))


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    shown = capsys.readouterr().out
    for word in ("bench", "data", "ui", "python studies/"):
        assert word in shown
    for arguments in (
        ["bench", "--help"],
        ["bench", "train", "--help"],
        ["ui", "--help"],
        ["data", "prepare", "--help"],
    ):
        assert status(*arguments) == 0


@pytest.mark.parametrize("arguments", [
    [], ["train"], ["bench"], ["bench", "everything"], ["data"], ["ui", "--port", "http"]
])  # fmt: skip
def test_wrong_commands_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*arguments) == 2
    assert "isoflop" in capsys.readouterr().err


def test_an_unknown_model_is_refused_with_what_there_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("bench", "train", "--model", "mamba", "--steps", "1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "mamba" in line
    assert "gpt2" in line and "llama" in line


def test_shapes_of_a_cpu_are_refused_for_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("bench", "train", "--device", "cuda", "--shape", "4x128") == 2
    assert "--size" in capsys.readouterr().err


def test_ui_without_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("ui", str(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: there is no {tmp_path / 'mlflow.db'}; " + (
        "name the storage folder of a study that has run"
    )


def test_defaults() -> None:
    options = parser().parse_args(["ui"])
    assert (options.storage, options.port) == ("studies/results", 5000)
    assert parser().parse_args(["bench", "train"]).model is None
