"""Does `isoflop reward` teach a checkpoint, leave one behind, and refuse what it cannot?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.exchange.checkpoint import load_checkpoint
from isoflop.orchestration.job import Job, execute
from isoflop.reward import go_on
from isoflop.rollouts.grpo import Settings
from isoflop.rollouts.rubric import of_text, text
from isoflop.rollouts.verifiers import read_traces
from isoflop.run import Run
from isoflop.sample import write
from isoflop.training.distributed import Ranks

MakeJob = Callable[..., Job]
RUBRIC = """
from isoflop.rollouts.rubric import metric, reward

@reward(1.0)
def letters(completion):
    return sum(c == "e" for c in completion) / max(1, len(completion))

@metric
def size(completion):
    return len(completion)

def helper(completion):
    return 0.0
"""


@pytest.fixture
def folder(make_run: Callable[..., Run], make_job: MakeJob) -> Path:
    job = make_job(make_run("llama"))
    assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    return job.folder


@pytest.fixture
def rubric(tmp_path: Path) -> Path:
    file = tmp_path / "rubric.py"
    file.write_text(RUBRIC)
    return file


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.txt"
    file.write_text("def \nx = \nif \nfor \nimport \nclass \n")
    return str(file)


SETTINGS = Settings(samples=8, new_tokens=12)


def test_the_reward_rises_on_the_same_prompts_and_seeds(
    folder: Path, rubric: Path, prompts: str, tmp_path: Path
) -> None:
    out = tmp_path / "taught"
    found = go_on(folder, out, SETTINGS, rubric=rubric, prompts=prompts, steps=25, lr=5e-3)
    assert found.difference.prompts == 6
    assert found.difference.low is not None and found.difference.low > 0.1
    assert found.parts["letters"][1] == pytest.approx(found.after.value)
    assert len(found.steps) == 25
    before, after = (read_traces(out / name / "traces.jsonl") for name in ("before", "after"))
    assert len(before) == len(after) == 6 * 8
    assert [t.task.prompt for t, _ in before] == [t.task.prompt for t, _ in after]
    mean = sum(score.reward or 0 for _, score in after) / len(after)
    assert mean == pytest.approx(found.after.value)
    assert len(json.loads((out / "rewards.json").read_text())) == 25

    loaded = load_checkpoint(out)
    assert loaded.run == load_checkpoint(folder).run
    written = write(out, ["def "], tokens=12, seed=1)[0]
    assert written.count("e") > write(folder, ["def "], tokens=12, seed=1)[0].count("e")
    again = go_on(folder, tmp_path / "again", SETTINGS, rubric=rubric, prompts=prompts, steps=2)
    assert (
        go_on(folder, tmp_path / "more", SETTINGS, rubric=rubric, prompts=prompts, steps=2) == again
    )


def test_the_command_tells_what_it_came_to(
    folder: Path, rubric: Path, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reward", str(folder), "--out", str(tmp_path / "out"), "--rubric", str(rubric)]
    words += ["--prompts", prompts, "--steps", "3", "--tokens", "8", "--samples", "4"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "step    2  reward " in shown
    assert "on the same 6 prompts and seeds" in shown
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "there is something already" in capsys.readouterr().err


def test_the_rubric_that_comes_with_it() -> None:
    found = of_text(text("python"))
    functions = {function.__name__: weight for function, weight in found.functions}
    assert functions == {"brackets": 1.0, "varied": 0.5, "characters": 0.0}


def test_a_file_without_rewards_is_no_rubric(tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("def score(completion):\n    return 1\n")
    with pytest.raises(ValueError, match="is marked @reward or @metric"):
        text(file)
    file.write_text("def score(completion) return 1")
    with pytest.raises(ValueError, match="cannot be read"):
        text(file)
    with pytest.raises(ValueError, match="cannot be read"):
        text(tmp_path / "missing.py")


def test_a_model_that_does_not_write_from_left_to_right_is_refused(
    make_run: Callable[..., Run], make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(make_run("diffusion"))
    execute(job, Ranks(), lambda records: None)
    with pytest.raises(ValueError, match="from left to right"):
        go_on(job.folder, tmp_path / "out", SETTINGS)
