"""Which runs make a good IsoFLOP study of a budget? Budgets a factor 3 apart over two decades where
they can be afforded, sizes a factor 2 apart on both sides of the expected best, every length by its
exact FLOPs, seeds repeated where that is cheap.
Batches and peak learning rates: `rates`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.planning.pilot import Pilot
from isoflop.planning.rates import FEWEST_STEPS, Rates
from isoflop.planning.shapes import size
from isoflop.run import AdamW, Evaluation, Run, Schedule, Text
from isoflop.scaling.interval import compact, scientific
from isoflop.targets import suiting
from isoflop.training.memory import Memory, memory
from models.interface import Config

APART = 3.0  # budgets
BUDGETS = 6  # 3^5 = 243: over two decades
FEWEST = 3
SIDE = 2  # sizes that must lie on each side of the expected best
REPEATS = 2  # further seeds of the middle size, in the two smallest budgets


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of the plan."""

    arch: str
    budget: float  # FLOPs
    seed: int
    run: Run
    memory: Memory  # on one device
    centre: bool  # expected to be the best size of its budget

    @property
    def size(self) -> int:
        return size(self.run.model)

    @property
    def tokens(self) -> float:
        return self.budget / self.run.model.flops_per_token().training


@dataclass(frozen=True, eq=False)
class Design:
    """Runs that fit, and what had to be left out."""

    planned: tuple[Planned, ...]
    left_out: tuple[Planned, ...]  # for want of memory
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        return float(sum(p.budget for p in self.planned))

    @property
    def budgets(self) -> list[float]:
        return sorted({p.budget for p in self.planned})


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What does not depend on how much there is to spend."""

    data: Text
    context: int
    memory: float  # bytes of one device
    workers: int = 1
    seeds: int = 1


def design(total: float, ladders: Mapping[str, Sequence[Config]], pilot: Pilot, ask: Ask) -> Design:
    """The largest design of `total` FLOPs. `ladders`: the shapes of each architecture.

    Raises ValueError where not even `FEWEST` budgets can be paid for.
    """
    if not 0 < total < np.inf:
        raise ValueError(f"the budget is {total} FLOPs; it must be above 0, and finite")
    for count in range(BUDGETS, FEWEST - 1, -1):
        top = float(f"{total / _units(count, len(ladders), pilot.sizes, ask.seeds):.3g}")
        budgets = [float(f"{top / APART**k:.3g}") for k in reversed(range(count))]
        places = {
            (arch, c): _sizes(arch, shapes, pilot, c)
            for arch, shapes in ladders.items() for c in budgets
        }  # fmt: skip
        short = [c for c in budgets if any(places[arch, c] is None for arch in ladders)]
        if not short:
            break
    else:
        raise ValueError(
            f"{scientific(total)} FLOPs pay for no {FEWEST} budgets with {SIDE} sizes on each side "
            f"of the best: at {scientific(short[0])} FLOPs the smallest or largest model of "
            f"{', '.join(ladders)} is too near to it. Ask for more, or for fewer architectures"
        )
    notes = [pilot.source, *pilot.rates.notes]
    if APART ** (count - 1) < 100:
        notes.append(
            f"budgets span only a factor {budgets[-1] / budgets[0]:.0f}; two decades would need "
            "more FLOPs, or a smaller vocabulary"
        )
    made = _filled(budgets, ladders, places, ask, pilot.rates, notes)
    if not made.planned:
        raise ValueError(f"no run of the plan fits in memory: {made.notes[-1]}")
    return made


def _units(count: int, archs: int, sizes: int, seeds: int) -> float:
    """What the design costs in units of its largest budget."""
    series = [APART**-k for k in range(count)]
    return archs * (sizes * seeds * sum(series) + REPEATS * sum(series[-2:]))


def _sizes(
    arch: str, shapes: Sequence[Config], pilot: Pilot, flops: float
) -> tuple[int, list[int]] | None:
    """Places on the ladder: the expected best, and with it those a factor 2 apart on both sides.
    None where fewer than `SIDE` on one side have a shape, and steps enough."""
    best = pilot.best(arch, shapes, flops)
    logs = np.log2([float(size(config)) for config in shapes])
    reach = pilot.sizes // 2
    wanted = logs[best] + np.arange(-reach, reach + 1)
    inside = wanted[(wanted >= logs[0] - 0.5) & (wanted <= logs[-1] + 0.5)]
    places = sorted({int(np.abs(logs - at).argmin()) for at in inside})
    places = [p for p in places if flops / shapes[p].flops_per_token().training
              >= FEWEST_STEPS * shapes[p].context]  # fmt: skip
    sides = sum(p < best for p in places), sum(p > best for p in places)
    return (best, places) if min(sides) >= SIDE else None


def _filled(
    budgets: list[float],
    ladders: Mapping[str, Sequence[Config]],
    places: Mapping[tuple[str, float], tuple[int, list[int]] | None],
    ask: Ask,
    rates: Rates,
    notes: list[str],
) -> Design:
    planned, left_out = list[Planned](), list[Planned]()
    for arch, shapes in ladders.items():
        for number, flops in enumerate(budgets):
            found = places[arch, flops]
            assert found is not None, "a budget without sizes was not taken"
            middle, chosen = found
            for place in chosen:
                repeats = REPEATS if number < 2 and place == middle else 0
                for seed in range(ask.seeds + repeats):
                    one = _planned(arch, shapes[place], flops, seed, place == middle, ask, rates)
                    fits = one.memory.needed <= ask.memory
                    (planned if fits else left_out).append(one)
    longest = max((p.tokens for p in planned), default=0.0)
    notes.append(
        f"the longest run reads {compact(longest)} tokens: a text that is read more than 4 times "
        "needs a law of repetition (Muennighoff et al. 2023); --plan of the study shows the epochs"
    )
    for arch, flops in sorted({(p.arch, p.budget) for p in left_out}):
        mine = [p for p in left_out if (p.arch, p.budget) == (arch, flops)]
        smallest = min(mine, key=lambda p: p.memory.needed)
        notes.append(
            f"{arch} at {scientific(flops)} FLOPs: {len(mine)} runs from "
            f"{compact(smallest.size)} parameters on need {smallest.memory.needed / 2**30:.1f} GiB "
            f"or more, and a device has {ask.memory / 2**30:.1f}: left out"
        )
    return Design(tuple(planned), tuple(left_out), tuple(notes))


def _planned(
    arch: str, config: Config, flops: float, seed: int, centre: bool, ask: Ask, rates: Rates
) -> Planned:
    run = Run(
        model=config,
        objective=suiting(config)(),
        data=ask.data,
        flops=flops,
        batch_tokens=rates.batch_tokens(arch, config, flops, ask.workers),
        optimizer=AdamW(lr=rates.learning_rate(arch, config, flops), betas=(0.9, 0.95)),
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),
        evaluation=Evaluation(tokens=max(2**15, 32 * config.context), times=4),
        seed=seed,
    )
    return Planned(
        arch=arch,
        budget=flops,
        seed=seed,
        run=run,
        memory=memory(run, ask.workers),
        centre=centre,
    )
