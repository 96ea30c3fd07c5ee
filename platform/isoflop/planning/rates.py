"""Which batch and peak learning rate does each planned run begin with? By the laws of earlier
sweeps, or by a rule.

The rule is Bi et al.'s (2024, DeepSeek LLM, equation 1: B = 0.2920 C^0.3271 tokens, lr = 0.3118
C^-0.1250): a starting point, to be tuned per size before anything is concluded from exponents
(Porian et al. 2024). A pilot whose cells of size and tokens were swept knows better: its optima and
their law in N and D (`scaling.hyperparameters`) take the rule's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from isoflop.planning.shapes import size
from isoflop.scaling.columns import ONE_FAMILY
from isoflop.scaling.hyperparameters import HyperLaw, hyper_laws, optima
from isoflop.scaling.interval import Refusal
from models.interface import Config

FEWEST_STEPS = 100
RATE, BATCH = "learning_rate", "batch_tokens"
CELL = ["family", "size", "tokens"]


@dataclass(frozen=True, eq=False)
class Rates:
    """What is known of batches and learning rates. Without laws, the rule holds."""

    laws: Mapping[tuple[str, str], HyperLaw] = field(default_factory=dict)  # by family, column
    notes: tuple[str, ...] = ()

    def law(self, arch: str, column: str) -> HyperLaw | None:
        """The architecture's own, or that of runs which name no architecture."""
        return self.laws.get((arch, column)) or self.laws.get((ONE_FAMILY, column))

    def learning_rate(self, arch: str, config: Config, flops: float) -> float:
        """The peak, with two digits."""
        law, tokens = self.law(arch, RATE), flops / config.flops_per_token().training
        rate = 0.3118 * flops**-0.1250
        if law is not None:
            rate = law.predict(float(size(config)), tokens, flops).value
        return float(f"{rate:.2g}")

    def batch_tokens(self, arch: str, config: Config, flops: float, workers: int = 1) -> int:
        """Tokens of a step: whole windows for every worker, and at least `FEWEST_STEPS` steps."""
        law, tokens = self.law(arch, BATCH), flops / config.flops_per_token().training
        wanted = 0.2920 * flops**0.3271
        if law is not None:
            wanted = law.predict(float(size(config)), tokens, flops).value
        unit = config.context * workers
        return int(max(1, round(min(wanted, tokens / FEWEST_STEPS) / unit)) * unit)


def swept(frame: pd.DataFrame) -> list[str]:
    """The columns that vary within a cell of family, size and tokens: those of a sweep."""
    return [
        name
        for name in (RATE, BATCH)
        if name in frame and frame.groupby(CELL)[name].nunique().gt(1).any()
    ]


def learn(frame: pd.DataFrame) -> Rates:
    """The laws that a pilot's sweeps fix. `frame` has family, size, tokens, flops and loss, and a
    column for each hyper-parameter that is known."""
    names = swept(frame)
    if not names:
        return Rates()
    found, notes = dict[tuple[str, str], HyperLaw](), list[str]()
    for key, law in hyper_laws(optima(frame, names), names).items():
        family, name = key
        if isinstance(law, Refusal):
            notes.append(f"{name} of {family} by the rule: {law}")
            continue
        found[key] = law
        powers = " ".join(f"{axis}^{value.value:.3g}" for axis, value in law.exponents.items())
        notes.append(
            f"{name} of {family} by the pilot's sweeps: {law.coefficient.value:.3g} {powers}, "
            f"from {law.cells} cells"
        )
    return Rates(found, tuple(notes))


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """Each cell's runs at the swept values with the lowest mean loss: what its size can reach."""
    names = swept(frame)
    if not names:
        return frame
    means = frame.groupby([*CELL, *names])["loss"].mean().reset_index()
    chosen = means.loc[means.groupby(CELL)["loss"].idxmin(), [*CELL, *names]]
    return frame.merge(chosen, on=[*CELL, *names])
