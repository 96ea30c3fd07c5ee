"""Does every command of the README do what it says? All that need no GPU and no cluster are run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Commands that a test cannot run here, with the reason; everything else in the README is run.
ELSEWHERE = {
    "pip": "installs what this test runs in",
    "pytest": "is what runs this test",
    "uv": "needs an index with torch",
    "isoflop ui": "serves until it is ended; tests/isoflop/test_tracking.py covers the store",
    "--address": "needs a cluster",
    "cuda": "needs a GPU; tests/isoflop/test_gpu.py runs the benchmarks on one",
}
# Exits with 1 where a speed misses its goal, which a busy machine may well do: no test is timed.
TIMED = "isoflop bench data"
SAYS = {"--next": "Nothing has been started", "isoflop fit": "alpha"}  # after the study
SLOW = ("python studies/scaling_grid.py", "isoflop bench")


def commands() -> list[str]:
    """Every line of every sh block, joined commands apart."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def elsewhere(command: str) -> bool:
    return any(command.startswith(head) or head in command.split() for head in ELSEWHERE)


def slow(command: str) -> bool:
    return command == SLOW[0] or command.startswith(SLOW[1])


def after_the_study(command: str) -> bool:
    """Reads what the study leaves; run by its test."""
    return "studies/results" in command or "--next" in command


RUN = sorted({command for command in commands() if not elsewhere(command)})
AFTER = [command for command in RUN if after_the_study(command)]


def carry_out(command: str, storage: Path) -> str:
    words = shlex.split(command.replace("studies/results", str(storage)))
    if words[0] == "python":
        words = [sys.executable, *words[1:], "--storage", str(storage)]
    else:
        words = [sys.executable, "-m", "isoflop.cli", *words[1:]]
    path = f"{ROOT / 'platform'}:{ROOT}"
    shown = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    fine = shown.returncode == 0 or (
        command.startswith(TIMED) and shown.returncode == 1 and "goals of stream" in shown.stdout
    )
    assert fine, shown.stdout + shown.stderr
    return shown.stdout


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.mark.parametrize("command", [c for c in RUN if not slow(c) and c not in AFTER])
def test_quick_commands(command: str, storage: Path) -> None:
    assert carry_out(command, storage).strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in RUN if slow(c)])
def test_slow_commands(command: str, storage: Path) -> None:
    shown = carry_out(command, storage)
    if command == SLOW[0]:
        assert "At 1.2e11 FLOPs" in shown and "llama is better" in shown
        assert "report.html" in shown and "compare" in shown
        again = carry_out(command, storage)
        assert "nothing to train" in again
        assert {word for later in AFTER for word in SAYS if word in later} == set(SAYS)
        for later in AFTER:
            told = carry_out(later, storage)
            assert all(said in told for word, said in SAYS.items() if word in later)


def test_the_readme_names_both_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "pip install -e '.[dev]' && python studies/scaling_grid.py" in text
    assert "pip install -e '.[dev]' && pytest" in text
    assert {SLOW[0], "python studies/scaling_grid.py --smoke"} <= set(RUN)


def test_the_map_names_every_room() -> None:
    text = (ROOT / "README.md").read_text()
    package = ROOT / "platform" / "isoflop"
    rooms = {p.name for p in package.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    files = {p.name for p in package.glob("*.py")} - {"__init__.py"}
    missing = [name for name in sorted(rooms | files) if f"{name}" not in text]
    assert not missing
