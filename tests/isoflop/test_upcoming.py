"""Does `--next` rank what a study can build, do the best of it once, and keep it in the study?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from isoflop import record
from isoflop.campaign import Campaign, Machine
from isoflop.design import OBJECTIVES, Study, UserError, added, extended, grid
from isoflop.orchestration.job import Job, execute, result
from isoflop.run import AdamW, Evaluation, Run, Text
from isoflop.study import main
from isoflop.training.distributed import Ranks
from isoflop.upcoming import Wish, buildable, candidates, combinations, next_runs
from models import GPT2Config

DEPTH = {8: 1, 16: 1, 24: 1}
AXES: dict[str, list[Any]] = {
    "arch": ["gpt2"], "width": [8, 16, 24], "flops": [1e7, 3e7, 9e7], "seed": [0],
}  # fmt: skip


def run(*, arch: str, width: int, flops: float, seed: int) -> Run:
    return Run(
        model=GPT2Config(context=32, width=width, depth=DEPTH[width], heads=2),
        data=Text(source="nowhere", tokenizer="bytes"),
        flops=flops,
        batch_tokens=128,
        optimizer=AdamW(lr=1e-2),
        evaluation=Evaluation(tokens=512, times=1),
        seed=seed,
    )


STUDY = Study(name="little", run=run, points=grid(**AXES))
Command = Callable[..., int]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def command(storage: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The study's command line; runs are carried out in this process, without Ray."""

    def here(campaign: Campaign, left: list[Job], source: object = None) -> bool:
        for job in left:
            execute(job, Ranks(), lambda records: None)
        record.save(record.table(campaign.jobs), campaign.folder / "runs.parquet")
        return False

    monkeypatch.setattr("isoflop.execution.carry_out", here)

    def call(*arguments: str) -> int:
        where = ["--set", f"data={text_folder}", "--storage", str(storage)]
        with pytest.raises(SystemExit) as ended:
            main(STUDY, [*where, *arguments])
        return int(str(ended.value.code or 0))

    return call


@pytest.fixture
def campaign(storage: Path, text_folder: Path) -> Campaign:
    study = extended(STUDY, storage)
    points = list(study.points)
    overrides = [f"data={text_folder}"]
    return Campaign.prepare(study, Machine(storage=storage), points, overrides, quiet=True)


def trained(storage: Path) -> set[str]:
    return {path.parent.name for path in storage.glob("little/runs/*/result.json")}


