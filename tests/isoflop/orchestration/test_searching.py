"""Does a study search through Ray: choose, prune, stop, go on, learn from what is there, report?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoflop import record
from isoflop.campaign import Campaign, Machine
from isoflop.design import Search, Study, UserError, extended, search
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.job import execute, result
from isoflop.run import AdamW, Evaluation, Rollouts, Run, Text
from isoflop.searching import Source, findings, possible
from isoflop.space import Pruning, choice, integer, log
from isoflop.training.distributed import Ranks
from isoflop.training.means import Means
from models import GPT2Config, LlamaConfig

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours


def study(corpus: Path, points: Search | None = None, **settings: Any) -> Study:
    def run(*, arch: str, lr: float, heads: int | None, tokens: int) -> Run:
        config = GPT2Config if arch == "gpt2" else LlamaConfig
        return Run(
            model=config(width=8, depth=1, heads=heads or 1, context=32),
            data=Text(source=str(corpus), tokenizer="bytes"),
            tokens=tokens,
            batch_tokens=128,
            optimizer=AdamW(lr=lr),
            evaluation=Evaluation(tokens=512, times=4),
            rollouts=Rollouts(prompts=("", "def "), seeds=2, new_tokens=8, captures=2, budget=1),
        )

    space = (
        points
        if points is not None
        else search(
            arch=choice("gpt2", "llama"),
            lr=log(1e-4, 1e-1),
            heads=integer(1, 3).when(arch="llama"),  # 3 heads do not divide a width of 8
            tokens=4_000,
        )
    )
    return Study(name="hunt", run=run, points=space.by(**settings), budget="tokens")


def campaign(
    corpus: Path, storage: Path, points: Search | None = None, **settings: Any
) -> Campaign:
    made = extended(study(corpus, points, **settings), storage)
    return Campaign.prepare(made, Machine(storage=storage), list(made.points), [], quiet=True)


@pytest.mark.parametrize(
    ("aims", "beyond"),
    [
        ({}, "later"),
        ({"constraints": ("rollout/loop <= 0.9",)}, "now"),
        ({"minimise": ("rollout/entropy",)}, "now"),
    ],
)
def test_what_a_search_is_after_is_captured_at_once(
    corpus: Path, tmp_path: Path, aims: dict[str, Any], beyond: str
) -> None:
    """The next point follows from it: it cannot wait for the end of the study."""
    for job in possible(campaign(corpus, tmp_path, trials=3, **aims), 2):
        assert job.run.rollouts.beyond == beyond


def test_a_search_end_to_end(
    ray_cluster: Resources, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aims: dict[str, Any] = {
        "sampler": "tpe",
        "minimise": ("val/loss", "flops"),
        "near": ("rollout/compression",),
        "constraints": ("rollout/loop <= 0.9",),
    }
    assert campaign(corpus, tmp_path, trials=7, **aims).go() == 0
    shown = capsys.readouterr().out
    assert "7 runs to train, 2 at once (0 done before)" in shown
    made = campaign(corpus, tmp_path, trials=7, **aims)
    found = findings(made)
    assert len(found.tried) + shown.count("cannot be run") == 7
    assert len(made.jobs) == len({one.run for one in found.tried})
    assert {one.status for one in found.tried} == {"finished"}
    table = record.table(made.jobs).set_index("run")
    for one in found.tried:
        assert one.values[:2] == (table["loss"][one.run], table["flops"][one.run])
        reference = record.references(made.jobs)["rollout/compression"][one.run]
        assert one.values[2] == pytest.approx(
            abs(table["rollout/compression"][one.run] - reference)
        )
    page = (tmp_path / "hunt" / "report.html").read_text()
    assert "The front" in page and "Approach 2" not in page
    for picture in ("pareto", "search", "axes"):
        assert (tmp_path / "hunt" / "figures" / f"{picture}.png").exists()
    trials = (tmp_path / "hunt" / "trials.csv").read_text().splitlines()
    assert len(trials) == 1 + len(found.tried)

    before = {job.folder: (job.folder / "result.json").stat().st_mtime_ns for job in made.jobs}
    more = campaign(corpus, tmp_path, trials=9, **aims)
    assert more.go() == 0
    shown = capsys.readouterr().out
    assert "2 runs to train" in shown and f"({len(before)} done before)" in shown
    assert all((f / "result.json").stat().st_mtime_ns == time for f, time in before.items())


def test_another_search_of_the_folder_knows_its_runs(corpus: Path, tmp_path: Path) -> None:
    """Other aims, and a narrower space: the finished runs within it are its first trials."""
    wide = campaign(corpus, tmp_path, trials=6, sampler="random")
    source = Source(wide)
    while job := source():
        source.ended(job, execute(job, Ranks(), lambda records: None))
    narrow = search(arch="gpt2", lr=log(1e-4, 1e-1), heads=None, tokens=4_000)
    second = campaign(corpus, tmp_path, narrow, trials=1, minimise=("val/bits_per_byte",))
    known = [job for job in second.jobs if job.axes["arch"] == "gpt2"]
    assert 1 <= len(known) < len(second.jobs)
    source = Source(second)
    assert source.further == 1
    tried = source.searching.findings().tried
    assert {one.run for one in tried} == {job.run.identity for job in known}


@pytest.mark.parametrize(
    "where",
    [
        "optuna.Trial.suggest_float",
        "isoflop.searching.made",
        "isoflop.orchestration.searches.Searching.begin",
        "isoflop.searching.keep",
        "isoflop.orchestration.searches.Searching.tell",
    ],
)
def test_a_driver_killed_while_it_chooses_loses_no_trial(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Between two writes: to Optuna's storage, to the study's list of points, of a result."""
    points = search(arch="gpt2", lr=log(1e-4, 1e-1), heads=None, tokens=4_000)

    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    def trained(source: Source) -> list[str]:
        done = []
        while job := source():
            done.append(job.run.identity)
            source.ended(job, execute(job, Ranks(), lambda records: None))
        return done

    source = Source(campaign(corpus, tmp_path, points, trials=2, sampler="random"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(where, killed)
        trained(source)
    made = campaign(corpus, tmp_path, points, trials=2, sampler="random")
    told = {job.run.identity for job in made.jobs if result(job.folder)}
    done = trained(Source(made))
    assert len(told) == ("tell" in where) and not told & set(done)
    assert len(told | set(done)) == 2
    found = findings(campaign(corpus, tmp_path, points, trials=2, sampler="random")).tried
    assert [one.status for one in found] == ["finished"] * 2
    assert {one.run for one in found} == told | set(done)


def test_pruning_that_will_end_no_run_is_told(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Source(campaign(corpus, tmp_path, trials=2, pruning=Pruning(first=1_000)))
    assert "ended early" not in capsys.readouterr().out
    Source(campaign(corpus, tmp_path, trials=2, pruning=Pruning(first=3_500)))
    told = capsys.readouterr().out
    assert "warning: no run will be ended early: pruning.first is 3,500 tokens, and a run" in told


@pytest.mark.slow
def test_points_of_one_shape_are_chosen_and_trained_together(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    space = search(arch="gpt2", lr=log(1e-4, 1e-1), heads=None, tokens=4_000)
    made = campaign(corpus, tmp_path, points=space, sampler="tpe", trials=5)
    machine = replace(made.machine, at_once=1, means=Means(together=3))
    assert replace(made, machine=machine).go() == 0
    found = [result(job.folder) or {} for job in campaign(corpus, tmp_path, points=space).jobs]
    assert sorted(values.get("together", 1) for values in found) == [2, 2, 3, 3, 3]
    tried = findings(made).tried
    assert {one.status for one in tried} == {"finished"} and len(tried) == 5
    assert len({one.point["lr"] for one in tried}) == 5


@pytest.mark.slow
def test_runs_that_fall_behind_are_ended_early(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    points = search(arch="gpt2", lr=choice(1e-7, 3e-2), heads=choice(1, 2), tokens=150_000)
    pruning = Pruning(first=2_000, factor=2, spared=1)
    made = campaign(corpus, tmp_path, points, trials=8, sampler="grid", pruning=pruning)
    made = replace(made, machine=replace(made.machine, at_once=1))
    assert made.go() == 0
    assert len(made.jobs) == 4, "a grid has an end"
    ended = {job.label: result(job.folder) or {} for job in made.jobs}
    assert {values["status"] for values in ended.values()} == {"finished", "pruned"}
    assert any("lr=0.03" in label for label, v in ended.items() if v["status"] == "finished")
    pruned = [values for values in ended.values() if values["status"] == "pruned"]
    assert any("lr=1e-7" in label for label, v in ended.items() if v["status"] == "pruned")
    for values in pruned:
        assert "val/loss is" in values["error"] and values["loss"] is None
        assert 0 < values["step"] < 150_000 // 128
    statuses = sorted(one.status for one in findings(made).tried)
    assert statuses.count("pruned") == len(pruned)
    assert record.unfinished(made.jobs) == []


@pytest.mark.slow
def test_a_stopped_search_goes_on_with_the_same_points(
    ray_cluster: Resources, corpus: Path, tmp_path: Path
) -> None:
    points = search(arch="gpt2", lr=log(1e-4, 1e-1), heads=None, tokens=150_000)
    made = campaign(corpus, tmp_path, points, trials=3)

    def ask() -> None:
        while not list(made.folder.glob("runs/*/run.json")):
            time.sleep(0.05)
        time.sleep(0.5)
        (made.folder / "stop").touch()

    threading.Thread(target=ask, daemon=True).start()
    assert made.go() == 130
    begun = {job.run.identity for job in made.jobs}
    assert 1 <= len(begun) <= 3
    short = campaign(corpus, tmp_path, points, trials=3)
    assert {job.run.identity for job in short.jobs} == begun
    assert short.go() == 0
    assert begun <= {one.run for one in findings(short).tried}
    assert [one.status for one in findings(short).tried] == ["finished"] * 3
    steps = [record["step"] for record in _history(short, sorted(begun)[0])]
    assert steps == sorted(set(steps))


def _history(made: Campaign, run: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads(
        (made.folder / "runs" / run / "history.json").read_text()
    )
    return found


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    """The driver dies between two trials, or in the midst of some: none is lost or repeated."""
    root = Path(__file__).parents[3]
    command = [
        sys.executable, str(root / "studies" / "lr_search.py"), "--storage", str(tmp_path),
        "--set", "tokens=60000", "--trials", "5",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{root / 'platform'}:{root}"}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    folder = tmp_path / "lr-search"
    deadline = time.monotonic() + 180
    while len(list(folder.glob("runs/*/result.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {path: _trained(path) for path in folder.glob("runs/*/result.json")}
    assert len(before) >= 2
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: _trained(path) for path in before} == before
    assert len(list(folder.glob("runs/*/result.json"))) == 5


def _trained(path: Path) -> tuple[float, float]:
    """What another training would change, if only its seconds; rollouts that were put off may be
    added to a result later."""
    values = json.loads(path.read_text())
    return values["loss"], values["seconds"]


def test_what_cannot_be_searched_for_is_said_before_anything_starts(
    corpus: Path, tmp_path: Path
) -> None:
    wrong = campaign(corpus, tmp_path, minimise=("rollout/code/entropy",))
    with pytest.raises(UserError, match=r"after 'rollout/code/entropy'; its runs have rollout/"):
        wrong.go()
    alone = campaign(corpus, tmp_path, minimise=(), near=("rollout/judged",))
    with pytest.raises(UserError, match="near to that of held-out text, which has none"):
        alone.go()
    never = search(arch="llama", lr=log(1e-4, 1e-1), heads=integer(3, 5, step=2), tokens=4_000)
    with pytest.raises(UserError, match="cannot be run"):
        campaign(corpus, tmp_path, never).go()


def test_the_plan_shows_points_like_those_to_come(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign(corpus, tmp_path, trials=5).plan()
    shown = capsys.readouterr().out
    assert "5 trials by tpe: minimise val/loss" in shown
    assert "0 trials have been chosen; for the 5 others" in shown
    assert "5 runs: about" in shown and "Nothing has been started" in shown
    assert not (tmp_path / "hunt" / "optuna.db").exists()


def test_two_steps_of_what_may_come(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign(corpus, tmp_path).smoke()
    assert "The study is ready to run" in capsys.readouterr().out
