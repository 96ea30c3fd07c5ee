from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.columns import Columns, runs
from isoflop.scaling.naming import factor, found, there

NAMES = [
    ("Model Size", "Training Tokens", "Final Loss"),
    ("num_params", "num_tokens", "test_loss"),
    ("Parameters (B)", "Tokens [billions]", "val/loss"),
    (" N ", "D", "bpb"),
    ("non_embedding_params", "dataset_size", "cross-entropy"),
]


@pytest.mark.parametrize(("n", "d", "loss"), NAMES)
def test_columns_of_many_names_are_found(n: str, d: str, loss: str) -> None:
    size, tokens = np.array([1e8, 2e8, 4e8]), np.array([2e9, 5e9, 1e10])
    table = pd.DataFrame({n: size / factor(n), d: tokens / factor(d), loss: [3.0, 2.9, 2.8]})
    frame = runs(table, Columns()).frame
    assert np.allclose(frame["size"], size) and np.allclose(frame["tokens"], tokens)
    assert frame["loss"].tolist() == [3.0, 2.9, 2.8]


def test_an_exact_name_comes_before_one_that_is_alike() -> None:
    table = pd.DataFrame({"Loss": [1.0], "val_loss": [2.0], "N": [1.0], "n": [2.0]})
    assert found(table, "loss") == "val_loss"
    assert found(table, "n") == "N" and found(table, "d") is None
    assert there(table, "VAL LOSS", "loss") == "val_loss"
    with pytest.raises(ValueError, match=r"there is no column 'tokens'\. The table has Loss, val_"):
        there(table, "tokens", "d")


def test_compute_beside_sizes_gives_tokens_by_the_rule() -> None:
    """Counts above 9.2e18 do not fit a 64-bit integer."""
    size, tokens = [10**9, 10**11], [10**11, 10**13]
    flops = [6 * n * d for n, d in zip(size, tokens, strict=True)]
    table = pd.DataFrame({"flops": flops, "params": size, "loss": [2.0, 1.9]})
    found = runs(table, Columns())
    assert np.allclose(found.frame["tokens"], tokens) and np.allclose(
        found.frame["flops"], np.array(flops, float)
    )
    assert "no column has a usual name for tokens: by the rule C/6N" in found.notes
    both = runs(table.assign(tokens=tokens), Columns())
    assert "compute by the rule 6ND; --c 'flops' would take that column" in both.notes


def test_each_family_leaves_its_own_highest_losses_out() -> None:
    """Losses of two texts do not compare, so neither do their highest ones."""
    table = pd.DataFrame({
        "N": [1e8] * 8, "D": np.geomspace(1e9, 1e11, 8), "text": list("aaaabbbb"),
        "loss": [4.0, 3.9, 3.8, 3.7, 2.0, 1.9, 1.9, 1.8],
    })  # fmt: skip
    found = runs(table, Columns(by="text"), drop=2)
    assert found.frame["loss"].tolist() == [3.8, 3.7, 1.8]  # ties go together
    assert "5 rows are dropped: the 2 highest losses of each family" in found.notes
    with pytest.raises(ValueError, match="drop is 4, but there are only 4 rows of a"):
        runs(table, Columns(by="text"), drop=4)
