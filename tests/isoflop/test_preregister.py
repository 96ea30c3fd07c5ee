"""Are the largest runs held back until they are predicted, and scored once they are done?"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from isoflop.campaign import Campaign, Machine
from isoflop.design import Study, grid
from isoflop.orchestration.job import Job, execute
from isoflop.preregister import stages
from isoflop.run import AdamW, Evaluation, Run, Text
from isoflop.scaling import register
from isoflop.scaling.interval import BITS
from isoflop.study import main
from isoflop.training.distributed import Ranks
from models import GPT2Config


def run(*, arch: str, width: int, flops: float) -> Run:
    return Run(
        model=GPT2Config(context=32, width=width, depth=1, heads=2),
        data=Text(source="nowhere", tokenizer="bytes"),
        flops=flops,
        batch_tokens=128,
        optimizer=AdamW(lr=1e-2),
        evaluation=Evaluation(tokens=512, times=1),
    )


AXES: dict[str, list[Any]] = {"arch": ["gpt2"], "width": [8, 16, 24], "flops": [1e7, 3e7, 9e7]}
STUDY = Study(name="said", run=run, points=grid(**AXES))


@pytest.fixture
def campaign(tmp_path: Path, text_folder: Path) -> Campaign:
    overrides = [f"data={text_folder}"]
    machine = Machine(storage=tmp_path / "results")
    made = Campaign.prepare(STUDY, machine, list(STUDY.points), overrides, quiet=True)
    return replace(made, preregister=True)


def carry_out(jobs: list[Job]) -> None:
    for job in jobs:
        assert execute(job, Ranks(), lambda records: None)["status"] == "finished"


def test_smaller_first_then_predictions_then_the_largest(
    campaign: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []
    folder = campaign.folder / "predictions"
    order = stages(campaign, campaign.jobs, heard.append)
    smaller = next(order)
    assert {job.axes["flops"] for job in smaller} == {1e7, 3e7}
    assert "3 runs of the largest budget wait for 6 smaller ones" in heard[0]
    carry_out(smaller)
    assert not folder.exists()
    largest = next(order)
    assert {job.axes["flops"] for job in largest} == {9e7}
    files = {path.stem: path.read_text() for path in folder.glob("*.json")}
    assert set(files) == {job.run.identity for job in largest}
    assert sum(line.startswith("predicted: ") for line in heard) == 3
    carry_out(largest)
    assert next(order, None) is None

    campaign.report()
    assert "of 3 pre-registered predictions lie in their 95 % interval" in capsys.readouterr().out
    table = pd.read_parquet(campaign.folder / "runs.parquet").set_index("run")
    for name, text in files.items():
        assert table.loc[name, "predicted"] == json.loads(text)["loss"]
    assert table["predicted"].notna().sum() == 3
    assert len(pd.read_csv(campaign.folder / "predictions.csv")) == 3
    assert files == {path.stem: path.read_text() for path in folder.glob("*.json")}


def test_predictions_are_in_the_unit_that_the_study_judges_by(campaign: Campaign) -> None:
    bits = replace(campaign, study=replace(STUDY, objective="val/bits_per_byte"))
    heard: list[str] = []
    order = stages(bits, bits.jobs, heard.append)
    carry_out(next(order))
    carry_out(next(order))
    assert sum(" bits per byte [" in line for line in heard) == 3
    found = register.scores(bits.folder)
    assert {scored.prediction.unit for scored in found} == {BITS}
    nats = register.losses(bits.folder)
    for scored in found:  # of raw bytes, a bit per byte is ln 2 nats per token
        assert scored.loss == pytest.approx(nats[scored.prediction.run] / math.log(2), rel=1e-3)
        assert scored.genuine and scored.error is not None
    bits.report()
    rows = pd.read_csv(bits.folder / "predictions.csv")
    assert set(rows["unit"]) == {BITS}


def test_a_run_that_has_begun_is_not_predicted(campaign: Campaign) -> None:
    heard: list[str] = []
    order = stages(campaign, campaign.jobs, heard.append)
    carry_out(next(order))
    begun = next(job for job in campaign.jobs if job.axes["flops"] == 9e7)
    begun.folder.mkdir(parents=True)
    (begun.folder / "run.json").write_text("{}")
    assert len(next(order)) == 3
    assert "1 of the largest runs have begun before: not predicted" in heard
    assert len(list(campaign.folder.glob("predictions/*.json"))) == 2


def test_the_first_prediction_stays(campaign: Campaign) -> None:
    """A study that was stopped between its stages says nothing new."""
    order = stages(campaign, campaign.jobs, lambda line: None)
    smaller = next(order)
    carry_out(smaller)
    left = [job for job in campaign.jobs if job not in smaller]
    assert next(order) == left
    paths = sorted(campaign.folder.glob("predictions/*.json"))
    before = [path.read_text() for path in paths]
    assert list(stages(campaign, left, lambda line: None)) == [left]
    assert [path.read_text() for path in paths] == before


def test_without_a_law_there_is_no_prediction_and_the_runs_go_on(campaign: Campaign) -> None:
    heard: list[str] = []
    left = [job for job in campaign.jobs if job.axes["flops"] == 9e7]
    assert list(stages(campaign, left, heard.append)) == [left]
    assert heard == ["no prediction for gpt2: no smaller run has finished; finish some"]


@pytest.mark.slow
def test_the_whole_command(
    tmp_path: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through Ray: the stages follow each other in one command."""
    where = ["--set", f"data={text_folder}", "--storage", str(tmp_path), "--at-once", "1"]
    with pytest.raises(SystemExit) as ended:
        main(STUDY, [*where, "--preregister"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert shown.count("predicted: ") == 3 and "of 3 pre-registered predictions" in shown
    table = pd.read_parquet(tmp_path / "said" / "runs.parquet")
    assert (table["status"] == "finished").all()
    largest = table["axis.flops"] == 9e7
    assert table[largest]["started"].min() >= table[~largest]["ended"].max()
