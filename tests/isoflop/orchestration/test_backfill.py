"""Does asking a run later give what it would have written, and nothing else?"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from isoflop.cli import main
from isoflop.data.mixture import parts
from isoflop.data.prepare import Prepared
from isoflop.orchestration.backfill import Ended, backfill, rejudge, remeasure
from isoflop.orchestration.job import Job, execute
from isoflop.rollouts import control, judge, prompts, references
from isoflop.rollouts.capture import read
from isoflop.rollouts.metrics import Metric, Sample
from isoflop.rollouts.references import windows
from isoflop.rollouts.regard import regard
from isoflop.rollouts.rewards import of_row
from isoflop.rollouts.rows import scored_as
from isoflop.rollouts.rubric import Rubric
from isoflop.rollouts.verifiers import read_traces, write_traces
from isoflop.run import Rollouts, Run, Spec, Text
from isoflop.training.distributed import Ranks
from models import ZOO

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]

SPECS = (
    Spec(name="held", kind="heldout_prefix", count=3, prefix_tokens=6, seeds=1, new_tokens=8),
    Spec(name="trained", kind="train_prefix", count=3, prefix_tokens=6, temperature=0, seeds=1,
         new_tokens=8),
)  # fmt: skip
ASKED = Rollouts(
    prompts=("", "def "), seeds=2, new_tokens=8, captures=3, budget=1e6, specs=SPECS, novelty=True
)
GREEDY = Spec(name="held", kind="heldout_prefix", count=12, prefix_tokens=6, temperature=0.0,
              seeds=1, new_tokens=8)  # fmt: skip
KEY = ["step", "spec", "prompt_id", "sample_id"]


@pytest.fixture
def done(make_run: MakeRun, make_job: MakeJob, text_folder: Path) -> Job:
    text = Text(source=str(text_folder), tokenizer="bytes", validation=0.1)
    run = make_run(rollouts=ASKED)
    job = make_job(replace(run, data=replace(text, fingerprint=run.data.fingerprint)))
    assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    return job


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    frames = [
        frame.drop(columns="seconds").sort_values(KEY).reset_index(drop=True)
        for frame in (one, other)
    ]
    pd.testing.assert_frame_equal(*frames)


def test_lost_rows_come_back_as_they_were(done: Job, cache: Path) -> None:
    before = read(done.folder / "rollouts")
    assert set(before["spec"]) == {"", "held", "trained"} and before["m.novel_8"].notna().any()
    first, last = (
        sorted((done.folder / "rollouts").glob(f"step-{step:08d}*.parquet")) for step in (0, 20)
    )
    assert len(first) == len(last) == 3
    for path in (*first[:2], *last[:2]):
        path.unlink()
    files = backfill(done.folder, ZOO, cache)
    assert sorted(files) == [*first, *last]
    same(before, read(done.folder / "rollouts"))


def test_references_lie_beside_the_rows(done: Job) -> None:
    known = references.read(done.folder / "rollouts")
    assert set(known) == {"", "held", "trained"}
    assert 0 < (known[""]["novel_8"].value or 0) <= 1
    assert known[""]["unshared"].value is not None
    assert "the only rollout of its prompt" in known["held"]["unshared"].estimator
    for found in known.values():
        without = {name: item.estimator for name, item in found.items() if item.value is None}
        assert set(without) <= {"loop_onset", "loop_period", "parses_as_json", "novel_16",
                                "novel_32", "judged", "brackets", "unshared"}  # fmt: skip
        assert without["judged"] == "no values: no reference model"
        assert without["novel_16"] == "no values: fewer than 16 tokens"
    assert references.read(done.folder) == {}


def test_the_control_is_what_a_full_pass_says(done: Job, cache: Path) -> None:
    ended = Ended.read(done.folder, ZOO)
    model = ended.load(ended.models()[-1][1])
    (file,) = [part.validation() for part in parts(ended.prepared(cache)).values()]
    held = windows([file], 6 + 8, control.WINDOWS)
    with torch.no_grad():
        logits = model(torch.tensor(np.stack(held))[:, :-1]).log_softmax(-1)[:, 5:]
    target = torch.tensor(np.stack(held))[:, 6:]
    own = logits.gather(2, target[:, :, None])[:, :, 0]
    greedy = (logits.argmax(-1) == target).float().cumprod(1)
    known = references.read(done.folder / "rollouts")
    assert known["trained"]["recalled"].value == pytest.approx(greedy.mean().item(), rel=1e-4)
    assert known["held"]["recalled"].value == pytest.approx(
        own.exp().cumprod(1).mean().item(), rel=1e-4
    )
    assert known["held"]["surprise"].value == pytest.approx(-own.mean().item(), rel=0.02)


def test_greedy_rollouts_recite_what_the_control_says(make_run: MakeRun, make_job: MakeJob) -> None:
    """Asked of the same held-out windows, the model writes what one pass over them foretells."""
    job = make_job(make_run(rollouts=Rollouts(specs=(GREEDY,), budget=1e6)))
    assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    rows = read(job.folder / "rollouts")
    rows = rows[rows["step"] == 20]
    file, tokenizer = job.prepared.validation(), job.prepared.tokenizer()
    asked = prompts.resolve(GREEDY, tokenizer, held_out=[file])
    assert rows["prompt"].tolist() == [prompt.text for prompt in asked]
    truths = [prompt.truth for prompt in asked if prompt.truth is not None]
    model = Ended.read(job.folder, ZOO).load(next((job.folder / "checkpoints").glob("step-*")))
    seen = judge.read(model, [prompt.ids for prompt in asked], truths)
    expected = [np.cumprod(one.greedy).mean() for one in seen if isinstance(one, judge.Read)]
    assert rows["m.recalled"].tolist() == pytest.approx(expected)


def test_training_prefixes_count_once_they_were_read(done: Job) -> None:
    rows = read(done.folder / "rollouts")
    trained = rows[rows["spec"] == "trained"]
    early = trained[trained["first_read"] > trained["step"]]
    assert len(early) and early["m.recalled"].isna().all()
    assert (early["why.recalled"] == "training has not read the prompt's text yet").all()
    assert trained[trained["step"] == 20]["m.recalled"].notna().all()
    assert rows[rows["spec"] == "held"]["m.recalled"].notna().all()


def test_further_prompts_and_a_judge(
    done: Job, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.txt"
    own.write_text("import \nclass ")
    further = ["--prompts", str(own), "--new-tokens", "8", "--seeds", "3", "--data", str(cache)]
    with pytest.raises(SystemExit) as ended:
        main(["backfill", str(done.folder), *further, "--judge", str(done.folder)])
    assert ended.value.code == 0 and "judged by" in capsys.readouterr().out
    rows = read(done.folder / "rollouts")
    assert rows[rows["spec"] == "own"].groupby("step").size().to_dict() == {0: 6, 20: 6}
    last = rows[rows["step"] == 20]
    # Its own judge: what the rows say, in half precision and read at once instead of step by step.
    np.testing.assert_allclose(last["m.judged"], last["m.surprise"], rtol=2e-3)
    first = rows[rows["step"] == 0]
    held = references.read(done.folder / "rollouts")["held"]
    assert held["judged"].value == pytest.approx(held["surprise"].value, rel=1e-3)
    assert (first["m.judged"] > 0).all() and not np.allclose(first["m.judged"], first["m.surprise"])


class Point:
    """An entry point of an installed package."""

    name, value = "spaces", "package:metric"

    def load(self) -> Metric:
        def spaces(sample: Sample) -> float:
            return sample.text.count(" ") / len(sample.text)

        return Metric("spaces", "rollout", "band", "share", spaces, "of characters")


def test_packages_measure_rows_that_are_there(
    done: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(done.folder / "rollouts")
    with pytest.raises(ValueError, match="no installed package"):
        remeasure(done.folder)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Point()])
    for _ in range(2):  # the second time instead of the first
        with pytest.raises(SystemExit) as ended:
            main(["backfill", str(done.folder), "--plugins"])
        assert ended.value.code == 0
    assert "step-00000020.parquet  spaces 0." in capsys.readouterr().out
    rows = read(done.folder / "rollouts")
    for text, value, why in zip(rows["text"], rows["m.spaces"], rows["why.spaces"], strict=True):
        assert value == text.count(" ") / len(text) if text else "division" in why
    same(before, rows.drop(columns=["m.spaces", "why.spaces"]))


RUBRIC = """
import random
from isoflop.rollouts.rubric import metric, reward

