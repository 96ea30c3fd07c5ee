"""Does the command line of a study do what it says, and say in one line what it cannot do?"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from isoflop import study as module
from isoflop.campaign import Campaign, Machine
from isoflop.design import Study, UserError, build, grid, select
from isoflop.orchestration.job import execute, result
from isoflop.run import AdamW, Evaluation, Rollouts, Run, Text
from isoflop.study import main, parser
from isoflop.training.distributed import Ranks
from isoflop.watching import stoppable
from models import ZOO, Config, GPT2Config, LlamaConfig


def run(*, arch: str, width: int, flops: float, seed: int) -> Run:
    kinds: dict[str, Callable[..., Config]] = {"gpt2": GPT2Config, "llama": LlamaConfig}
    return Run(
        model=kinds[arch](context=32, width=width, depth=1, heads=2),
        data=Text(source="nowhere", tokenizer="bytes"),
        flops=flops,
        batch_tokens=128,
        optimizer=AdamW(lr=1e-2),
        evaluation=Evaluation(tokens=256, times=2),
        rollouts=Rollouts(prompts=("", "def "), seeds=2, new_tokens=8, budget=1),
        seed=seed,
    )


AXES: dict[str, list[Any]] = {
    "arch": ["gpt2", "llama"],
    "width": [8, 16],
    "flops": [3e7, 1e8],
    "seed": [0],
}
STUDY = Study(name="small", run=run, points=grid(**AXES))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "results"


Command = Callable[..., int]


@pytest.fixture
def command(storage: Path, text_folder: Path) -> Command:
    """Runs the study's command line on a real text; returns the exit status."""

    def call(*arguments: str, study: Study = STUDY) -> int:
        where = ["--set", f"data={text_folder}", "--storage", str(storage)]
        with pytest.raises(SystemExit) as ended:
            main(study, [*where, *arguments])
        return int(str(ended.value.code or 0))

    return call


# --- points --------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_in_order() -> None:
    points = grid(a=[1, 2], b="xy")
    assert len(points) == 4
    assert list(points) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}
    ]  # fmt: skip
    assert list(points) == list(points), "and can be walked twice"
    assert list(grid(seed=range(3))) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    with pytest.raises(ValueError, match="axis 'b' has no values"):
        grid(a=[1], b=[])
    with pytest.raises(ValueError, match="at least one axis"):
        grid()


def test_grids_add_up_where_their_axes_agree() -> None:
    both = grid(a=[1, 2], b=["x"]) + grid(b=["y"], a=[2, 3])
    assert len(both) == 4
    assert both.axes == {"a": (1, 2, 3), "b": ("x", "y")}
    assert {"a": 3, "b": "y"} in both and {"a": 1, "b": "y"} not in both
    with pytest.raises(ValueError, match="grids over different axes cannot be added: a and a, b"):
        grid(a=[1]) + grid(a=[1], b=[2])


def test_labels_name_what_differs() -> None:
    point = {"arch": "gpt2", "width": 8, "flops": 3e7, "seed": 0}
    assert STUDY.label(point) == "gpt2 width=8 flops=3e7"
    single = Study(name="s", run=run, points=grid(arch=["gpt2"], flops=[1e9]))
    assert single.label({"arch": "gpt2", "flops": 1e9}) == "gpt2 flops=1e9"
    labels = {STUDY.label(point) for point in STUDY.points}
    assert len(labels) == len(STUDY.points)


@pytest.mark.parametrize(("changes", "said"), [
    ({"name": "a b"}, "a study's name is 'a b'; it must be of letters, digits, - and _"),
    ({"name": ""}, "a study's name is ''"),
    ({"name": "../x"}, "a study's name is '../x'"),
    ({"family": "model"}, "'model' is not an axis of study 'small'; it has arch, width, flops"),
    ({"budget": "tokens"}, "'tokens' is not an axis"),
    ({"objective": "loss"}, "is 'loss'; it must be one of val/loss, val/bits_per_byte"),
])  # fmt: skip
def test_a_study_that_cannot_be_is_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        values: dict[str, Any] = {"name": "small", "run": run, "points": grid(**AXES)}
        Study(**{**values, **changes})


