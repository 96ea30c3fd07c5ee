"""What is left of a run when the machine fails it, and does the same command go on from there?"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isoflop import record
from isoflop.orchestration.job import Job, execute, result
from isoflop.orchestration.trials import fitting
from isoflop.run import AdamW, Checkpoints, Run
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record
from models import GPT2Config

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]


def quiet(records: list[Record]) -> None: ...


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield folder
    # Lazily: tensors of a test that failed may still be mapped from there.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_checkpoints_and_nothing_else(
    make_run: MakeRun, make_job: MakeJob, small_disk: Path
) -> None:
    run = make_run(tokens=40 * 128)
    whole = execute(make_job(run), Ranks(), quiet)
    job = replace(make_job(run), folder=small_disk / "run")
    often = replace(job, run=replace(run, checkpoints=Checkpoints(seconds=0)))
    filler = small_disk / "filler"

    def fill(records: list[Record]) -> None:
        if records and records[-1]["step"] >= 10 and not filler.exists():
            with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()

    values = execute(often, Ranks(), fill)
    assert values["status"] == "failed" and "No space left" in values["error"]
    assert any(f"no checkpoint at step {k}: " in values["warnings"][0] for k in (10, 11))
    kept = sorted(path.name for path in (job.folder / "checkpoints").glob("step-*"))
    assert kept[-1] in ("step-00000009", "step-00000010"), "the last that was whole"
    assert not list((job.folder / "checkpoints").glob(".step-*")), "no half ones take room"
    assert record.unfinished([job]) == [job]
    filler.unlink()
    again = execute(job, Ranks(), quiet)
    assert (again["status"], again["loss"]) == ("finished", whole["loss"])


def test_out_of_memory_is_a_failed_run_and_the_process_goes_on(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    """The limit is 200 MB above what the process has; 12 layers of width 768 take 350 for weights
    alone."""
    first = make_job(make_run(seed=1), "first")  # what is imported late must not meet the limit
    assert execute(first, Ranks(), quiet)["status"] == "finished"
    huge = make_job(make_run(GPT2Config(context=32, width=768, depth=12, heads=12)), "huge")
    before = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + 200 * 2**20, before[1]))
    try:
        values = execute(huge, Ranks(), quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert values["status"] == "failed", "and is not tried again by itself"
    # The last: an extension that could not even make its MemoryError.
    assert any(word in values["error"] for word in ("allocate", "MemoryError", "SystemError"))
    assert result(huge.folder) == values
    assert (huge.folder / "traceback.txt").read_text() == values["traceback"]
    small = make_job(make_run(), "small")
    assert execute(small, Ranks(), quiet)["status"] == "finished"


def test_a_diverged_run_is_a_fact_and_not_run_again(make_run: MakeRun, make_job: MakeJob) -> None:
    job = make_job(make_run(optimizer=AdamW(lr=1e30, clip=0.0)))
    assert execute(job, Ranks(), quiet)["status"] == "diverged"
    assert record.unfinished([job]) == []


def test_a_damaged_checkpoint_is_said_in_the_result(make_run: MakeRun, make_job: MakeJob) -> None:
    run = make_run(checkpoints=Checkpoints(seconds=0))
    whole = execute(make_job(run, "whole"), Ranks(), quiet)
    job = make_job(run)

    def stop(records: list[Record]) -> None:
        if records and records[-1]["step"] == 12:
            job.stop_file.touch()

    assert execute(job, Ranks(), stop)["status"] == "stopped"
    job.stop_file.unlink()
    newest = job.folder / "checkpoints" / "step-00000012"
    (newest / "model.safetensors").write_bytes(b"noise" * 100)
    steps: list[Record] = []
    values = execute(job, Ranks(), steps.extend)
    assert steps[0]["step"] == 12, "from step 11"
    (said,) = values["warnings"]
    assert str(newest) in said and "trying the one before it" in said
    assert values["loss"] == whole["loss"]
    assert json.loads((job.folder / "result.json").read_text())["warnings"] == [said]


def test_a_smaller_group_shares_the_batch_equally() -> None:
    assert fitting(rows=12, workers=8, units=8) == 6
    assert fitting(rows=12, workers=4, units=3) == 3
    assert fitting(rows=16, workers=4, units=3) == 2
    assert fitting(rows=16, workers=4, units=0) == 1


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_workers_when_a_node_is_gone(corpus: Path, tmp_path: Path) -> None:
    """Two Ray nodes, a worker on each; one node is killed for good once there is a checkpoint."""
    script = Path(__file__).with_name("run_lost_node.py")
    done = subprocess.run(
        [sys.executable, str(script), str(corpus), str(tmp_path)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads((tmp_path / "told.json").read_text())
    ended = result(Path(told["folder"])) or {}
    assert (ended["status"], ended["workers"], ended["step"]) == ("finished", 1, told["last"])
    assert ended["started"] > told["killed"], "the second start finished it"
    history = json.loads((Path(told["folder"]) / "history.json").read_text())
    steps = [values["step"] for values in history]
    assert steps == sorted(set(steps)) and steps[0] == 0
    assert told["steps"].count(0) == 1 and told["saved"] > 0, "it did not begin anew"


STUDY = '''"""A study as a program, for tests that end it."""
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import tiny
from isoflop.study import main
if __name__ == "__main__":
    study = tiny(Path({corpus!r}), tokens=100_000)
    main(study, sys.argv[1:])
'''


def start_study(folder: Path, corpus: Path) -> subprocess.Popen[str]:
    """Four points of it, two at once, with checkpoints all the time."""
    file = folder / "study.py"
    file.write_text(STUDY.format(tests=str(Path(__file__).parent), corpus=str(corpus)))
    chosen = ["--only", "arch=gpt2", "--only", "width=4", "--only", "width=32"]
    words = ["--storage", str(folder / "results"), "--at-once", "2", "--set", "checkpoints=0.2"]
    return subprocess.Popen(
        [sys.executable, str(file), *words, *chosen], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, after: float) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        times = [
            p.stat().st_mtime for p in folder.glob("*/runs/*/checkpoints/step-*") if p.exists()
        ]
        if any(moment > after for moment in times):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no checkpoint within two minutes")


def seconds(result: Path) -> float:
    """How long a finished run trained."""
    took: float = json.loads(result.read_text())["seconds"]
    return took


@pytest.mark.slow
def test_the_same_command_goes_on_after_ctrl_c_and_after_kill_9(
    corpus: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    first = start_study(tmp_path, corpus)
    wait_for_checkpoint(first, results, 0.0)
    os.kill(first.pid, signal.SIGINT)
    asked = time.monotonic()
    shown, _ = first.communicate(timeout=120)
    assert first.returncode == 130 and "the same command goes on from here" in shown
    assert time.monotonic() - asked < 60

    second = start_study(tmp_path, corpus)
    wait_for_checkpoint(second, results, time.time())
    os.kill(second.pid, signal.SIGKILL)
    second.communicate(timeout=60)
    kept = {p: seconds(p) for p in results.glob("*/runs/*/result.json")
            if "finished" in p.read_text()}  # fmt: skip

    third = start_study(tmp_path, corpus)
    shown, errors = third.communicate(timeout=300)
    assert third.returncode == 0, errors
    ended = [json.loads(p.read_text()) for p in results.glob("*/runs/*/result.json")]
    assert [values["status"] for values in ended] == ["finished"] * 4
    assert all(seconds(path) == took for path, took in kept.items()), "another training"
    for path in results.glob("*/runs/*/history.json"):
        steps = [values["step"] for values in json.loads(path.read_text())]
        assert steps == sorted(set(steps)) and steps[0] == 0