def test_ranks_runs_and_keeps(
    command: Command, storage: Path, campaign: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--next") == 2
    assert "no run has finished" in capsys.readouterr().err
    assert command("--only", "flops=1e7") == 0
    capsys.readouterr()
    assert command("--next", "--spend", "1e9") == 0
    shown = capsys.readouterr().out
    assert "gpt2: 3 runs predict" in shown and "Nothing has been started" in shown
    assert "interval before" in shown
    folder = storage / "little"
    assert (folder / "figures" / "next.png").read_bytes().startswith(b"\x89PNG")
    said = json.loads((folder / "next.json").read_text())
    assert said["unit"] == "FLOPs" and len(said["next"]) >= 2
    assert said["next"][0]["interval_before"] > said["next"][0]["interval_after"]
    assert not (folder / "points.json").exists() and len(trained(storage)) == 3

    assert command("--next", "--spend", "1e9", "--go", "2") == 0
    capsys.readouterr()
    assert len(trained(storage)) == 5
    best = [row["axes"] for row in said["next"][:2]]
    table = pd.read_parquet(folder / "runs.parquet")
    for axes in best:
        row = table
        for name, value in axes.items():
            row = row[row[f"axis.{name}"] == value]
        assert list(row["status"]) == ["finished"], "recorded as every other run"


def test_a_study_that_judges_by_bits_per_byte_is_asked_in_them(
    campaign: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in campaign.jobs:
        execute(job, Ranks(), lambda records: None)
    said = {}
    for objective in OBJECTIVES:
        asking = replace(campaign, study=replace(campaign.study, objective=objective))
        assert next_runs(asking, [f"data={asking.jobs[0].run.data.source}"], Wish()) == 0
        (line,) = [x for x in capsys.readouterr().out.splitlines() if "runs predict" in x]
        said[objective] = (float(line.split("predict ")[1].split()[0]), line)
    assert " nats per token " in said["val/loss"][1]
    assert " bits per byte " in said["val/bits_per_byte"][1]
    ratio = said["val/loss"][0] / said["val/bits_per_byte"][0]
    assert ratio == pytest.approx(math.log(2), rel=0.01), "raw bytes"


def test_runs_beyond_the_study_stay_in_it(
    command: Command, storage: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all its points done, a study can still grow: larger budgets and new seeds."""
    assert command() == 0
    assert len(trained(storage)) == 9
    assert command("--next", "--go", "1", "--spend", "1e9") == 0
    (point,) = added(storage / "little")
    assert point not in list(STUDY.points)
    assert point["flops"] == 2.7e8 or point["seed"] == 1
    assert len(trained(storage)) == 10
    before = trained(storage)
    capsys.readouterr()
    assert command() == 0
    assert "all 10 runs have finished before" in capsys.readouterr().out
    assert trained(storage) == before
    for axis, value in point.items():
        assert command("--print-config", "--only", f"{axis}={value}") == 0


def test_what_was_taken_up_is_finished_first(
    command: Command, storage: Path, campaign: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--only", "flops=1e7") == 0
    point = {"arch": "gpt2", "width": 8, "flops": 1e7, "seed": 1}
    (storage / "little" / "points.json").write_text(json.dumps([point]))
    capsys.readouterr()
    assert command("--next", "--go", "3") == 0
    assert "1 runs taken up before are not finished; they come first" in capsys.readouterr().out
    assert len(trained(storage)) == 4 and added(storage / "little") == [point]


def test_candidates_are_what_has_no_result_and_can_be_built(campaign: Campaign) -> None:
    overrides = [f"data={campaign.jobs[0].run.data.source}"]
    everything = candidates(campaign, overrides)
    assert {job.axes["flops"] for job in everything} == {1e7, 3e7, 9e7, 2.7e8}
    assert {job.axes["seed"] for job in everything} == {0}, "a new place before a new seed"
    done = campaign.jobs[0]
    assert execute(done, Ranks(), lambda records: None)["status"] == "finished"
    left = candidates(campaign, overrides)
    assert done.run.identity not in {job.run.identity for job in left}
    again = next(
        job for job in left if (job.run.model, job.run.tokens) == (done.run.model, done.run.tokens)
    )
    assert again.axes == {**done.axes, "seed": 1}
    assert len({(job.run.model, job.run.tokens) for job in left}) == len(left)


def test_a_failed_run_is_no_candidate(campaign: Campaign) -> None:
    overrides = [f"data={campaign.jobs[0].run.data.source}"]
    failed = campaign.jobs[1]
    failed.folder.mkdir(parents=True)
    (failed.folder / "result.json").write_text('{"status": "failed"}')
    assert (result(failed.folder) or {})["status"] == "failed"
    identities = {job.run.identity for job in candidates(campaign, overrides)}
    assert failed.run.identity not in identities


def test_combinations_and_what_cannot_be_built() -> None:
    points = combinations(STUDY)
    assert points[: len(STUDY.points)] == list(STUDY.points)
    assert len(points) == 3 * 4 * 2
    wide = {"arch": "gpt2", "width": 32, "flops": 1e7, "seed": 0}
    assert buildable(STUDY, wide, []) is None, "no depth is known for that width"
    assert buildable(STUDY, points[-1], []) is not None
    single = replace(STUDY, points=grid(**{**AXES, "flops": [1e7]}))
    assert {p["flops"] for p in combinations(single)} == {1e7, 3e7}


def test_prices_rank_by_dollars(
    command: Command, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--only", "flops=1e7") == 0
    assert command("--next", "--price", "2.5", "--spend", "10") == 0
    assert "dollars" in capsys.readouterr().out
    assert json.loads((storage / "little" / "next.json").read_text())["unit"] == "dollars"


@pytest.mark.parametrize(("arguments", "said"), [
    (["--go", "2"], "--go belongs to --next"),
    (["--target", "1e9"], "--target belongs to --next"),
    (["--next", "--go", "0"], "--go is 0; it must be above 0"),
    (["--next", "--target", "inf"], "--target is inf"),
    (["--next", "--price", "-1"], "--price is -1.0"),
])  # fmt: skip
def test_wrong_input_is_one_line(
    arguments: list[str], said: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_points_of_another_study_are_refused(storage: Path) -> None:
    folder = storage / "little"
    folder.mkdir(parents=True)
    (folder / "points.json").write_text('[{"width": 8}]')
    with pytest.raises(ValueError, match="holds points of other axes than arch, width, flops"):
        extended(STUDY, storage)
    (folder / "points.json").write_text("[{")
    with pytest.raises(ValueError, match="cannot be read"):
        extended(STUDY, storage)
    with pytest.raises(UserError, match="--spend is 0"):
        Wish(spend=0.0)


@pytest.mark.slow
def test_the_whole_command(
    storage: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through Ray: a pilot, then the best two of what it leaves open."""
    where = ["--set", f"data={text_folder}", "--storage", str(storage)]
    for what in (["--only", "flops=1e7"], ["--next", "--go", "2", "--spend", "1e9"]):
        with pytest.raises(SystemExit) as ended:
            main(STUDY, [*where, *what])
        assert not ended.value.code
    assert len(trained(storage)) == 5
    assert "2 runs to train" in capsys.readouterr().out
    assert (storage / "little" / "report.html").exists()