def test_a_study_knows_its_file_and_its_question() -> None:
    assert STUDY.file == Path(__file__).resolve()
    assert __doc__ is not None and STUDY.question == __doc__.splitlines()[0]


@pytest.mark.parametrize(("only", "count"), [
    ([], 8), (["arch=gpt2"], 4), (["arch=gpt2", "arch=llama"], 8), (["width=8"], 4),
    (["width=8", "arch=llama", "flops=1e8"], 1), (["flops=100000000"], 4), (["flops=1e+08"], 4),
    (["width=8.0"], 4),
])  # fmt: skip
def test_select(only: list[str], count: int) -> None:
    found = select(STUDY, only)
    assert len(found) == count
    assert all(point in list(STUDY.points) for point in found)
    for axis, value in (choice.split("=") for choice in only if only.count("arch") < 2):
        if axis == "arch" and len(only) == 1:
            assert {point["arch"] for point in found} == {value}


def test_select_compares_words_and_truths() -> None:
    study = Study(
        name="s",
        run=run,
        points=grid(arch=["a", "1"], flops=[1.5], tied=[True, False], x=[None, 1]),
    )
    assert {p["tied"] for p in select(study, ["tied=True"])} == {True}
    assert {p["arch"] for p in select(study, ["arch=1"])} == {"1"}
    assert {p["x"] for p in select(study, ["x=None"])} == {None}
    with pytest.raises(ValueError, match="tied has the values True, False"):
        select(study, ["tied=1"])


