"""One local Ray cluster for all tests of this folder: starting it costs more than any test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from isoflop.design import Study, grid
from isoflop.orchestration.cluster import Resources, cluster
from isoflop.run import AdamW, Evaluation, Rollouts, Run, Text
from models import GPT2Config, LlamaConfig


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Resources]:
    with cluster(None, cpus=2) as resources:
        yield resources


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few dozen small functions as files: enough for bytes, quick to prepare."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(60):
        lines = [f"def f{i}_{j}(x):\n    return x * {i} + {j}\n" for j in range(40)]
        (folder / f"module_{i}.py").write_text("\n".join(lines))
    return folder


def tiny(corpus: Path, name: str = "tiny", tokens: int = 2_000, lr: float = 4e-3) -> Study:
    """Two families, four sizes, two lengths: the smallest study that can have minima."""

    def run(*, arch: str, width: int, tokens: int) -> Run:
        config = GPT2Config if arch == "gpt2" else LlamaConfig
        return Run(
            model=config(width=width, depth=1, heads=1, context=32),
            data=Text(source=str(corpus), tokenizer="bytes"),
            tokens=tokens,
            batch_tokens=128,
            optimizer=AdamW(lr=lr),
            evaluation=Evaluation(tokens=512, times=2),
            rollouts=Rollouts(prompts=("", "def "), seeds=2, new_tokens=8, captures=2, budget=1),
        )

    axes = grid(arch=["gpt2", "llama"], width=[4, 8, 16, 32], tokens=[tokens, 2 * tokens])
    return Study(name=name, run=run, points=axes, budget="tokens")
