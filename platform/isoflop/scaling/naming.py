"""Which column of somebody's table holds parameters, tokens, losses or compute?

Names are compared without case, spaces and punctuation, and a unit in brackets is understood:
`Model Size`, `model_size`, `Params (B)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

# Names under which published tables hold each quantity; the first that is there wins.
USUAL: Mapping[str, tuple[str, ...]] = {
    "n": (
        "params", "N", "n_params", "num_params", "parameters", "num_parameters", "parameter_count",
        "param_count", "total_params", "model_params", "model_size",
        "params_without_input_embedding", "params_all", "non_embedding_params",
        "params_non_embedding", "params_no_embed", "params_without_embeddings", "size",
    ),
    "d": (
        "tokens", "D", "n_tokens", "num_tokens", "training_tokens", "train_tokens", "total_tokens",
        "tokens_seen", "tokens_trained", "D_tokens", "dataset_size", "data_size",
    ),
    "loss": (
        "loss", "L", "final_loss", "val_loss", "validation_loss", "val/loss", "eval_loss",
        "eval/loss", "test_loss", "held_out_loss", "loss_final", "loss_val", "cross_entropy",
        "bits_per_byte", "bpb", "val_bpb", "train_loss", "training_loss",
    ),
    "c": (
        "flops", "C", "compute", "training_flops", "Training FLOP", "train_flops", "total_flops",
        "flop", "training_compute", "budget", "compute_budget",
    ),
}  # fmt: skip
MEANING = {"n": "parameters", "d": "tokens", "loss": "loss", "c": "compute"}
UNIT = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "thousands": 1e3, "millions": 1e6}
UNIT |= {"billions": 1e9, "billion": 1e9, "million": 1e6, "trillion": 1e12, "trillions": 1e12}
BRACKETS = re.compile(r"[(\[]\s*([A-Za-z]+)\s*[)\]]\s*$")


def found(table: pd.DataFrame, option: str) -> str | None:
    """The column with a usual name for what `option` (n, d, loss, c) asks; None where none has."""
    for usual in USUAL[option]:
        if usual in table:
            return usual
    plain = _plain(table)
    return next((plain[k] for k in map(_key, USUAL[option]) if k in plain), None)


def column(table: pd.DataFrame, option: str, name: str | None, notes: list[str]) -> str:
    """The column that was named, or one with a usual name, of which `notes` tell. Raises
    ValueError."""
    if name is not None:
        return there(table, name, option)
    usual = found(table, option)
    if usual is None:
        raise ValueError(f"no column has a usual name for {MEANING[option]}; name it with "
                         f"--{option}. {has(table)}")  # fmt: skip
    times = factor(usual)
    notes.append(f"{MEANING[option]} from column {usual!r}" + (f" x {times:g}" * (times != 1)))
    return usual


def there(table: pd.DataFrame, name: str, option: str) -> str:
    """The column of that name, whatever its case and spaces. Raises ValueError."""
    if name in table:
        return name
    alike = [str(each) for each in table.columns if _key(str(each)) == _key(name)]
    if len(alike) == 1:
        return alike[0]
    raise ValueError(f"--{option}: there is no column {name!r}. {has(table)}")


def factor(name: str) -> float:
    """What a unit in the column's name says that its values count: 1e9 for `Params (B)`."""
    unit = BRACKETS.search(name)
    return UNIT.get(unit[1].lower(), 1.0) if unit else 1.0


def has(table: pd.DataFrame) -> str:
    names: Sequence[str] = [str(name) for name in table.columns]
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return f"The table has {', '.join(names[:30])}{more}"


def _plain(table: pd.DataFrame) -> dict[str, str]:
    """Columns by their key, the first of several alike."""
    found: dict[str, str] = {}
    for name in map(str, table.columns):
        found.setdefault(_key(name), name)
    return found


def _key(name: str) -> str:
    if factor(name) != 1:
        name = BRACKETS.sub("", name)
    return re.sub(r"[^a-z0-9]", "", name.lower())
