"""Can a run go on where it left off when nothing but a URL is left of the machine it was on?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from isoflop.campaign import Campaign, Machine
from isoflop.design import Study, UserError, grid
from isoflop.orchestration import mirror as room
from isoflop.orchestration.job import Job, execute, result
from isoflop.orchestration.mirror import Mirror, is_url, not_checkpoints
from isoflop.rollouts.capture import read
from isoflop.run import AdamW, Checkpoints, Evaluation, Run, Text
from isoflop.study import main
from isoflop.training.distributed import Ranks
from models import GPT2Config


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Storage of which files get their names at the end, and storage that takes them whole."""
    if request.param == "memory":
        return f"memory://{uuid4().hex}"
    return f"file://{tmp_path / 'store'}"


@pytest.fixture(autouse=True)
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Where copies go; a test puts another machine's place there."""
    place = [tmp_path / "here"]
    monkeypatch.setattr(room, "_copies", lambda: place[0])
    yield place


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_pushed_is_what_others_pull(url: str, machines: list[Path], tmp_path: Path) -> None:
    here = Mirror.of(url)
    write(here.local / "s" / "a" / "one.bin", "1")
    write(here.local / "s" / "state.json", "{}")
    write(here.local / "s" / ".half.bin", "not yet whole")
    here.push(here.local / "s")
    machines[0] = tmp_path / "there"
    there = Mirror.of(url)
    assert there.local != here.local
    there.pull(there.local / "s", lambda name: not name.endswith("state.json"))
    found = {p.relative_to(there.local).as_posix() for p in (there.local / "s").rglob("*.*")}
    assert found == {"s/a/one.bin"}
    there.pull(there.local / "s")
    assert (there.local / "s" / "state.json").read_text() == "{}"
    write(here.local / "s" / "state.json", "[]")  # as long as before, and it may change
    here.push(here.local / "s")
    there.pull(there.local / "s")
    assert (there.local / "s" / "state.json").read_text() == "[]"


def test_checkpoints_are_those_that_are_whole_at_the_url(
    url: str, machines: list[Path], tmp_path: Path
) -> None:
    here = Mirror.of(url)
    run = here.local / "s" / "runs" / "r"
    for step in ("step-1", "step-2"):
        for name in ("model.bin", "state.json"):
            write(run / "checkpoints" / step / name, step)
        here.checkpoint(run / "checkpoints" / step)
    shutil.rmtree(run / "checkpoints" / "step-1")
    write(run / "checkpoints" / "step-3" / "model.bin", "never sent whole")
    here.push(run / "checkpoints" / "step-3")
    here.checkpoint(run / "checkpoints" / "step-2")  # what is dropped here is dropped there

    machines[0] = tmp_path / "there"
    there = Mirror.of(url)
    other = there.local / "s" / "runs" / "r"
    write(other / "checkpoints" / "step-9" / "state.json", "another worker never saw this")
    there.begin(other, [])
    steps = sorted(path.name for path in (other / "checkpoints").iterdir())
    assert steps == ["step-2"]
    assert (other / "checkpoints" / "step-2" / "model.bin").read_text() == "step-2"


def test_the_driver_leaves_weights_where_they_are() -> None:
    assert not_checkpoints("runs/r/result.json") and not_checkpoints("r.json")
    assert not not_checkpoints("runs/r/checkpoints/step-1/state.json")
    assert not not_checkpoints("checkpoints/step-1/state.json")
    assert is_url("s3://bucket/lab") and not is_url("/data/lab")


def test_what_nothing_opens_is_one_sentence() -> None:
    with pytest.raises(UserError, match="--storage pigeon://coop: "):
        Machine.at("pigeon://coop")


def point(*, width: int) -> Run:
    return Run(
        model=GPT2Config(context=32, width=width, depth=1, heads=2),
        data=Text(source="nowhere", tokenizer="bytes"),
        tokens=128 * 40,
        batch_tokens=128,
        optimizer=AdamW(lr=1e-2),
        evaluation=Evaluation(tokens=512, times=2),
        checkpoints=Checkpoints(seconds=0),
    )


STUDY = Study(name="far", run=point, points=grid(width=[8]), family="width", budget="width")


