"""Which table is in somebody's file, and which numbers do its words stand for?"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from isoflop.scaling.interval import Array

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
KINDS = ".csv, .tsv, .json, .jsonl or .parquet"
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
NUMBER = re.compile(r"([+-]?\d*\.?\d+(?:e[+-]?\d+)?|[+-]?\d+\.)\s*([kmbgt]?)", re.IGNORECASE)
GROUPED = re.compile(r"[+-]?\d{1,3}(?:[,_]\d{3})+(?:\.\d+)?")  # 1,234,567
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:e[+-]?\d+)?", re.IGNORECASE)
MISSING = ("", "-", "--", "nan", "na", "n/a", "none", "null", "inf", "-inf", "+inf", "?")
LOST = ("diverged", "failed", "crashed", "oom", "alarmed", "killed", "error")


def read(path: Path) -> pd.DataFrame:
    """A table of runs from .csv, .tsv, .json, .jsonl or .parquet, packed or not. A file whose
    columns are parted by semicolons is read so. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        table = _table(path)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not len(table):
        raise ValueError(f"{path} has no rows")
    return table


def _table(path: Path) -> pd.DataFrame:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in PACKED else (suffixes or [""])[-1]
    if kind in (".csv", ".tsv"):
        table = pd.read_csv(path, sep="\t" if kind == ".tsv" else ",", encoding="utf-8-sig")
        one = len(table.columns) == 1 and ";" in str(table.columns[0])
        return pd.read_csv(path, sep=";", encoding="utf-8-sig") if one else table
    if kind in (".json", ".jsonl"):
        return pd.read_json(path, lines=kind == ".jsonl")
    if kind == ".parquet":
        return pd.read_parquet(path)
    raise ValueError(f"it must end in {KINDS}")


def numbers(table: pd.DataFrame, name: str, factor: float = 1.0) -> Array:
    """The column as floats (6ND overflows int64 above 9.2e18 FLOPs) times `factor`, nan where a
    value is missing, infinite or a word for a run that was lost. Raises ValueError for other words.

    Words may be grouped (1,234,567), hold a decimal comma (3,14) or a unit (350M, 1.4B, 3T).
    """
    column = table[name]
    if column.dtype == bool:
        raise ValueError(f"column {name!r} holds truths, not numbers")
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=float, na_value=np.nan)
    else:
        values = np.array([_number(value, name, row) for row, value in column.items()], dtype=float)
    known: Array = np.where(np.isfinite(values), values * factor, np.nan)
    return known


def _number(value: object, name: str, row: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    word = "" if value is None or value is pd.NA else str(value).strip()
    if word.lower() in MISSING or lost(word):
        return np.nan
    if GROUPED.fullmatch(word):
        word = re.sub("[,_]", "", word)
    elif DECIMAL_COMMA.fullmatch(word):
        word = word.replace(",", ".")
    found = NUMBER.fullmatch(word)
    if found is None:
        raise ValueError(
            f"column {name!r} holds something other than numbers: {str(value)!r} in row {row}"
        )
    return float(found[1]) * UNITS[found[2].lower()]


def lost(word: object) -> bool:
    """Whether a word stands for a run that left no loss."""
    return isinstance(word, str) and word.strip().lower() in LOST
