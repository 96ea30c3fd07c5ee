"""Does the benchmark compare like with like?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isoflop.benchmarks import generation
from isoflop.cli import main


def test_the_library_is_given_the_same_model() -> None:
    pytest.importorskip("transformers")
    ours, theirs = generation.models(vocab=300)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(300, size=(2, 40)))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    result = generation.measure(
        generation.Load(
            name="small", goal=1.0, prompts=2, length=9, seeds=3, new_tokens=8, temperature=1.0
        ),
        300, 2, ours, theirs,
    )  # fmt: skip
    assert result.equal and result.rate > 0
    assert len(result.ratios) == 2


def test_impossible_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "generate", "--pairs", "1"])
    assert "--pairs 1" in capsys.readouterr().err