@pytest.mark.parametrize(("only", "said"), [
    ("size=3", "--only size=3: write AXIS=VALUE with an axis of this study: arch, width, flops"),
    ("width", "--only width: write AXIS=VALUE"),
    ("", "--only : write AXIS=VALUE"),
    ("width=9", "--only width=9: width has the values 8, 16"),
    ("width=", "--only width=: width has the values 8, 16"),
    ("width=wide", "--only width=wide: width has the values 8, 16"),
    ("flops=2e8", "--only flops=2e8: flops has the values 3e7, 1e8"),
])  # fmt: skip
def test_select_says_what_there_is(only: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        select(STUDY, [only])


def test_build_sets_in_order() -> None:
    point = next(iter(STUDY.points))
    built = build(STUDY, point, ["optimizer.lr=0.5", "data=a=b", "tokens=1280", "optimizer.lr=0.7"])
    assert (built.optimizer.lr, built.data.source, built.tokens) == (0.7, "a=b", 1280)
    assert build(STUDY, point, []) == run(**point)
    with pytest.raises(ValueError, match="--set lr: write PATH=VALUE, as in"):
        build(STUDY, point, ["lr"])


def test_help_shows_the_question_and_the_axes() -> None:
    text = parser(STUDY).format_help()
    assert STUDY.question in text
    for option in ("plan", "print-config", "smoke", "report", "only", "set", "address", "workers",
                   "at-once", "tracking", "storage"):  # fmt: skip
        assert f"--{option}" in text
    for line in ("arch     gpt2, llama", "width    8, 16", "flops    3e7, 1e8", "8 points"):
        assert line in text


# --- what starts nothing -------------------------------------------------------------------------


def test_plan_prints_and_starts_nothing(
    command: Command, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--plan", "--only", "width=16") == 0
    shown = capsys.readouterr()
    assert "4 of 4 runs to train" in shown.out and "Nothing has been started" in shown.out
    assert "llama width=16 flops=1e8" in shown.out
    assert "width=8" not in shown.out
    assert shown.err == ""
    assert sorted(os.listdir(storage)) == ["data", "small"]
    assert os.listdir(storage / "small") == ["plan.json"], "what was said, to be held against it"


def test_plan_tells_dollars(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--plan", "--only", "width=8", "--price", "3600") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"about \d+ s and \d+\.\d\d dollars with", shown)


def test_print_config_is_json_that_gives_the_runs_back(
    command: Command, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--print-config", "--set", "optimizer.lr=0.5") == 0
    shown = capsys.readouterr()
    runs = {name: Run.from_json(values, ZOO) for name, values in json.loads(shown.out).items()}
    assert len(runs) == 8 and shown.err == ""
    for name, found in runs.items():
        assert found.resolved and found.identity == name
        assert found.optimizer.lr == 0.5
    assert {found.model.name for found in runs.values()} == {"gpt2", "llama"}
    assert os.listdir(storage) == ["data"]


def test_smoke_trains_two_steps_of_the_smallest_and_keeps_nothing(
    command: Command, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--smoke") == 0
    shown = capsys.readouterr().out
    assert "width=8 flops=3e7: two steps, held-out loss 5." in shown
    assert "ready to run" in shown
    assert os.listdir(storage) == ["data"]


def test_profile_says_where_the_time_of_a_step_goes(
    command: Command, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--profile", "--only", "width=8") == 0
    shown = capsys.readouterr().out
    assert "ms a step on cpu" in shown and "backward" in shown
    assert len(list(storage.glob("small/profile/*/trace.json.gz"))) == 1


def test_report_before_anything_has_run(
    command: Command, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every point has its row; nothing is concluded."""
    assert command("--report") == 0
    shown = capsys.readouterr().out
    page = storage / "small" / "report.html"
    assert f"report  {page}" in shown
    assert page.stat().st_size > 1000


# --- what has run --------------------------------------------------------------------------------


@pytest.fixture
def campaign(storage: Path, text_folder: Path) -> Campaign:
    overrides = [f"data={text_folder}"]
    points = list(STUDY.points)
    return Campaign.prepare(STUDY, Machine(storage=storage), points, overrides, quiet=True)


def test_a_finished_study_only_reports(
    campaign: Campaign, command: Command, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in campaign.jobs:
        assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    before = {path: path.stat().st_mtime_ns for path in storage.glob("small/runs/*/*")}
    assert command() == 0
    shown = capsys.readouterr()
    assert "all 8 runs have finished before; nothing to train" in shown.out
    assert "report  " in shown.out
    assert before == {path: path.stat().st_mtime_ns for path in storage.glob("small/runs/*/*")}
    assert {"runs.parquet", "report.html"} <= set(os.listdir(storage / "small"))
    assert command("--plan") == 0
    shown = capsys.readouterr()
    assert "0 of 8 runs to train" in shown.out and shown.out.count("finished") == 8


def test_two_drivers_of_one_study_are_one_too_many(
    command: Command, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (storage / "small").mkdir(parents=True)
    with FileLock(storage / "small" / "lock"):
        assert command() == 2
    assert "another process is running this study" in capsys.readouterr().err


def test_points_that_become_the_same_run_are_trained_once(storage: Path, text_folder: Path) -> None:
    overrides = [f"data={text_folder}", "flops=5e7"]
    points = select(STUDY, ["flops=1e8"])
    campaign = Campaign.prepare(STUDY, Machine(storage=storage), points, overrides, quiet=True)
    assert len(campaign.jobs) == len(campaign.chosen) == 4


def test_jobs_lie_under_their_identity(campaign: Campaign, storage: Path) -> None:
    assert len({job.folder for job in campaign.jobs}) == 8
    for job in campaign.jobs:
        assert job.folder == storage.absolute() / "small" / "runs" / job.run.identity
        assert job.run == build(STUDY, job.axes, [f"data={job.run.data.source}"]).resolve(
            vocab=257, fingerprint=job.prepared.fingerprint
        )
        assert result(job.folder) is None


# --- wrong input ---------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], str]] = {
    "axis": (["--only", "size=3"], "with an axis of this study: arch, width, flops, seed"),
    "axis value": (["--only", "width=9"], "width has the values 8, 16"),
    "field": (["--set", "speed=3"], "Run has no field 'speed'"),
    "type": (["--set", "seed=one"], "'one' does not fit"),
    "value": (["--set", "optimizer.lr=-1"], "optimizer.lr is -1.0; it must be above 0"),
    "no value": (["--set", "seed"], "write PATH=VALUE"),
    "shape": (["--set", "model.width=7"], "width"),
    "infinity": (["--set", "flops=inf"], "is inf"),
    "no folder": (["--set", "data=/no/such/folder"], "/no/such/folder"),
    "empty folder": (["--set", "data=EMPTY"], "empty"),
    "tokenizer": (["--set", "data.tokenizer=words"], "words"),
    "context": (
        ["--set", "batch_tokens=3200000", "--set", "model.context=1600000"],
        "fewer than the 1600001 of one window",
    ),
    "rows": (["--set", "data.rows=heap"], "'stream', 'packed', 'best-fit'"),
    "stride": (["--set", "data.stride=33"], "stride is 33; it must be from 1 to the context (32)"),
    "epochs": (["--set", "data.most_epochs=1e-9"], "would read the text 0.0"),
    "source and mixture": (["--set", 'data.mixture=[{"source": "a"}]'], "data.source is '"),
    "rollouts": (["--set", "rollouts.new_tokens=500"], "rollouts.new_tokens is 500"),
    "prompts": (["--set", 'rollouts.prompts=["a", "a"]'], "'a' twice"),
    "server": (["--tracking", "http://127.0.0.1:9"], "no MLflow server answers at"),
    "tracking folder": (["--tracking", "/tmp/mlruns"], "--tracking is '/tmp/mlruns'"),
    "workers": (["--workers", "0"], "--workers is 0; it must be at least 1"),
    "shares": (["--workers", "3"], "a batch of 4 rows cannot be shared equally by 3 workers"),
    "at once": (["--at-once", "-2"], "--at-once is -2"),
    "storage": (["--storage", "FILE"], "a-file"),
    "hours": (["--max-hours", "0"], "--max-hours is 0.0; it must be above 0"),
    "cost": (["--max-cost", "5"], "--max-cost needs --price"),
    "price": (["--price", "-1"], "--price is -1.0"),
}  # fmt: skip


@pytest.mark.parametrize("mode", [[], ["--plan"]], ids=["run", "plan"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(
    case: str,
    mode: list[str],
    command: Command,
    storage: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, said = WRONG[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_text("x")
    places = {"EMPTY": str(tmp_path / "empty"), "FILE": str(tmp_path / "a-file")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert command(*mode, *arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ") and said in line
    assert shown.out == ""
    assert not storage.exists() or os.listdir(storage) == ["data"], "nothing has been started"


def test_unknown_options_are_argparses(command: Command) -> None:
    for arguments in (["--sett", "a=b"], ["--workers", "many"], ["--plan", "--smoke"]):
        assert command(*arguments) == 2


def test_an_error_of_the_code_is_no_users_error(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ValueError after the input was checked is a bug and keeps its traceback."""

    def broken(*_: Any) -> int:
        raise ValueError("deep inside")

    monkeypatch.setattr(module, "_act", broken)
    with pytest.raises(ValueError, match="deep inside") as caught:
        command("--plan")
    assert not isinstance(caught.value, UserError)


def test_emulated_bfloat16_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("isoflop.training.precision.has", lambda precision, device: False)
    assert command("--plan", "--set", "precision=bfloat16") == 2
    assert "up to 170 times slower" in capsys.readouterr().err
    monkeypatch.setattr("isoflop.training.precision.has", lambda precision, device: True)
    assert command("--print-config", "--set", "precision=bfloat16") == 0


# --- stopping ------------------------------------------------------------------------------------


def test_a_signal_asks_to_stop_and_a_second_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = tmp_path / "stop"
    stop.touch()  # left by a driver that was killed
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), stoppable(stop):
        assert not stop.exists()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exists()
        os.kill(os.getpid(), signal.SIGINT)
    assert not stop.exists()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert "stopping" in capsys.readouterr().err


def test_a_storage_is_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers stand elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert Machine.at("results").storage == tmp_path / "results"
