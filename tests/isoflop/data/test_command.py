"""Does `isoflop data` do what it says, and tell what is wrong without a traceback?"""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.data.prepared import Prepared


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["data", *map(str, arguments)])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_prepare_verify_show(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--tokenizer", "bpe-400", "--validation", 0.2, "--near-duplicates", 0.8)
    options += ("--licence", "CC0-1.0")
    assert run("prepare", corpus, "--out", out, *options) == 0
    shown = capsys.readouterr().out
    prepared = Prepared.load(out)
    assert f"fingerprint {prepared.fingerprint}" in shown
    assert f"Text(source={str(out)!r}, tokenizer='bpe-400', validation=0.2)" in shown
    assert "prepared " in shown  # plain lines: this is no terminal
    assert run("verify", out) == 0
    assert "whole, as it was written" in capsys.readouterr().out
    assert run("show", out, "--samples", 1, "--png", tmp_path / "lengths.png") == 0
    shown = capsys.readouterr().out
    assert "tokens per training document" in shown and "licence: CC0-1.0" in shown
    assert (tmp_path / "lengths.png").stat().st_size > 1000


def test_damage_is_found_and_the_exit_status_tells(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("prepare", corpus, "--out", out, "--tokenizer", "bytes", "--processes", 2) == 0
    (out / "train.tokens").write_bytes(b"short")
    capsys.readouterr()
    assert run("verify", out) == 1
    assert "train.tokens has 5 bytes where" in capsys.readouterr().out
    assert run("show", out) == 2
    assert "train.tokens has 5 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokenizer", "bpe-1"), "at least 257"),
        (("--validation", "2"), "validation is 2.0; it must be between 0 and 1"),
        (("--near-duplicates", "3"), "near_duplicates is 3.0"),
        (("--processes", "0"), "processes is 0"),
        (("--processes", "2", "--address", "auto"), "leave it out with --address"),
        (("--address", "localhost:1"), "no Ray cluster answers at 'localhost:1'"),
    ],
)
def test_wrong_options_are_told(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert run("prepare", corpus, "--out", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
