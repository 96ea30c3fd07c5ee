"""Is a text scored as the run itself scored its held-out text, by whatever the model predicts?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.exchange.checkpoint import load_checkpoint
from isoflop.orchestration.job import Job, execute
from isoflop.run import Run
from isoflop.score import score
from isoflop.targets import MaskedDiffusion, SpanDenoising
from isoflop.training.distributed import Ranks


@pytest.fixture(params=["gpt2", "t5", "diffusion"])
def folder(
    request: pytest.FixtureRequest, make_run: Callable[..., Run], make_job: Callable[..., Job]
) -> Path:
    job = make_job(make_run(request.param))
    assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    return job.folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and once more. " * 40)
    return path


def test_nats_and_bits_agree(folder: Path, text: Path) -> None:
    found = score(folder, str(text))
    assert found.documents == 1 and found.windows >= 10
    assert found.tokens == len(text.read_bytes()) + 1, "of bytes, and the end of the document"
    assert 0 < found.loss < 30 and found.perplexity == pytest.approx(math.exp(found.loss))
    objective = load_checkpoint(folder).run.objective
    if not isinstance(objective, SpanDenoising):  # whose sentinels are tokens without a byte
        assert found.bits_per_byte == pytest.approx(found.loss / math.log(2), rel=0.02)
    assert found.bound == isinstance(objective, MaskedDiffusion)
    assert score(folder, str(text)) == found


def test_a_text_like_the_runs_own_is_easier(
    make_run: Callable[..., Run], make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(make_run("gpt2"))
    assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    file = job.prepared.validation()  # type: ignore[union-attr]
    own, noise = tmp_path / "own.txt", tmp_path / "noise.txt"
    own.write_text(job.prepared.tokenizer().decode(file.ids[:2000].tolist()))
    noise.write_text("".join(chr(33 + (k * k * 7919) % 90) for k in range(2000)))
    easy, hard = score(job.folder, str(own)), score(job.folder, str(noise))
    assert easy.loss < hard.loss - 0.5


def test_the_command_and_what_it_refuses(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), str(text), "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["windows"] == score(folder, str(text)).windows
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), str(text)])
    assert "bits per byte" in capsys.readouterr().out
    short = tmp_path / "short.txt"
    short.write_text("hi")
    with pytest.raises(ValueError, match="3 tokens, and one window of the model takes"):
        score(folder, str(short))
    with pytest.raises(ValueError, match="holds no"):
        score(tmp_path, str(text))
