"""Does the page hold what the models wrote, as text and nothing else, and does it draw?"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from isoflop import cli
from isoflop.data.tokenizers import named
from isoflop.orchestration.job import Job, execute
from isoflop.rollouts import rubric
from isoflop.rollouts.capture import read
from isoflop.rollouts.comparing import compare
from isoflop.rollouts.regard import regard
from isoflop.rollouts.report import page, paired, pieces, store, terminal
from isoflop.rollouts.report.terminal import LEFT, Place, press
from isoflop.rollouts.verifiers import read_results, read_traces
from isoflop.run import Rollouts, Run, Spec
from isoflop.training.distributed import Ranks

EVIL = "</script><script>document.title='run'</script><img src=x onerror=alert(1)>"
OWN = (EVIL, "", "import ")
HELD = Spec(name="held", kind="heldout_prefix", count=6, prefix_tokens=6, seeds=2, new_tokens=8)
ROLLOUTS = Rollouts(prompts=OWN, seeds=3, new_tokens=12, budget=1e9, specs=(HELD,), novelty=True)
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def study(make_run: Callable[..., Run], make_job: Callable[..., Job], tmp_path: Path) -> Path:
    """Two finished runs with their rollouts, as a study leaves them."""
    for seed in range(2):
        run = make_run(rollouts=ROLLOUTS, seed=seed)
        job = make_job(run, f"toy/runs/{run.identity}", seed=seed)
        assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    return tmp_path / "toy"


def held(text: str, name: str) -> Any:
    found = re.search(f'id="data-{name}">([^<]*)<', text)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_the_page_holds_the_rows_and_no_text_of_a_model(study: Path) -> None:
    written = page.build(study, study / "page.html").read_text()
    assert "onerror" not in written and written.count("<script>") == 1
    about, rows = held(written, "about"), held(written, "1")
    assert [text for spec, text in about["prompts"] if spec == ""] == list(OWN)
    assert [spec for spec, _ in about["prompts"]] == [""] * 3 + ["held"] * 6
    assert [run["label"] for run in about["runs"]] == ["seed=0", "seed=1"]
    run = store.runs(study)[1]
    frame = read(run.folder / "rollouts")
    assert {int(step) for step in rows} == set(frame["step"])
    for step, kept in rows.items():
        for prompt, sample, text, spans, digits, _, copied, _, values in kept:
            of = frame[(frame["step"] == int(step)) & (frame["sample_id"] == sample)]
            spec, asked = about["prompts"][prompt]
            (row,) = of[(of["prompt"] == asked) & (of["spec"] == spec)].to_dict("records")
            assert text == row["text"] and len(digits) == row["n_tokens"]
            assert (copied or []) == row["copied"].tolist()
            assert spans is not None and sum(spans) == len(text.encode("utf-16-le")) // 2
            length = values[about["names"].index("length")]
            assert length == row["n_tokens"]
    curves = held(written, "curves")
    for name in ("entropy", "held/entropy"):
        means = curves["means"][1][name]
        assert [point[0] for point in means] == sorted(run.captures)
        assert all(low <= value <= high for _, value, low, high in means)
    assert len(curves["courses"][1][""]["entropy"]) == 12
    assert len(curves["courses"][1]["held"]["entropy"]) == 8
    value, low, high = about["reference"]["held/novel_4"]
    assert low <= value <= high and about["rows"] == {"": 9, "held": 12}


def test_what_is_measured_later_is_shown_too(study: Path) -> None:
    """Rewards, and what a judge says: in rows, in strips with intervals, among what two runs
    differ in, and in what other programs get."""
    python = rubric.of_text(rubric.text("python"))
    for run in store.runs(study):
        assert "judged" not in run.metrics, "nobody has judged yet"
        regard(run.folder, python.score)
    written = page.build(study, study / "page.html").read_text()
    about, curves = held(written, "about"), held(written, "curves")
    assert about["names"][-4:] == [
        "reward",
        "reward_brackets",
        "reward_varied",
        "reward_characters",
    ]
    described = {metric["name"]: metric["direction"] for metric in about["metrics"]}
    assert described["reward_varied"] == "up"
    run = store.runs(study)[1]
    frame = read(run.folder / "rollouts")
    for step, value, low, high in curves["means"][1]["reward"]:
        own = frame[(frame["step"] == step) & (frame["spec"] == "")]
        assert value == own["reward"].mean()
        assert low is None or low <= value <= high
    assert len(curves["means"][1]["held/reward"]) == len(run.captures)
    assert "reward_varied " in paired.show(study, "seed=0", "seed=1")
    paired.export(study, study / "out", "seed=1")
    for _, score in read_traces(study / "out" / run.run):
        assert score.reward == pytest.approx(
            score.parts["brackets"] + 0.5 * score.parts["varied"], abs=1e-9
        )


def test_captures_that_no_history_tells_of_are_measured(study: Path) -> None:
    run = store.runs(study)[0]
    told = run.curves["held/entropy"]
    silent = replace(run, curves={name: run.curves[name][:1] for name in run.curves})
    assert store.completed(silent)["held/entropy"] == told
    assert store.completed(run) == run.curves


def test_two_runs_are_compared_in_pairs(study: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollouts", str(study), "--compare", "seed=0", "seed=1"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "21 pairs of the same prompt and seed" in " ".join(said.split())
    one, other = (run.read(20).to_pandas() for run in store.runs(study))
    (row,) = compare(one, other, ["entropy"]).to_dict("records")
    (line,) = [line for line in said.splitlines() if line.startswith("entropy ")]
    assert line.split()[1] == f"{row['value']:.3g}"
    (few,) = [line for line in said.splitlines() if line.startswith("repetition ")]
    assert few.split()[-3:] == ["21", "617", "*"] and line.split()[-1] == "21"
    assert "* fewer pairs than the metric declares to need" in said
    own = paired.show(study, "seed=0", "seed=1", only="")
    assert "9 pairs of the same prompt and seed of the set without a name" in " ".join(own.split())
    with pytest.raises(ValueError, match="no set 'hold'; the sets are '', 'held'"):
        paired.show(study, "seed=0", "seed=1", only="hold")
    with pytest.raises(ValueError, match="labels of 2 runs: seed=0; seed=1"):
        paired.show(study, "seed", "seed=1")
    with pytest.raises(ValueError, match=r"no run of .* has 'seed=7'"):
        paired.show(study, "seed=7", "seed=1")


def test_other_programs_get_the_rollouts(study: Path, tmp_path: Path) -> None:
    paired.export(study, tmp_path / "out", "seed=1")
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == store.runs(study, "seed=1")[0].run
    assert len(read_traces(folder)) == len(read_results(folder)) == 21


def test_what_does_not_fit_is_left_out_and_said(study: Path) -> None:
    runs = store.runs(study)
    captures = len(runs[0].captures)
    whole = page.select(runs, 10_000)
    assert whole.rows == whole.written == 2 * captures * 21
    thin = page.select(runs, 20)
    assert thin.rows <= max(20, 2 * page.FEWEST * 9) and thin.samples == 1
    about = held(page.build(study, study / "page.html", most=20).read_text(), "about")
    assert about["selection"]["written"] > about["selection"]["rows"]
    with pytest.raises(ValueError, match="rows is 0"):
        page.select(runs, 0)


def test_chosen_captures_keep_the_ends() -> None:
    steps = [0, 1, 3, 9, 20, 50]
    assert store.chosen(steps, 9) == steps
    assert store.chosen(steps, 3) == [0, 3, 50] and store.chosen(steps, 1) == [50]


def test_the_command(study: Path, capsys: Any, tmp_path: Path) -> None:
    for words, code in (([str(study)], 0), ([str(tmp_path / "no")], 2), ([str(study), "--tui"], 2)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["rollouts", *words])
        assert ended.value.code == code
    shown = capsys.readouterr()
    assert shown.out.strip() == str(study / "rollouts.html")
    assert "holds no rollouts" in shown.err and "needs a terminal" in shown.err


@pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and playwright",
)
def test_a_browser_draws_it_and_runs_nothing_else(study: Path) -> None:
    from playwright.sync_api import sync_playwright

    target = page.build(study, study / "page.html").resolve()
    said: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 390, "height": 844})
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("dialog", lambda dialog: said.append(dialog.message))
        view.goto(target.as_uri())
        view.wait_for_selector("body[data-ready]")
        cells = sum(len(run.captures) for run in store.runs(study))
        assert view.locator("table.grid td .text").count() == cells
        assert EVIL in view.locator(".given").inner_text()
        for tab, wanted in (("strips", "svg"), ("ranked", ".card"), ("diff", ".card")):
            view.click(f"[data-tab={tab}]")
            view.wait_for_selector(f"#{tab} {wanted}")
        view.click("[data-tab=blind]")
        view.click("text=A is better")
        view.wait_for_selector("text=save 1 as JSONL")
        with view.expect_download() as saved:
            view.click("#save")
        (line,) = Path(saved.value.path()).read_text().splitlines()
        choice = json.loads(line)
        assert choice["preferred"] == "a" and choice["a"]["run"] != choice["b"]["run"]
        assert view.title() == "toy · rollouts · isoflop"
        assert view.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        browser.close()
    assert said == []


@given(some.lists(some.text(max_size=4), max_size=8))
def test_spans_follow_whole_characters(parts: list[str]) -> None:
    parts = [part.encode("utf-8", "replace").decode() for part in parts]
    sizes = np.array([len(part.encode()) for part in parts], dtype=np.int64)
    text, count = "".join(parts), len(parts)
    both = np.concatenate([sizes, sizes])
    one, wrong, *_ = pieces.spans([text, text + "x"], both, np.array([count, count]))
    assert wrong is None
    assert one == ([len(part.encode("utf-16-le")) // 2 for part in parts] or None)
    # What stands before a text, right or wrong, moves nothing in it.
    assert pieces.spans(["xyz", text], both, np.array([count, count]))[1] == one


@given(some.lists(some.integers(0, 256), max_size=12))
def test_spans_of_bytes_that_are_no_text(ids: list[int]) -> None:
    tokenizer = named("bytes")
    vocabulary = pieces.Vocabulary(tokenizer)
    ids = [id for id in ids if id != tokenizer.end_of_text]
    text = tokenizer.decode(ids)
    spans = vocabulary.spans(text, np.array(ids, dtype=np.int64))
    assert (spans or []) == [] if not ids else spans is not None and len(spans) == len(ids)
    assert sum(spans or []) == len(text.encode("utf-16-le")) // 2
    assert vocabulary.spans("\ufffd" + text, np.array(ids, dtype=np.int64)) is None


def test_digits_of_probabilities() -> None:
    logprobs = np.log([1.0, 0.91, 0.55, 0.05, 0.002, 1e-30])
    assert pieces.digits(logprobs) == "998410"
    assert pieces.digits(np.array([math.nan, -math.inf])) == "00"


def test_keys_lead_through_a_study(study: Path) -> None:
    from rich.console import Console

    runs = store.runs(study)
    tokenizer = store.tokenizer(study, runs[0])
    place: Place | None = Place()
    for key in ("r", "p", "S", LEFT, "x"):
        assert place is not None
        place = press(place, key, runs)
    assert place == Place(run=1, prompt=1, sample=2, capture=1)
    last = len(runs[1].questions) - 1  # of the set "held", which has two samples
    assert press(replace(place, prompt=last - 1), "p", runs) == replace(
        place, prompt=last, sample=1
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal.shown(place, runs, tokenizer))
    row = terminal.row_at(runs[1], place)
    assert row is not None and (row["prompt"], row["sample_id"]) == ("", 2)
    assert row["step"] == sorted(runs[1].captures)[-2]
    shown = console.export_text()
    assert "seed=1" in shown and "(empty prompt)" in shown and f"step {row['step']} " in shown
    other = press(place, "d", runs)
    assert other is not None
    console.print(terminal.shown(other, runs, tokenizer))
    assert "against seed=0" in console.export_text()
    assert press(other, "q", runs) is None


def test_a_terminal_is_told_no_commands() -> None:
    assert terminal.visible("a\x1b[2Jb\tc\n\x07") == "a\ufffd[2Jb\tc\n\ufffd"
