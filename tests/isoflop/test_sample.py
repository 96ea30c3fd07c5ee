"""Does a trained model write from its folder, as asked and the same each time?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.orchestration.job import Job, execute
from isoflop.run import Run
from isoflop.sample import Writer, write
from isoflop.training.distributed import Ranks

MakeJob = Callable[..., Job]


@pytest.fixture(params=["gpt2", "t5", "diffusion"])
def folder(request: pytest.FixtureRequest, make_run: Callable[..., Run], make_job: MakeJob) -> Path:
    job = make_job(make_run(request.param))
    assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    return job.folder


def test_every_family_writes_and_a_seed_repeats(folder: Path) -> None:
    one, two = write(folder, ["def ", ""], tokens=8, seed=3)
    assert one and two
    assert write(folder, ["def "], tokens=8, seed=3) == [one]
    others = {write(folder, ["def "], tokens=8, seed=seed)[0] for seed in range(4, 8)}
    assert others != {one}


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(folder), "--prompt", "def ", "--tokens", "5", "--temperature", "0"])
    assert not ended.value.code
    expected = write(folder, ["def "], tokens=5, temperature=0)[0]
    assert capsys.readouterr().out == f"def {expected}\n"


def test_wrong_wishes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--seed", "-1"], "--seed -1: it must be at least 0"),
        ([], "holds no state.json"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["sample", str(tmp_path), *words])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_what_is_told_on_the_way_is_the_text(folder: Path) -> None:
    for seed in range(3):
        writer = Writer(folder, tokens=20, seed=seed)
        pieces: list[str] = []
        (text,) = writer.write(["def "], pieces.append)
        assert "".join(pieces) == text == write(folder, ["def "], tokens=20, seed=seed)[0]
    if writer.loaded.run.model.family == "decoder":
        assert len(pieces) > 5


def test_a_string_ends_the_text_before_it(folder: Path) -> None:
    (whole,) = write(folder, ["def "], tokens=24, seed=5)
    string = whole[8:10]
    pieces: list[str] = []
    (text,) = Writer(folder, tokens=24, seed=5, stop=(string, "never this")).write(
        ["def "], pieces.append
    )
    assert text == whole[: whole.find(string)]
    assert "".join(pieces) == text
    with pytest.raises(ValueError, match="none may be empty"):
        Writer(folder, stop=("",))


def test_settings_reach_the_draw(folder: Path) -> None:
    greedy = write(folder, ["def "], tokens=12, temperature=0)
    assert write(folder, ["def "], tokens=12, top_k=1) == greedy
    assert write(folder, ["def "], tokens=12, min_p=1.0) == greedy
    with pytest.raises(ValueError, match="repetition is 0"):
        Writer(folder, repetition=0.0)
