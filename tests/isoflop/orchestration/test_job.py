"""What does a job leave behind when it ends well, badly, or not at all?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoflop import __version__
from isoflop.data.frames import FRAMES
from isoflop.data.mixture import prepare_all
from isoflop.orchestration.capturing import overspent
from isoflop.orchestration.job import FINAL, Job, execute, result
from isoflop.rollouts.capture import read
from isoflop.run import Checkpoints, Evaluation, Part, Rollouts, Run, Text
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record
from models import ZOO

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]
ASKED = Rollouts(prompts=("", "def "), seeds=2, new_tokens=8, captures=4, budget=1e6)


def quiet(records: list[Record]) -> None: ...


def run(job: Job) -> dict[str, Any]:
    return execute(job, Ranks(), quiet)


def test_a_finished_job_leaves_its_files(make_run: MakeRun, make_job: MakeJob) -> None:
    job = make_job(make_run(rollouts=ASKED), width=16, lr=0.01)
    reported: list[Record] = []
    values = execute(job, Ranks(), reported.extend)
    assert values["status"] == "finished" in FINAL
    names = {"run.json", "checkpoints", "rollouts", "history.json", "result.json"}
    assert set(os.listdir(job.folder)) == names
    assert os.listdir(job.folder / "checkpoints") == ["step-00000020"]
    assert result(job.folder) == values
    history = json.loads((job.folder / "history.json").read_text())
    measured = {"utilisation"}  # of the machine, and no part of the run's own history
    assert history == [
        {k: v for k, v in r.items() if k not in measured and not k.startswith("system/")}
        for r in reported
    ]
    described = json.loads((job.folder / "run.json").read_text())
    assert Run.from_json(described["run"], ZOO) == job.run
    assert described["identity"] == job.run.identity
    assert (described["study"], described["axes"]) == ("test", {"width": 16, "lr": 0.01})


def test_a_result_sums_up_the_history(make_run: MakeRun, make_job: MakeJob) -> None:
    job = make_job(make_run(rollouts=ASKED, evaluation=Evaluation(tokens=512, times=3)))
    history: list[Record] = []
    before = time.time()
    values = execute(job, Ranks(), history.extend)
    evaluated = [r["val/loss"] for r in history if "val/loss" in r]
    assert len(evaluated) == 4
    assert values["loss"] == evaluated[-1] and values["best_loss"] == min(evaluated)
    assert values["train_loss"] == history[-1]["train/loss"]
    assert values["bits_per_byte"] == history[-1]["val/bits_per_byte"]
    assert (values["step"], values["error"]) == (20, None)
    assert values["seconds"] == history[-1]["seconds"] > 0
    assert values["tokens_per_second"] == pytest.approx(20 * 128 / values["seconds"])
    assert values["evaluation_seconds"] > 0 and values["capture_seconds"] > 0
    last = {k: v for k, v in history[-1].items() if k.startswith("rollout/")}
    assert values["rollouts"].items() >= last.items() and "rollout/entropy" in last
    assert before <= values["started"] <= values["ended"] <= time.time()
    assert (values["workers"], values["device"], values["process"]) == (1, "cpu", os.getpid())
    assert values["versions"]["isoflop"] == __version__


def test_rollouts_are_rows_from_the_start_to_the_end(make_run: MakeRun, make_job: MakeJob) -> None:
    job = make_job(make_run("llama", rollouts=ASKED), arch="llama")
    run(job)
    rows = read(job.folder / "rollouts")
    steps = sorted(rows.step.unique())
    assert (steps[0], steps[-1]) == (0, 20)
    assert len(rows) == 4 * len(steps)
    assert (rows.tokens_seen == rows.step * 128).all()
    per_token = job.run.model.flops_per_token().training
    assert (rows.flops == rows.tokens_seen * float(per_token)).all()
    assert set(rows.run) == {job.run.identity} and set(rows.study) == {"test"}
    assert set(rows["axes"]) == {'{"arch": "llama"}'}
    first, last = rows[rows.step == 0], rows[rows.step == 20]
    assert list(first.text) != list(last.text), "the model has changed meanwhile"


def test_what_captures_cost_is_recorded(make_run: MakeRun, make_job: MakeJob) -> None:
    """Without a budget only the ends are captured, where they are in any case, and the others
    counted."""
    asked = replace(ASKED, captures=5, budget=0.0, beyond="now")
    job = make_job(make_run("llama", rollouts=asked))
    values = run(job)
    assert set(read(job.folder / "rollouts").step) == {0, 20}
    assert values["captures_skipped"] == 3
    assert values["capture_share"] == values["capture_seconds"] / values["seconds"] > 0
    history = json.loads((job.folder / "history.json").read_text())
    assert len([r for r in history if r.get("capture/skipped")]) == 3
    dear = {"capture_seconds": 3.0, "capture_share": 0.05}
    (said,) = overspent(replace(job.run, rollouts=replace(ASKED, budget=0.02)), dear)
    assert "rollouts took 5.0% of the training time, and their budget is 2.0%" in said
    assert overspent(job.run, {**dear, "capture_seconds": 0.1}) == []


def test_an_error_is_a_failed_result_with_its_traceback(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    job = make_job(make_run(rollouts=replace(ASKED, new_tokens=500)))
    values = run(job)
    assert result(job.folder) == values
    assert values["status"] == "failed" not in FINAL
    assert values["error"].startswith("ValueError: rollouts.new_tokens is 500")
    assert "\n" not in values["error"]
    assert "Traceback" in values["traceback"] and "capture.py" in values["traceback"]


def test_a_failed_job_can_be_tried_again(
    make_run: MakeRun, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(make_run())
    gone = replace(job, prepared=replace(job.prepared, folder=tmp_path / "gone"))
    assert run(gone)["status"] == "failed"
    values = run(job)
    assert values["status"] == "finished" and values["error"] is None
    assert result(job.folder) == values


def test_a_reporter_that_fails_fails_the_job(make_run: MakeRun, make_job: MakeJob) -> None:
    def broken(records: list[Record]) -> None:
        raise RuntimeError("nobody listens")

    values = execute(make_job(make_run()), Ranks(), broken)
    assert (values["status"], values["error"]) == ("failed", "RuntimeError: nobody listens")


def test_one_of_several_workers_lets_its_error_out(make_run: MakeRun, make_job: MakeJob) -> None:
    """The others wait for it in a collective; only whoever started them all can end that."""
    job = make_job(make_run(rollouts=replace(ASKED, new_tokens=500)))
    with pytest.raises(ValueError, match="new_tokens is 500"):
        execute(job, Ranks(rank=0, world=2), quiet)
    assert result(job.folder) is None


def test_a_stopped_job_goes_on(make_run: MakeRun, make_job: MakeJob) -> None:
    whole, parts = (make_job(make_run(rollouts=ASKED), folder) for folder in ("whole", "parts"))
    run(whole)
    parts.stop_file.touch()
    stopped = run(parts)
    assert (stopped["status"], stopped["step"], stopped["loss"]) == ("stopped", 1, None)
    parts.stop_file.unlink()
    assert run(parts)["status"] == "finished"
    assert_same(whole, parts)


@pytest.mark.parametrize("content", [
    b"", b"{", b'{"status": "fini', b"\x00" * 64, b"\xff\xfe\x00\xd8", b"null", b"[1, 2]", b"7"
])  # fmt: skip
def test_a_torn_result_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(content)
    assert result(tmp_path) is None
    assert result(tmp_path / "missing") is None


def assert_same(one: Job, other: Job) -> None:
    """Weights and losses to the bit, and every rollout."""
    weights = [
        (
            job.folder / "checkpoints" / f"step-{job.run.steps:08d}" / "model.safetensors"
        ).read_bytes()
        for job in (one, other)
    ]
    assert weights[0] == weights[1]
    kept = ("step", "train/loss", "val/loss", "gradient_norm", "learning_rate")
    histories = [
        [{k: r[k] for k in kept if k in r} for r in json.loads(path.read_text())]
        for path in (one.folder / "history.json", other.folder / "history.json")
    ]
    assert histories[0] == histories[1]
    columns = ["step", "prompt_id", "sample_id"]
    rows = [read(job.folder / "rollouts").sort_values(columns) for job in (one, other)]
    both = rows[0].merge(rows[1], on=columns, validate="one_to_one")
    assert {0, one.run.steps} <= set(both.step)
    assert (both.text_x == both.text_y).all()
    assert [list(r) for r in both.logprobs_x] == [list(r) for r in both.logprobs_y]


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Until a checkpoint of at least that step is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(int(path.name[5:]) >= step for path in folder.glob("checkpoints/step-*")):
            return
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    raise AssertionError("no checkpoint within a minute")


def test_a_killed_process_loses_nothing_before_its_last_checkpoint(
    make_run: MakeRun,
    make_job: MakeJob,
    start_jobs: Callable[[list[Job], int], list[subprocess.Popen[str]]],
) -> None:
    """kill -9 in the middle, then the same job again: every number as if nothing had happened."""
    asked = replace(ASKED, captures=2, budget=0.0, beyond="now")
    short_run = make_run("llama", tokens=150 * 128, rollouts=asked)
    whole, killed = (make_job(short_run, folder) for folder in ("whole", "killed"))
    often = replace(
        short_run, checkpoints=Checkpoints(seconds=0)
    )  # the same run: its identity says so
    (process,) = start_jobs([replace(killed, run=often)], 1)
    wait_for_step(process, killed.folder, 30)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert result(killed.folder) is None
    assert 30 <= max(int(p.name[5:]) for p in killed.folder.glob("checkpoints/step-*")) < 150
    reported: list[Record] = []
    assert execute(killed, Ranks(), reported.extend)["status"] == "finished"
    assert reported[0]["step"] > 30, "what was done before is not done again"
    assert run(whole)["status"] == "finished"
    assert_same(whole, killed)
    assert os.listdir(killed.folder / "checkpoints") == ["step-00000150"]


def test_a_death_between_the_last_checkpoint_and_the_result_repeats_nothing(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    job = make_job(make_run(rollouts=ASKED))
    values = run(job)
    for name in ("result.json", "history.json"):
        (job.folder / name).unlink()
    reported: list[Record] = []
    again = execute(job, Ranks(), reported.extend)
    assert again["status"] == "finished" and reported == []
    assert (again["loss"], again["seconds"]) == (values["loss"], values["seconds"])


def test_a_mixture_is_read_and_judged_by_its_sources(
    make_run: MakeRun, make_job: MakeJob, text_folder: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "lines").mkdir()
    for k in range(40):
        (tmp_path / "lines" / f"{k}.txt").write_text(f"{k} " + "na " * (40 + k))
    sources = (
        Part(source=str(text_folder), weight=3.0, name="code"),
        Part(source=str(tmp_path / "lines")),
    )
    data = Text(mixture=sources, tokenizer="bytes", validation=0.1)
    prepared = prepare_all(data, cache)
    mixed = replace(data, fingerprint=prepared.fingerprint)
    job = make_job(replace(make_run(), data=mixed))
    job = replace(job, prepared=prepared)
    history: list[Record] = []
    values = execute(job, Ranks(), history.extend)
    assert values["status"] == "finished", values
    told, last = values["data"], history[-1]
    assert (told["share/code"], told["share/lines"]) == (0.75, 0.25)
    for name in ("code", "lines"):
        assert last[f"data/epochs/{name}"] == told[f"epochs/{name}"] > 0
        assert last[f"data/tokens/{name}"] == told[f"share/{name}"] * 20 * 128
    assert told["epochs"] * told["unique_tokens"] == pytest.approx(20 * 128)
    parts = 0.75 * last["val/loss/code"] + 0.25 * last["val/loss/lines"]
    assert last["val/loss"] == pytest.approx(parts)
    assert last["val/loss/lines"] < last["val/loss/code"], "saying na is learned soon"


def test_rows_can_be_cut_in_another_way(make_run: MakeRun, make_job: MakeJob) -> None:
    data = make_run().data
    jobs = [
        make_job(make_run(data=replace(data, rows=rows, stride=stride)), f"{rows}-{stride}")
        for rows, stride in (("stream", 0), ("stream", 8), ("full-windows", 0))
    ]
    ended = [run(job) for job in jobs]
    assert [values["status"] for values in ended] == ["finished"] * 3
    assert len({values["loss"] for values in ended}) == 3
    assert len({values["data"]["unique_tokens"] for values in ended}) == 3
    assert ended[0]["data"]["epochs"] == pytest.approx(ended[1]["data"]["epochs"], rel=0.01)


def test_more_epochs_than_allowed_end_it_before_a_step(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    job = make_job(make_run(data=replace(make_run().data, most_epochs=0.001)))
    reported: list[Record] = []
    values = execute(job, Ranks(), reported.extend)
    assert values["error"].startswith("ValueError: the run's 2560 tokens would read the text 0.01")
    assert not reported


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("rows", FRAMES)
def test_every_way_to_cut_rows_trains(
    make_run: MakeRun, make_job: MakeJob, rows: str, arch: str
) -> None:
    data = replace(make_run().data, rows=rows, held_out="best-fit")
    values = run(job := make_job(make_run(arch, data=data)))
    assert values["status"] == "finished", values["error"]
    history = json.loads((job.folder / "history.json").read_text())
    assert values["loss"] < 0.8 * history[0]["val/loss"], "bytes are learned from any of them"
