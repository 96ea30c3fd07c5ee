from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.columns import Columns, runs
from isoflop.scaling.reading import numbers, read


def test_words_are_numbers_where_they_can_be() -> None:
    words = ["350M", "1.4B", "3 T", "12k", "1,234,567", "3,14", "1e9", "7.", 5, None, "-", "inf"]
    found = numbers(pd.DataFrame({"x": words}), "x")
    assert np.allclose(found[:9], [3.5e8, 1.4e9, 3e12, 12e3, 1234567, 3.14, 1e9, 7, 5])
    assert np.isnan(found[9:]).all()
    big = numbers(pd.DataFrame({"x": [6 * 10**11 * 10**13, 1]}), "x")
    assert big.tolist() == [6e24, 1.0]


@pytest.mark.parametrize("word", ["many", "1..2", "3 apples", "1,23,4", "0x10"])
def test_other_words_are_named(word: str) -> None:
    table = pd.DataFrame({"loss": [3.0, word]})
    with pytest.raises(ValueError, match="column 'loss' holds something other than numbers: "):
        numbers(table, "loss")


@pytest.mark.parametrize(
    "name", ["runs.csv", "runs.tsv", "runs.json", "runs.jsonl", "runs.parquet", "runs.csv.gz"]
)
def test_every_kind_of_file_is_read(name: str, tmp_path: Path) -> None:
    table, path = pd.DataFrame({"N": [10, 20], "loss": [3.0, 2.5]}), tmp_path / name
    kind = path.suffixes[0]
    if kind in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")
    elif kind == ".parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=kind == ".jsonl")
    pd.testing.assert_frame_equal(read(path), table, check_dtype=False)


def test_semicolons_part_columns_too(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("\ufeffN;D;loss\n100;2000;3,5\n200;4000;3,25\n", encoding="utf-8")
    assert runs(read(path), Columns()).frame["loss"].tolist() == [3.5, 3.25]


def test_rows_left_out_are_named_and_lost_runs_told_apart() -> None:
    table = pd.DataFrame({
        "N": [1e8, 2e8, np.nan, 4e8, 4e8], "D": [1e9, 2e9, 3e9, 4e9, 4e9],
        "loss": ["3.2", "diverged", "3.0", "2.9", "2.9"],
    })  # fmt: skip
    found = runs(table, Columns())
    assert "2 of 5 rows lack a value and are left out: row 1 (loss), row 2 (N)" in found.notes
    assert "1 row repeats another's size, tokens and loss exactly; each counts as a run" in (
        found.notes
    )
    (refusal,) = found.refusals
    assert refusal.reason == "diverged cells" and refusal.runs[0].size == pytest.approx(2e8)
