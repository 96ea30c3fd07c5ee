"""Is attention computed as asked for, or refused with the reason before anything starts?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isoflop.run import Run
from isoflop.training import attending
from isoflop.training.attending import refusal
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Inputs, train
from isoflop.training.means import Means

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]
FLASH, FLEX = Means(attention="flash"), Means(attention="flex")


def why(run: Run, device: str, means: Means) -> str:
    return refusal(run, device, means) or ""


def test_sdpa_is_for_everything(make_run: MakeRun) -> None:
    for model in ("gpt2", "t5"):
        assert refusal(make_run(model), "cpu", Means()) is None


@pytest.mark.parametrize("means", [FLASH, FLEX], ids=["flash", "flex"])
def test_others_need_a_gpu_and_no_bias(make_run: MakeRun, means: Means) -> None:
    assert "needs a CUDA device for training; this one is 'cpu'" in why(
        make_run("llama"), "cpu", means
    )
    assert "t5 adds a bias" in why(make_run("t5"), "cuda:0", means)


def test_flash_needs_its_package_and_half_precision(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("llama", precision="bfloat16")
    monkeypatch.setattr(attending.importlib.util, "find_spec", lambda name: None)
    assert "needs the flash-attn package" in why(run, "cuda:0", FLASH)
    monkeypatch.setattr(attending.importlib.util, "find_spec", lambda name: name)
    assert refusal(run, "cuda:0", FLASH) is None
    whole = replace(run, precision="float32")
    assert "half precision, but precision is 'float32'" in why(whole, "cuda:0", FLASH)


def test_flex_needs_a_compiler(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("llama")
    monkeypatch.setattr(attending, "has_compiler", lambda gpu: True)
    assert refusal(run, "cuda:0", FLEX) is None
    assert "needs a compiled model" in why(run, "cuda:0", replace(FLEX, compile="off"))
    monkeypatch.setattr(attending, "has_compiler", lambda gpu: False)
    assert "needs a compiled model" in why(run, "cuda:0", FLEX)


def test_training_refuses_before_its_first_step(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("llama")
    with pytest.raises(ValueError, match="--attention is 'flash', which needs a CUDA device"):
        train(run, make_inputs(run), Ranks(), tmp_path, means=FLASH)
    assert not list(tmp_path.iterdir())


def test_what_is_computed_by_is_told(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("llama")
    assert train(run, make_inputs(run), Ranks(), tmp_path).computed["attention"] == "sdpa"


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="--attention is 'cudnn'; it must be sdpa, flex or flash"):
        Means(attention="cudnn")  # type: ignore[arg-type]
