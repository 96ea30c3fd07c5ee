"""Is every study file what a study is: a question, points that build, nothing done at import?"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isoflop.campaign import Machine
from isoflop.data.known import named
from isoflop.design import Search, Study, build
from isoflop.orchestration.searches import preview
from isoflop.run import Run
from isoflop.study import main, parser
from models import ZOO

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "studies").glob("*.py"))


class Watch:
    """Notes files, sockets and processes while it is on. A hook cannot be taken off again."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], str | Path):
            self.seen.append(f"open {arguments[0]}")
        elif event.startswith(("socket.", "subprocess.", "os.mkdir", "os.rename", "os.remove")):
            self.seen.append(f"{event} {arguments}")


WATCH = Watch()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=FILES, ids=[path.stem for path in FILES])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def study(path: Path) -> Iterator[Study]:
    module = load(path)
    made = module.study
    if isinstance(made.points, Search):  # as it may be after its first points
        points = preview(made.points.space, made.points.settings, 6)
        made = replace(made, points=replace(made.points, points=tuple(points)))
    yield made
    del sys.modules[module.__name__]


def test_there_are_studies() -> None:
    assert FILES


def test_importing_does_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(path)  # what it imports is there now
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    WATCH.seen.clear()
    WATCH.on = True
    try:
        load(path)
    finally:
        WATCH.on = False
    own = (f"open {path}", f"open {path.parent / '__pycache__' / path.stem}.")
    assert [seen for seen in WATCH.seen if not seen.startswith(own)] == []
    assert output.getvalue() == ""


def test_the_watch_sees(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    WATCH.seen.clear()
    WATCH.on = True
    try:
        (tmp_path / "x").write_text("x")
    finally:
        WATCH.on = False
    assert WATCH.seen == [f"open {tmp_path / 'x'}"]


def test_it_asks_a_question(path: Path, study: Study) -> None:
    assert study.question.rstrip().endswith("?")
    assert study.name == path.stem.replace("_", "-"), "its results lie under its name"
    assert study.file == path


def test_every_point_builds_a_run_of_its_own(study: Study) -> None:
    runs = [build(study, point, []) for point in study.points]
    assert len({json.dumps(run.as_json()) for run in runs}) == len(study.points) > 1
    for run in runs:
        assert Run.from_json(json.loads(json.dumps(run.as_json())), ZOO) == run
        resolved = run.resolve(vocab=2048, fingerprint="x")
        assert resolved.steps > 1
        asked = resolved.rollouts.asked
        assert all(spec.new_tokens < resolved.model.context for spec in asked)


def test_compared_runs_differ_by_their_axes_only(study: Study) -> None:
    """Same text, same evaluation, same rollouts: losses and completions compare. Where the way to
    fill rows is the question, all are judged on the same ones; where tokenizers are compared, each
    on as many tokens as make the same text.
    """
    runs = [build(study, point, []) for point in study.points]
    if "rows" in study.points.axes:
        assert runs[0].data.held_out != "same"
        runs = [replace(run, data=replace(run.data, rows="stream")) for run in runs]
    assert len({(run.data.source, run.data.validation, run.rollouts) for run in runs}) == 1
    judged = {(run.data, run.evaluation) for run in runs}
    assert len(judged) == len(study.points.axes.get("tokenizer", ("of the study",)))


def test_help(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(study, ["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    count = f"{len(study.points)} points"
    if isinstance(study.points, Search):
        count = f"{study.points.settings.trials} trials"
    assert study.question in shown and count in shown
    for axis in study.points.axes:
        assert axis in shown


def test_results_lie_beside_the_file(path: Path, study: Study) -> None:
    options = parser(study).parse_args([])
    storage = Path(options.storage or study.file.parent / "results")
    assert storage == path.parent / "results"
    assert Machine(storage=storage).tracking_uri == f"sqlite:///{storage / 'mlflow.db'}"


def test_a_study_is_a_program(path: Path) -> None:
    """As the README starts it: `python studies/NAME.py`, from the project's folder."""
    environment = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "PATH": "/usr/bin:/bin"}
    shown = subprocess.run(
        [sys.executable, str(path.relative_to(ROOT)), "--only", "nothing=1"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 2 and shown.stdout == ""
    (line,) = shown.stderr.splitlines()
    assert line.startswith("error: --only nothing=1")


def test_the_floor_that_a_study_states_is_that_of_its_text() -> None:
    study = load(ROOT / "studies" / "known_entropy.py")
    machine, context = named(study.SOURCE), study.CONTEXT
    assert machine.length == context, "a document and its end are a row"
    predicted = 500 * (context - 1)
    error = machine.deviation / math.sqrt(predicted)
    stated = (
        f"{machine.nats_per_byte / math.log(2):.4f} bits per byte, or "
        f"{machine.entropy * (context - 1) / context:.4f} nats per token"
    )
    assert stated in study.__doc__
    assert f"{error:.3f} nats" in study.__doc__
