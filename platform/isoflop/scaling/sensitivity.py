"""How much do the conclusions move with choices that nobody can prove right?

One choice is changed at a time: how many of the highest losses are left out, the delta and the kind
of the objective, how parameters are counted. Point fits only: the question is how far the estimate
moves, to be held against its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoflop.scaling.interval import Array, Refusal
from isoflop.scaling.objective import Objective, named
from isoflop.scaling.parametric import ParametricFit, fit

DROPS = (0, 1, 2, 3, 5, 8, 13, 21, 34)
MOST_DROPPED = 0.15  # of the runs
DELTAS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
OBJECTIVES = ("huber", "l1", "l2", "asymmetric")
CONVENTIONS = ("params_all", "params_without_input_embedding", "params_without_embeddings")


@dataclass(frozen=True)
class Setting:
    """The law with one choice changed; numbers None where the law has no optimum or is refused."""

    choice: str  # drop, delta, objective or parameters
    setting: str
    points: int
    values: Mapping[str, float]
    exponent: float | None  # a of N* ~ C^a by the law: beta / (alpha + beta)
    size: float | None  # N* at the target
    ratio: float | None  # D*/N* at the target
    loss: float | None  # at N*, D*
    refusal: Refusal | None = None

    def record(self) -> dict[str, object]:
        """As JSON; infinite values are null."""
        numbers = {"a": self.exponent, "N": self.size, "D_per_N": self.ratio, "loss": self.loss}
        values = {k: v if np.isfinite(v) else None for k, v in self.values.items()}
        head = {"choice": self.choice, "setting": self.setting, "points": self.points}
        refused = {"refusal": self.refusal.record()} if self.refusal else {}
        return {**head, **values, **numbers, **refused}


def sensitivity(
    frame: pd.DataFrame,
    table: pd.DataFrame,
    *,
    target: float,
    form: str = "chinchilla",
    objective: Objective | None = None,
) -> list[Setting]:
    """The law of one family's runs (columns size, tokens, flops, loss, weight) under other choices.

    `table`: the table that `frame` was made of, whose columns hold other counts of parameters;
    `target`: FLOPs of the optimum.
    """
    chosen = objective or Objective()
    unlike = frame.sort_values("loss", ascending=False, kind="stable")
    drops = [k for k in DROPS if k <= MOST_DROPPED * len(frame)]
    found = [_lay(unlike.iloc[k:], "drop", str(k), target, form, chosen) for k in drops]
    if chosen.name in ("huber", "asymmetric"):
        for delta in DELTAS:
            other = Objective(chosen.name, delta, chosen.over)
            found.append(_lay(frame, "delta", f"{delta:g}", target, form, other))
    found += [_lay(frame, "objective", n, target, form, named(n)) for n in OBJECTIVES]
    for name, size in _counts(frame, table).items():
        found.append(_lay(frame.assign(size=size), "parameters", name, target, form, chosen))
    return found


def _counts(frame: pd.DataFrame, table: pd.DataFrame) -> dict[str, Array]:
    """Other counts of the runs' parameters, where the table has several."""
    rows = table.loc[frame.index]
    known = [name for name in rows if str(name).startswith("params")]
    numbers = {}
    for name in [*[n for n in CONVENTIONS if n in known], *known]:
        values = pd.to_numeric(rows[name], errors="coerce").to_numpy(float)
        if name not in numbers and (np.isfinite(values) & (values > 0)).all():
            numbers[str(name)] = values
    return numbers if len(numbers) > 1 else {}


def _lay(
    rows: pd.DataFrame, choice: str, setting: str, target: float, form: str, objective: Objective
) -> Setting:
    law = fit(
        rows["size"], rows["tokens"], rows["loss"],
        flops=rows["flops"], weights=rows["weight"], form=form, objective=objective,
    )  # fmt: skip
    if isinstance(law, Refusal):
        return Setting(choice, setting, len(rows), {}, None, None, None, None, law)
    best = law.optimum(target)
    optimum = () if isinstance(best, Refusal) else (best.size, best.ratio, best.loss)
    size, ratio, loss = (i.value for i in optimum) if optimum else (None, None, None)
    return Setting(choice, setting, len(rows), law.values, _exponent(law), size, ratio, loss)


def _exponent(law: ParametricFit) -> float | None:
    if "alpha" not in law.values or "beta" not in law.values:
        return None
    total = law.alpha + law.beta
    return law.beta / total if total > 0 else None


def lines(found: Sequence[Setting]) -> list[str]:
    """A table in words."""
    heads = f"{'a':>7} {'N*':>10} {'D*/N*':>8} {'loss':>8}"
    shown = [f"{'choice':11} {'setting':32} {'runs':>5} {heads}"]
    for row in found:
        head = f"{row.choice:11} {row.setting:32} {row.points:5}"
        if row.refusal:
            shown.append(f"{head} {row.refusal.explanation}")
            continue
        a = "-" if row.exponent is None else f"{row.exponent:.3f}"
        best = ("-", "-", "-")
        if row.size is not None and row.ratio is not None and row.loss is not None:
            best = (f"{row.size:.4g}", f"{row.ratio:.3g}", f"{row.loss:.4f}")
        shown.append(f"{head} {a:>7} {best[0]:>10} {best[1]:>8} {best[2]:>8}")
    return shown
