"""Where is the best size of each budget expected? By a law of earlier runs, or by a rule.

The rule is 20 tokens per parameter (Hoffmann et al. 2022). A pilot is any table of runs that
`isoflop fit` reads, or the folder of a study that has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isoflop.planning.rates import BATCH, RATE, Rates, best, learn
from isoflop.planning.shapes import size
from isoflop.scaling.columns import ONE_FAMILY, Columns, runs
from isoflop.scaling.forms import CHINCHILLA, Points
from isoflop.scaling.gain import USUAL_EXPONENT, USUAL_NOISE, Belief, believe
from isoflop.scaling.interval import Array, compact
from isoflop.scaling.ranking import TOKENS_PER_PARAMETER
from isoflop.scaling.reading import read
from models.interface import Config

FAMILY = "axis.arch"
SIZES = 5  # per budget where a law says where the best one is
SIZES_BY_RULE = 7  # where only a rule does: two more on each side in case it is wrong


@dataclass(frozen=True, eq=False)
class Pilot:
    """What is known before. Without laws, the rule holds."""

    laws: dict[str, Belief]  # by architecture; ONE_FAMILY for all that have none of their own
    source: str  # in words
    rates: Rates = field(default_factory=Rates)

    @property
    def sizes(self) -> int:
        return SIZES if self.laws else SIZES_BY_RULE

    def law(self, arch: str) -> Belief | None:
        return self.laws.get(arch, self.laws.get(ONE_FAMILY))

    def best(self, arch: str, shapes: Sequence[Config], flops: float) -> int:
        """Which of the shapes is expected to reach the lowest loss for `flops`."""
        n = np.array([float(size(config)) for config in shapes])
        d = np.array([flops / config.flops_per_token().training for config in shapes])
        law = self.law(arch)
        if law is None:
            return int(np.abs(np.log(d / n / TOKENS_PER_PARAMETER)).argmin())
        return int(law.predict(Points.of(n, d, np.full(len(n), flops)))[0].argmin())

    def belief(self, arch: str, centre: Points, log_loss: float) -> Belief:
        """A law to simulate by. By the rule: equal exponents, so that 20 tokens per parameter are
        best everywhere, half of the loss at `centre` irreducible."""
        return self.law(arch) or ruled(centre, log_loss)


def ruled(centre: Points, log_loss: float) -> Belief:
    """See `Pilot.belief`: E = half, A and B a quarter each at the centre (means of `centre`)."""
    middle = centre.centre()
    # The terms' slopes cancel where they are equal, which is at D = 20 N as it should.
    lean = USUAL_EXPONENT * (middle[1] - middle[0] - np.log(TOKENS_PER_PARAMETER)) / 2
    shares: dict[str, float] = {"E": np.log(0.5), "A": np.log(0.25), "B": np.log(0.25)}
    values = {name: log_loss + share for name, share in shares.items()}
    values["A"] += lean
    values["B"] -= lean
    values |= {"alpha": USUAL_EXPONENT, "beta": USUAL_EXPONENT}
    theta: Array = np.array([[values[name] for name in CHINCHILLA.coordinates]])
    return Belief(CHINCHILLA, middle, theta, centre, USUAL_NOISE)


def without() -> Pilot:
    """No earlier run."""
    return Pilot(
        {}, f"no pilot: centred by the rule of {TOKENS_PER_PARAMETER:g} tokens a parameter"
    )


def load(path: Path, columns: Columns | None = None) -> Pilot:
    """From a run table, or the folder of a study with its `runs.parquet`. Raises ValueError."""
    table = read(path / "runs.parquet" if path.is_dir() else path)
    if columns is None:
        own = FAMILY in table
        columns = Columns(by=FAMILY if own else None, c="flops" if "flops" in table else "6ND",
                          n="params_without_input_embedding" if own else None)  # fmt: skip
    known = runs(table, columns)
    frame = known.frame.assign(
        **{name: table.loc[known.frame.index, name] for name in (RATE, BATCH) if name in table}
    )
    reached = best(frame)
    laws = {}
    for name in known.families:
        rows = reached[reached["family"] == name]
        n, d, c, loss = (rows[k].to_numpy(float) for k in ("size", "tokens", "flops", "loss"))
        laws[name] = believe(Points.of(n, d, c), np.log(loss))
    if not laws:
        raise ValueError(f"--pilot {path}: no run of it can be fitted")
    largest = compact(float(known.frame["size"].max()))
    source = f"centred by {len(known.frame)} runs of {path}, up to {largest} parameters"
    return Pilot(laws, source, learn(frame))