@reward(2.0)
def right(completion, answer):
    random.random()  # it may draw: nobody else notices
    return float(answer in completion) if answer else 1 / 0

@metric
def of(task, trace):
    return len(trace.completion_ids) + len(task.info.get("tags", ()))
"""
TASKS = (
    {"prompt": "def ", "answer": " ", "info": {"tags": ["a", "b"]}},
    {"prompt": "import ", "answer": ""},
)


@pytest.fixture
def rubric(tmp_path: Path) -> Path:
    file = tmp_path / "rubric.py"
    file.write_text(RUBRIC)
    return file


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    return file


def rewarded_right(rows: pd.DataFrame) -> None:
    for row in rows.to_dict("records"):
        if row["prompt"] != "def ":
            assert np.isnan(row["reward"]) and "ZeroDivision" in row["why.reward.right"]
            continue
        assert row["reward.right"] == float(" " in row["text"])
        assert row["reward"] == 2 * row["reward.right"]
        assert row["reward.of"] == row["n_tokens"] + 2


def test_a_run_is_rewarded_while_it_trains_and_no_bit_changes(
    make_run: MakeRun, make_job: MakeJob, rubric: Path, tasks: Path
) -> None:
    plain = Rollouts(specs=(Spec(name="own", source=str(tasks), seeds=3, new_tokens=8),),
                     captures=3, budget=1e6)  # fmt: skip
    paid = prompts.read(replace(plain, rubric=str(rubric)))
    assert paid.specs[0].answers == (" ", "") and paid.rewards == RUBRIC
    assert paid.science() == replace(paid, rubric="elsewhere.py").science(), "the text counts"
    ended = {}
    for name, asked in (("plain", prompts.read(plain)), ("paid", paid)):
        job = make_job(make_run(rollouts=asked), name)
        ended[name] = execute(job, Ranks(), lambda records: None)
        assert ended[name]["status"] == "finished", ended[name].get("traceback")
    assert ended["plain"]["loss"] == ended["paid"]["loss"]
    rows = read(job.folder / "rollouts")
    rewarded_right(rows)
    last = rows[rows["step"] == 20]
    found = ended["paid"]["rollouts"]
    assert found["rollout/own/reward"] == last["reward"].mean()
    assert "rollout/own/reward_of.low" in found
    history = json.loads((job.folder / "history.json").read_text())
    assert history[-1]["capture/failed/own/reward"] == 3


def test_rows_that_are_there_are_rewarded(
    done: Job, rubric: Path, tasks: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = read(done.folder / "rollouts")
    words = ["backfill", str(done.folder), "--rubric", str(rubric), "--tasks", str(tasks)]
    for _ in range(2):  # the second time instead of the first
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "step-00000020.parquet  right: pass@1 " in said and ", pass@2 " in said
    assert "without a value" in said
    rows = read(done.folder / "rollouts")
    rewarded_right(rows)
    same(before, rows[before.columns])
    exported = tmp_path / "out"
    (row,) = rows[(rows["step"] == 20) & (rows["prompt"] == "def ")].head(1).to_dict("records")
    write_traces(exported, [(of_row(row), scored_as(row))])
    ((_, score),) = read_traces(exported)
    assert score.reward == row["reward"]
    assert (score.weights["right"], score.weights["of"]) == (2.0, 0.0)
    with pytest.raises(ValueError, match="no rollouts to reward"):
        regard(tmp_path, lambda traces: Rubric([len]).score(traces))


def test_what_cannot_be_asked_is_said(done: Job, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the folder of a run"):
        backfill(tmp_path, ZOO, cache)
    values = json.loads((done.folder / "run.json").read_text())
    values["run"]["data"]["fingerprint"] = "other"
    (done.folder / "run.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="has changed since the run"):
        backfill(done.folder, ZOO, cache)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="no rollouts to judge"):
        rejudge(tmp_path / "empty", done.folder, ZOO, cache)
    with pytest.raises(ValueError, match="has no checkpoints"):
        backfill(tmp_path / "empty", ZOO, cache)


def test_two_workers_write_what_one_does(
    make_run: MakeRun,
    make_job: MakeJob,
    start_jobs: Callable[[list[Job], int], list[subprocess.Popen[str]]],
    bytes_text: Prepared,
) -> None:
    """At step 0, where the weights are equal to the bit: the same text, whoever wrote it."""
    run = make_run(rollouts=ASKED)
    alone, shared = make_job(run, "alone"), make_job(run, "shared")
    assert execute(alone, Ranks(), lambda records: None)["status"] == "finished"
    for process in start_jobs([shared], 2):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    first = [read(job.folder / "rollouts") for job in (alone, shared)]
    assert len(first[0]) == len(first[1])
    one, other = (rows[rows["step"] == 0].sort_values(KEY) for rows in first)
    exact = [*KEY, "seed", "text", "stop_condition", "prompt_set"]
    assert one[exact].to_dict("list") == other[exact].to_dict("list")
    for name in ("logprobs", "entropies"):  # products of fewer rows round otherwise
        for mine, theirs in zip(one[name], other[name], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-3)
    assert not [name for name in os.listdir(shared.folder / "rollouts") if name.startswith(".")]