def job(url: str, text: Path, *others: str) -> Job:
    machine = Machine.at(url)
    machine.fetch(STUDY.name)
    overrides = [f"data={text}", *others]
    made = Campaign.prepare(STUDY, machine, list(STUDY.points), overrides, quiet=True)
    return made.jobs[0]


def test_another_machine_goes_on_from_the_checkpoint(
    url: str, machines: list[Path], tmp_path: Path, text_folder: Path
) -> None:
    alone = tmp_path / "alone"
    overrides = [f"data={text_folder}"]
    undisturbed = Campaign.prepare(STUDY, Machine(storage=alone), list(STUDY.points), overrides,
                                   quiet=True).jobs[0]  # fmt: skip
    expected = execute(undisturbed, Ranks(), lambda records: None)["loss"]

    first = job(url, text_folder)

    class Gone(BaseException):
        """The machine, in the middle of the run."""

    def report(records: list[dict[str, float]]) -> None:
        if records and records[-1].get("step", 0) >= 20:
            raise Gone

    with pytest.raises(Gone):
        execute(first, Ranks(), report)
    machines[0] = tmp_path / "there"
    second = job(url, text_folder)
    assert second.folder != first.folder and result(second.folder) is None
    seen: list[float] = []
    values = execute(
        replace(second, prepared=second.prepared), Ranks(),
        lambda records: seen.extend(r["step"] for r in records),
    )  # fmt: skip
    assert values["status"] == "finished" and values["loss"] == expected
    assert min(seen) > 1, "it did not begin anew"

    machines[0] = tmp_path / "driver"
    third = job(url, text_folder)
    assert (result(third.folder) or {})["loss"] == expected
    assert not (third.folder / "checkpoints").exists(), "weights stay where they are"


def test_what_was_captured_before_a_machine_was_lost_is_at_the_url(
    url: str, machines: list[Path], tmp_path: Path, text_folder: Path
) -> None:
    """The run that goes on elsewhere takes it for done; the last machine's error is no more."""
    asked = (
        'rollouts.prompts=["a", "def "]', "rollouts.budget=1e6", "rollouts.captures=4",
        "rollouts.new_tokens=8",
    )  # fmt: skip
    first = job(url, text_folder, *asked)

    class Gone(BaseException):
        """The machine, in the middle of the run."""

    def report(records: list[dict[str, float]]) -> None:
        if records and records[-1].get("step", 0) >= 30:
            raise Gone

    (first.folder).mkdir(parents=True)
    (first.folder / "traceback.txt").write_text("of an earlier attempt")
    assert first.mirror is not None
    first.mirror.end(first.folder)
    with pytest.raises(Gone):
        execute(first, Ranks(), report)
    machines[0] = tmp_path / "there"
    assert execute(job(url, text_folder, *asked), Ranks(), lambda r: None)["status"] == "finished"
    machines[0] = tmp_path / "driver"
    last = job(url, text_folder, *asked)
    history = json.loads((last.folder / "history.json").read_text())
    measured = {record["step"] for record in history if "rollout/entropy" in record}
    assert set(read(last.folder / "rollouts")["step"]) == measured and len(measured) == 4
    assert not (last.folder / "traceback.txt").exists()


def test_a_study_ends_with_all_it_has_at_the_url(
    tmp_path: Path, text_folder: Path, machines: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(campaign: Campaign, left: list[Job], source: None) -> bool:
        for one in left:
            execute(one, Ranks(), lambda records: None)
        campaign.report()
        return False

    monkeypatch.setattr("isoflop.execution.carry_out", here)
    url = f"file://{tmp_path / 'store'}"
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(STUDY, ["--storage", url, "--set", f"data={text_folder}"])
        assert not ended.value.code
        machines[0] = tmp_path / "another laptop"  # the second time, nothing is trained
    store = tmp_path / "store" / "far"
    assert (store / "report.html").is_file() and (store / "runs.parquet").is_file()
    (run,) = (store / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    assert len(list((run / "checkpoints").glob("step-*/model.safetensors"))) == 1
    assert not (store / "lock").exists() and not (store / "driver.json").exists()
