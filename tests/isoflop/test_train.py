"""Is a run that is written in a file the run that is meant, and is every mistake named?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.run import AdamW, Muon, Run, Text
from isoflop.train import EXAMPLE, read
from models import LlamaConfig, T5Config


def write(folder: Path, text: str, name: str = "run.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_the_example_is_a_run(tmp_path: Path) -> None:
    run = read(write(tmp_path, EXAMPLE))
    assert run.model == LlamaConfig(width=64, depth=2, heads=4, context=128)
    assert run.optimizer == AdamW(lr=4e-3)
    assert run.data == Text(source="python-stdlib", tokenizer="bpe-2048")
    assert (run.tokens, run.batch_tokens, run.rollouts.prompts) == (10**6, 2048, ("", "def "))


def test_numbers_and_kinds_as_people_write_them(tmp_path: Path) -> None:
    text = EXAMPLE.replace("1_000_000 ", "1e6 ").replace("lr = 4e-3", 'kind = "muon"\nlr = 1')
    run = read(write(tmp_path, text))
    assert run.tokens == 10**6 and isinstance(run.tokens, int)
    assert run.optimizer == Muon(lr=1.0)
    run = read(write(tmp_path, EXAMPLE.replace('"llama"', '"t5"')))
    assert isinstance(run.model, T5Config) and run.objective.name == "span_denoising"


@pytest.mark.parametrize("model", ["gpt2", "t5", "diffusion"])
def test_what_a_study_prints_goes_back_in(
    model: str, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run(model)
    printed = json.dumps({run.identity: run.as_json()})
    assert read(write(tmp_path, printed, "run.json")) == run
    assert read(write(tmp_path, json.dumps(run.as_json()), "run.json")) == run


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("width = 64", "wide = 64", "model.wide is unknown; there are .*width"),
        ("width = 64", 'width = "big"', "model.width is 'big': Input should be a valid integer"),
        ('"llama"', '"mamba"', "model.kind is 'mamba'; it must be one of .*llama"),
        ('kind = "llama"', "", "model.kind is missing"),
        ("lr = 4e-3", "lr = -1", "optimizer.lr is -1"),
        ("lr = 4e-3", "", "optimizer.lr is missing"),
        ("batch_tokens = 2048", "", "batch_tokens is missing"),
        ("batch_tokens = 2048", "batch_tokens = 100", "a multiple of the context"),
        ('prompts = ["", "def "]', "prompts = [1]", r"rollouts.prompts is \[1\]: Input should be"),
        ("[data]", "[date]", "date is unknown"),
        ("tokens = 1_000_000", "data = 3\ntokens = 1", "is not toml"),
        ("[rollouts]", "[[rollouts]]", "rollouts is .*; it must be a table of fields"),
        ("tokens = 1_000_000", "tokens =", "is not toml"),
    ],
)
def test_every_mistake_is_named_by_its_place(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in EXAMPLE
    with pytest.raises(ValueError, match=said):
        read(write(tmp_path, EXAMPLE.replace(old, new, 1)))


def test_nested_tables_in_lists(tmp_path: Path) -> None:
    text = EXAMPLE + '\n[[rollouts.specs]]\nname = "held"\nkind = "heldout_prefix"\ncount = 4\n'
    assert read(write(tmp_path, text)).rollouts.specs[0].count == 4
    with pytest.raises(ValueError, match=r"rollouts.specs\[0\].count is 'four'"):
        read(write(tmp_path, text.replace("count = 4", 'count = "four"')))


def test_several_runs_and_no_file(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    runs = {name: make_run(name).as_json() for name in ("gpt2", "llama")}
    with pytest.raises(ValueError, match="holds 2 runs; keep one"):
        read(write(tmp_path, json.dumps(runs), "run.json"))
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "none.toml")


def test_a_study_s_options_follow_the_file(
    tmp_path: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = EXAMPLE.replace("python-stdlib", str(text_folder)).replace("bpe-2048", "bytes")
    text = text.replace("width = 64", "width = 16").replace("context = 128", "context = 32")
    text += "\nnew_tokens = 8\n"
    file = write(tmp_path, text, "small.toml")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file), "--smoke", "--storage", str(tmp_path / "results")])
    assert not ended.value.code
    assert "The study is ready to run" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file), "--help"])
    shown = capsys.readouterr().out
    assert "isoflop train small.toml" in shown and "--max-hours" in shown
    with pytest.raises(SystemExit) as ended:
        main(["train", str(write(tmp_path, "x = 1", "bad.toml"))])
    assert ended.value.code == 2
    assert "error: model.kind is missing" in capsys.readouterr().err
