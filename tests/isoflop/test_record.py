"""Does the run table hold every run, whatever became of it?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from isoflop import record
from isoflop.orchestration.job import Job, execute
from isoflop.run import AdamW, Checkpoints, Rollouts, Run
from isoflop.training.checkpoint import write_json
from isoflop.training.distributed import Ranks
from models import MoEConfig
from models.moe import Routing

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]
ASKED = Rollouts(prompts=("", "def "), seeds=2, new_tokens=8, captures=2, budget=1)


@pytest.fixture
def jobs(make_run: MakeRun, make_job: MakeJob) -> dict[str, Job]:
    """One of each end: finished, diverged, failed, stopped, killed, and never started."""
    runs = {
        "finished": make_run("gpt2", rollouts=ASKED),
        "diverged": make_run("gpt2", optimizer=AdamW(lr=1e30, clip=0.0)),
        "failed": make_run("llama", rollouts=replace(ASKED, new_tokens=999)),
        "stopped": make_run("llama", rollouts=ASKED),
        "killed": make_run("gpt2", seed=7, checkpoints=Checkpoints(seconds=0)),
        "missing": make_run("llama", seed=8),
    }
    jobs = {name: make_job(run, name, arch=run.model.name, case=name) for name, run in runs.items()}
    for name in ("finished", "diverged", "failed", "killed"):
        execute(jobs[name], Ranks(), lambda records: None)
    jobs["stopped"].stop_file.touch()
    execute(jobs["stopped"], Ranks(), lambda records: None)
    jobs["stopped"].stop_file.unlink()
    for name in ("result.json", "history.json"):  # it was killed before it could write them
        (jobs["killed"].folder / name).unlink()
    return jobs


def test_every_job_has_its_row(jobs: dict[str, Job]) -> None:
    table = record.table(list(jobs.values())).set_index("axis.case")
    expected = {**{name: name for name in jobs}, "killed": "missing"}
    assert table["status"].to_dict() == expected
    assert set(record.RESULTS) < set(table.columns)
    measured = table["loss"].notna()
    assert table.index[measured].tolist() == ["finished"], "only a finished run has a final loss"
    errors = {name: str(error) for name, error in table["error"].dropna().items()}
    assert set(errors) == {"failed", "diverged"}
    assert "new_tokens is 999" in errors["failed"] and "not finite" in errors["diverged"]
    for name, job in jobs.items():
        row = table.loc[name]
        assert (row["run"], row["study"]) == (job.run.identity, "test")
        assert row["axis.arch"] == job.run.model.name == row["model"]
    assert table["rollout/entropy"].dropna().index.tolist() == ["finished", "stopped"]
    assert table.loc["finished", ["seconds", "started", "host"]].notna().all()


def test_a_row_counts_by_every_convention(make_run: MakeRun) -> None:
    run = make_run("gpt2")
    count = run.model.parameters()
    found = record.described(run, unique_tokens=1000)
    assert found["flops"] == run.training_flops
    parts = (found[f"flops_{part}"] for part in ("body", "attention", "head"))
    assert sum(parts) == run.training_flops
    assert found["flops_6nd_all"] == 6 * count.all * 2560
    assert found["flops_6nd_without_embeddings"] == 6 * count.without_embeddings * 2560
    assert (found["params_all"], found["tokens"], found["epochs"]) == (count.all, 2560, 2.56)
    assert (found["model.width"], found["model.vocab"]) == (16, 257)
    assert all(isinstance(value, int | float | str) for value in found.values()), "flat"


def test_experts_that_no_token_uses_are_counted_apart(make_run: MakeRun) -> None:
    def of(top: int) -> dict[str, object]:
        routing = Routing(experts=4, top=top)
        model = MoEConfig(width=16, depth=2, heads=2, context=16, vocab=257, routing=routing)
        return record.described(replace(make_run("gpt2"), model=model), unique_tokens=1000)

    few, all_of_them = of(1), of(4)
    assert few["flops"] < all_of_them["flops"] == all_of_them["flops_if_dense"]
    assert few["flops_if_dense"] == all_of_them["flops"]
    assert few["params_active"] < few["params_all"] == all_of_them["params_active"]


def test_curves_are_of_whatever_has_been_logged(jobs: dict[str, Job]) -> None:
    curves = record.curves(list(jobs.values()))
    lengths = {name: len(curves.get(job.run.identity, [])) for name, job in jobs.items()}
    assert lengths["finished"] == lengths["killed"] == 21
    assert lengths["stopped"] == 2 and lengths["diverged"] >= 2
    assert lengths["failed"] == lengths["missing"] == 0
    curve = curves[jobs["finished"].run.identity]
    assert curve["step"].tolist() == list(range(21))
    assert curve["val/loss"].notna().sum() == 4, "NaN where it was not measured"
    last = curves[jobs["diverged"].run.identity].iloc[-1]
    assert not math.isfinite(last["train/loss"])


def test_rollouts_of_all_runs_are_one_frame(jobs: dict[str, Job]) -> None:
    rows = record.rollouts(list(jobs.values()))
    finished, stopped = (jobs[name].run.identity for name in ("finished", "stopped"))
    assert rows.groupby("run")["step"].unique().map(list).to_dict() == {
        finished: [0, 20],
        stopped: [0],
    }
    assert record.rollouts([jobs["missing"], jobs["failed"]]).empty


def test_unfinished_are_those_without_a_final_result(jobs: dict[str, Job]) -> None:
    left = record.unfinished(list(jobs.values()))
    assert [job.axes["case"] for job in left] == ["failed", "stopped", "killed", "missing"]


def test_the_table_survives_parquet(jobs: dict[str, Job], tmp_path: Path) -> None:
    table = record.table(list(jobs.values()))
    path = tmp_path / "runs.parquet"
    path.write_bytes(b"an older table")
    record.save(table, path)
    found = pd.read_parquet(path)
    assert list(found.columns) == list(table.columns)
    for name in table.columns:
        values = [value if pd.notna(value) else None for value in table[name]]
        assert [value if pd.notna(value) else None for value in found[name]] == values, name
    assert not list(tmp_path.glob(".*")), "no partial file is left"


def test_a_torn_history_is_that_of_the_newest_checkpoint(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    job = make_job(make_run())
    for step in (3, 5):
        folder = job.folder / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        history = [{"step": i, "train/loss": 1.0 / (i + 1)} for i in range(step + 1)]
        write_json(folder / "state.json", {"progress": {"step": step, "history": history}})
    assert record.curves([job])[job.run.identity]["step"].tolist() == list(range(6))
    (folder / "state.json").write_text(json.dumps({"progress": {"history": []}})[:9])
    assert record.curves([job])[job.run.identity]["step"].tolist() == list(range(4))
    (folder.parent / "step-00000003" / "state.json").write_text("")
    assert record.curves([job]) == {}
