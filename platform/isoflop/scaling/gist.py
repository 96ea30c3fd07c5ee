"""What do the laws say in one paragraph?"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from isoflop.scaling.holdout import Score
from isoflop.scaling.interval import Interval, Refusal, compact, scientific
from isoflop.scaling.question import Law

CLOSE = 1.1  # errors within this factor of the least predict as well
COLUMNS = 100


def gist(laws: Sequence[Law]) -> str:
    """Which form predicts larger runs best, and what it says of the target; or why none does."""
    family = laws[0].family
    scored = [(law.rolling.error, law) for law in laws if isinstance(law.rolling, Score)]
    if not scored:
        return f"Of {family} nothing can be said about larger runs: {laws[0].rolling}."
    scored.sort(key=lambda pair: pair[0])
    least, best = scored[0]
    alike = [law.form for error, law in scored[1:] if error <= CLOSE * least]
    lead = _leader(best, least, alike, len(scored) > 1)
    return " ".join([lead, _best(best), _trust(best)]).strip()


def _leader(best: Law, least: float, alike: Sequence[str], several: bool) -> str:
    assert isinstance(best.rolling, Score), "only scored laws lead"
    also = f" ({' and '.join(alike)} as well)" if alike else ""
    does = f"{also} predicts larger runs best:" if several else " predicts larger runs so well:"
    return (
        f"Of {best.family} the form {best.form}{does} each budget from all smaller ones, "
        f"x{best.rolling.reach:.2g} in compute, {100 * least:.2g} % off."
    )


def _best(law: Law) -> str:
    at = f"{scientific(law.target)} FLOPs"
    if isinstance(law.optimum, Refusal):
        return f"It gives no optimum at {at}: {law.optimum}."
    best = law.optimum
    size, tokens, ratio, loss = best.size, best.tokens, best.ratio, best.loss
    return (
        f"By it {at} are best spent on {_between(size)} parameters and {_between(tokens)} tokens "
        f"({ratio.value:.3g} per parameter, {ratio.low:.3g} to {ratio.high:.3g}), for a loss of "
        f"{loss.value:.4f} ({loss.low:.4f} to {loss.high:.4f})."
    )


def _trust(law: Law) -> str:
    """How far its intervals held."""
    score = law.rolling
    if not isinstance(score, Score) or score.covered is None or score.covered >= 0.9:
        return ""
    return (
        f"Its 95 % prediction intervals held {100 * score.covered:.0f} % of the larger runs, so "
        f"they are stretched x{law.widening:.2g} for the next one."
    )


def _between(value: Interval) -> str:
    return f"{compact(value.value)} ({compact(value.low)} to {compact(value.high)})"


def wrapped(paragraph: str) -> list[str]:
    """As lines of a terminal."""
    return textwrap.wrap(paragraph, COLUMNS, break_long_words=False)
