"""Does the benchmark of a device count what it says, and refuse what is not there?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from isoflop.benchmarks import decoding, device, utilisation
from isoflop.benchmarks.decoding import Load
from isoflop.benchmarks.utilisation import Setting, shaped
from isoflop.cli import main
from models import ZOO, GPT2Config, LlamaConfig
from models.decoder import DecoderConfig


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(device.SIDE, "cpu", 64)
    monkeypatch.setitem(device.COPIED, "cpu", 2**16)


@pytest.mark.parametrize(
    ("name", "flops", "size"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 3.35e12),
        ("NVIDIA H100 PCIe", 756e12, 2.0e12),
        ("NVIDIA H200", 989e12, 4.8e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 1.555e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 2.039e12),
        ("NVIDIA L40S", 362e12, 0.864e12),
        ("Some Other GPU", None, None),
    ],
)
def test_a_device_is_known_by_its_drivers_name(
    name: str, flops: float | None, size: float | None
) -> None:
    assert device.listed(name) == (flops, size)


def test_what_is_not_listed_is_measured() -> None:
    found = device.limits("cpu")
    assert found.sheet_flops is None and found.most_flops == found.flops > 0
    assert found.most_bytes == found.bytes > 0 and "measured" in str(found)
    listed = replace(found, sheet_flops=989e12, sheet_bytes=3.35e12)
    assert (listed.most_flops, listed.most_bytes) == (989e12, 3.35e12)
    assert "989 TFLOP/s; and 3,350 GB/s" in str(listed)


def test_the_sizes_are_what_they_are_called() -> None:
    for kind in (GPT2Config, LlamaConfig):
        for name, millions in (("125M", 125), ("350M", 355)):
            assert shaped(kind, name).parameters().all / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", ["gpt2", "moe", "char_rnn", "diffusion", "t5"])
def test_flops_are_those_of_the_steps(name: str) -> None:
    config = shaped(ZOO[name], "tiny")
    result = utilisation.measure(config, Setting(device="cpu", rows=2, compiling="none", steps=1))
    assert result.tokens == 2 * config.context
    expected = result.tokens * config.flops_per_token().training
    assert result.flops * result.step == pytest.approx(expected)
    assert result.low <= result.step <= result.high and result.loss < 7


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # the compiler's own
def test_compiling_is_in_place_and_fuses_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__)
    )
    config = shaped(GPT2Config, "tiny")
    model, objective = config.build(), object()
    assert utilisation.compiled(model, objective, "none") is objective and not compiled
    assert utilisation.compiled(model, objective, "whole") is objective and compiled == ["GPT2"]
    compiled.clear()

    class Plain:
        vocab, batch = 7, None

    fused = utilisation.compiled(model, Plain(), "layers")
    assert compiled == ["Block"] * config.depth and fused.vocab == 7


def test_a_step_of_writing_reads_all_weights_and_what_is_held() -> None:
    config = LlamaConfig(vocab=10, context=64, width=8, depth=2, heads=2, kv_heads=1)
    load = Load(batch=3, prompt=4, new_tokens=4)
    weights = (
        sum(p.numel() for p in config.build().parameters()) - 10 * 8
    )  # a table is looked up in
    cached = 3 * 6 * (2 * 2 * 4)  # rows, tokens in the middle, numbers of keys and values
    assert decoding.moved(config, load, size=2) == 2 * (weights + cached)


@pytest.mark.parametrize("recorded", [False, True])
def test_both_ways_of_writing_are_equal_in_float32(recorded: bool) -> None:
    config = shaped(GPT2Config, "tiny")
    assert isinstance(config, DecoderConfig)
    torch.manual_seed(0)
    result = decoding.measure(
        config.build().eval(), Load(batch=2, prompt=4, new_tokens=8), recorded=recorded
    )
    assert result.equal and result.first > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["train", "--device", "tpu"], "--device is 'tpu'; it must be one of cuda, cpu"),
        (["train", "--device", "cpu", "--compile", "all"], "--compile is 'all'; it must be one"),
        (
            ["train", "--device", "cpu", "--backend", "x"],
            "--backend is 'x'; it must be one of sdpa",
        ),
        (["train", "--device", "cpu", "--rows", "0"], "--rows is 0; it must be at least 1"),
        (["train", "--device", "cpu", "--size", "7B"], "--size 7B: known are tiny, 125M, 350M"),
        (["generate", "--device", "cpu", "--model", "gpt9"], "--model gpt9: known are gpt2"),
        (["generate", "--device", "cpu", "--model", "t5"], "--model t5: only decoders"),
    ],
)
def test_what_is_impossible_is_refused_by_name(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *options])
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "train", "--device", "cuda"])
    assert "torch finds no CUDA device here" in capsys.readouterr().err


def test_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoding.BATCHES, "cpu", (2,))
    train = ["--device", "cpu", "--compile", "none", "--steps", "1", "--rows", "2"]
    write = ["generate", "--device", "cpu", "--model", "llama"]
    for options in (["train", *train, "--model", "gpt2"], write):
        with pytest.raises(SystemExit) as ended:
            main(["bench", *options])
        assert not ended.value.code
    said = capsys.readouterr().out
    assert "MFU" in said and "MBU" in said
    rows = [line.split() for line in said.splitlines() if line.startswith(("gpt2", "llama"))]
    assert [row[:2] for row in rows] == [["gpt2", "tiny"], ["llama", "tiny"], ["llama", "tiny"]]
    assert all(row[-1] == "equal" for row in rows[1:])
