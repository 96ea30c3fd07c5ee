"""Does the benchmark of runs that train as one train the same runs both ways?"""

import pytest

from isoflop.benchmarks import together


def test_both_ways_reach_the_same_losses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(together, "SHAPES", {"1 x 16": (16, 1, 2, 16, 64, 2)})
    pair = together.measure(together.runs("gpt2", "1 x 16", count=3, steps=4), "cpu")
    assert pair.difference < 1e-5
    assert min(pair.alone, pair.together) > 0 and pair.whole_alone > pair.alone
    assert together.show(["llama"], count=2, steps=2, rounds=1, device="cpu") == 0
    assert "1 x 16" in capsys.readouterr().out


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="'gpt5'"):
        together.show(["gpt5"], count=2, steps=2, rounds=1, device="cpu")


@pytest.mark.gpu
def test_eight_models_on_a_gpu_reach_the_losses_of_each_alone() -> None:
    pairs = [
        together.measure(together.runs(name, "4 x 128", count=8, steps=30), "cuda")
        for name in ("gpt2", "llama")
    ]
    assert max(pair.difference for pair in pairs) < 1e-3
