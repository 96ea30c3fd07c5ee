"""Synthetic studies whose truth is known, and the published runs where they are present."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

LAW = {"E": 1.8, "A": 25.0, "B": 120.0, "alpha": 0.33, "beta": 0.34}


def law(size: np.ndarray, tokens: np.ndarray, **changes: float) -> np.ndarray:
    p = {**LAW, **changes}
    loss: np.ndarray = p["E"] + p["A"] * size ** -p["alpha"] + p["B"] * tokens ** -p["beta"]
    return loss


def make_world(
    worlds: Mapping[str, Mapping[str, float]],
    *,
    noise: float = 0.004,
    seed: int = 0,
    sizes: int = 7,
    budgets: tuple[float, ...] = (1e11, 3e11, 1e12),
    width: float = 2.0,
) -> pd.DataFrame:
    """A run table: families by their changes to LAW, sizes spread about the true optimum."""
    random = np.random.default_rng(seed)
    rows = []
    for family, changes in worlds.items():
        p = {**LAW, **changes}
        for budget in budgets:
            power = 1 / (p["alpha"] + p["beta"])
            ratio = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** power
            centre = np.log(ratio * (budget / 6) ** (p["beta"] * power))
            for index, size in enumerate(np.exp(centre + np.linspace(-width, width, sizes))):
                tokens = budget / (6 * size)
                loss = float(law(size, tokens, **changes) * np.exp(noise * random.normal()))
                rows.append(
                    {
                        "run": f"{family}-{budget:.0e}-{index}",
                        "label": f"{family} size {index} at {budget:.0e}",
                        "status": "finished",
                        "error": "",
                        "axis.arch": family,
                        "axis.width": 32 * (index + 1),
                        "axis.flops": budget,
                        "params_all": size * 1.3,
                        "params_without_input_embedding": size,
                        "params_without_embeddings": size * 0.8,
                        "tokens": tokens,
                        "flops": budget,
                        "flops_6nd_all": 6 * size * 1.3 * tokens,
                        "flops_6nd_without_embeddings": 6 * size * 0.8 * tokens,
                        "loss": loss,
                        "bits_per_byte": loss / 2.5,
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture
def world() -> Callable[..., pd.DataFrame]:
    return make_world


def shared(name: str) -> pd.DataFrame:
    """A table of published runs, which lies beside the repository where it is known at all."""
    root = Path(__file__).resolve().parents[3]
    for folder in (root.parent / "shared", root.parent.parent / "shared"):
        path = folder / "data" / "scaling" / name
        if path.is_file():
            return pd.read_csv(path)
    pytest.skip(f"../shared/data/scaling/{name} is not here")


@pytest.fixture
def published() -> pd.DataFrame:
    """The 234 runs of Hoffmann et al.'s figure: C, N, D, loss."""
    return shared("kyo_takano_df.csv")


@pytest.fixture
def gadre() -> pd.DataFrame:
    """The 104 models of Gadre et al. 2024: params, tokens, losses, task accuracies."""
    return shared("gadre_104_models.csv")
