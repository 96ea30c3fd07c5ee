"""Are the losses of this table final ones, and what became of the runs that have none?

A loss taken in the middle of a decaying learning rate lies above the one that the same tokens give
when the schedule ends there (Hoffmann et al. 2022, section 3.1), so a law through such losses is
not the law of the runs. Rows that say so themselves are left out; a table that only looks so is
fitted and comes with the refusal, since a constant learning rate looks the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from isoflop.scaling import cures
from isoflop.scaling.interval import Array, Refusal, Wanted

ENDED = 0.99  # of the planned tokens: rounding to whole batches is no missing end
EVEN = 0.02  # steps between checkpoints are as even as this
SERIES = 5  # token counts in even steps that betray the checkpoints of one run
PLANNED = ("tokens_planned", "planned_tokens", "target_tokens", "max_tokens", "total_tokens")
LOST = ("diverged", "alarmed", "failed", "nan", "crashed")
CONSTANT = "if the learning rate was constant, all is well; else finish runs of these lengths"


def shortfall(frame: pd.DataFrame) -> tuple[pd.DataFrame, Refusal | None]:
    """The rows whose run had ended, by their column `planned` (tokens; absent: all), and why the
    others are left out."""
    if "planned" not in frame:
        return frame, None
    ended = ~(frame["tokens"] < ENDED * frame["planned"])  # a plan that is not known is kept to
    if ended.all():
        return frame, None
    early = frame[~ended]
    why = (
        f"{len(early)} of {len(frame)} losses were measured before their run had read the tokens "
        f"it was planned for (the first at {100 * _share(early):.0f} %) and are left out"
    )
    cure = "let these runs end, or decay the learning rate to the end there"
    return frame[ended], Refusal("mid-schedule losses", why, cure, _cells(early))


def _share(early: pd.DataFrame) -> float:
    return float(early["tokens"].iloc[0] / early["planned"].iloc[0])


def betrayed(frame: pd.DataFrame) -> Refusal | None:
    """Whether rows look like checkpoints: one run named in several rows whose tokens grow, or one
    size with token counts in even steps that start with the step itself."""
    early = np.zeros(len(frame), dtype=bool)
    tokens = frame["tokens"].to_numpy(float)
    keys = ["family", "run" if "run" in frame else "size"]
    runs = 0
    for rows in frame.groupby(keys, sort=False).indices.values():
        at = np.asarray(rows)
        named = "run" in frame and len(np.unique(tokens[at])) > 1
        if named or _even(np.unique(tokens[at])):
            early[at] = tokens[at] < tokens[at].max()
            runs += 1
    if not early.any():
        return None
    why = (
        f"{int(early.sum())} of {len(frame)} losses look like checkpoints within {runs} runs, not "
        "like the ends of runs; under a decaying learning rate they lie too high"
    )
    return Refusal("mid-schedule losses", why, CONSTANT, _cells(frame[early]))


def _even(tokens: Array) -> bool:
    """Multiples of one step, 1 to k: grids of lengths are spaced by factors."""
    if len(tokens) < SERIES:
        return False
    steps = np.diff(tokens)
    return bool(np.ptp(steps) <= EVEN * steps.mean() and tokens[0] <= (1 + EVEN) * steps.mean())


def lost(table: pd.DataFrame, size: Array, tokens: Array, status: Sequence[str]) -> Refusal | None:
    """Cells whose run diverged or failed (`status`, as lower-case words), so that nothing is known
    there; the finished cells beside them may be the lucky ones."""
    known = np.isfinite(size) & (tokens > 0)
    gone = np.array([any(word in s for word in LOST) for s in status], dtype=bool)
    if not gone.any():
        return None
    counts = pd.Series(status)[gone].value_counts()
    words = ", ".join(f"{count} {word}" for word, count in counts.items())
    why = f"{int(gone.sum())} of {len(table)} runs left no loss ({words}): their cells say nothing"
    cure = "run them again with half the learning rate"
    cells = pd.DataFrame({"size": size, "tokens": tokens})[gone & known]
    return Refusal("diverged cells", why, cure, _cells(cells.assign(flops=_flops(cells))))


def _flops(cells: pd.DataFrame) -> pd.Series:
    return 6.0 * cells["size"] * cells["tokens"]


def _cells(rows: pd.DataFrame) -> tuple[Wanted, ...]:
    """The runs of these rows, each once, cheapest first."""
    cells = rows.drop_duplicates(["size", "tokens"]).sort_values("flops")
    log_factor = np.log((cells["flops"] / (cells["size"] * cells["tokens"])).to_numpy(float))
    logs = np.log(cells[["size", "tokens"]].to_numpy(float))
    found = zip(logs, log_factor, strict=True)
    return tuple(cures.run(float(x), float(y), float(f)) for (x, y), f in found)
