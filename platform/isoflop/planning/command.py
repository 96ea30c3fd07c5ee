"""What would a good study of this budget be, and what could it tell? `isoflop plan`."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isoflop.planning import money, pilot, shapes, writing
from isoflop.planning.grid import Ask, Design, Planned, design
from isoflop.planning.money import Speed
from isoflop.planning.pilot import Pilot
from isoflop.run import Text
from isoflop.scaling.files import put
from isoflop.scaling.forms import Points
from isoflop.scaling.interval import compact, scientific
from isoflop.scaling.power import Detectable, detectable, simulate
from isoflop.training.memory import MARGIN

FARTHER = 10.0  # the target, in units of the largest budget
PROBED = shapes.WIDTHS.index(64)  # the shape whose speed is the first guess
POSITIVE = (
    "budget", "hours", "dollars", "price", "throughput", "target", "noise", "memory", "seeds",
    "context", "workers",
)  # fmt: skip
SUPPOSED_LOSS = 3.5  # nats, where no pilot says


@dataclass(frozen=True, eq=False)
class Plan:
    """All that is said."""

    design: Design
    pilot: Pilot
    speed: Speed | None  # None: FLOPs were asked for, and no time
    price: float | None
    target: float
    noise: float
    power: dict[str, list[Detectable]]  # by architecture: at the largest budget, and the target
    memory: tuple[float, str]


def show(options: argparse.Namespace) -> int:
    """Print the plan, or as JSON; draw and write what was asked for. Raises ValueError."""
    from models import ZOO

    money.check(**{name: getattr(options, name) for name in POSITIVE})
    kinds = shapes.named(options.arch, ZOO)
    known = pilot.load(options.pilot) if options.pilot else pilot.without()
    vocab = vocabulary(options.tokenizer)
    ladders = {
        kind.name: shapes.ladder(kind, vocab=vocab, context=options.context) for kind in kinds
    }
    has = (options.memory * 2**30, "as given") if options.memory else money.device_memory()
    ask = Ask(
        data=Text(source=options.data, tokenizer=options.tokenizer),
        context=options.context,
        memory=has[0],
        workers=options.workers,
        seeds=options.seeds,
    )
    made, speed = _affordable(options, ladders, known, ask)
    plan = _judged(made, speed, known, has, options)
    print(json.dumps(as_json(plan), indent=1) if options.json else text(plan))
    if options.picture:
        _draw(options, plan)
    if options.write:
        source = plan.design.notes[0]
        asked = writing.question_of(list(ladders), made.budgets)
        path = writing.write(
            options.write, made, seeds=options.seeds, question=asked, source=source
        )
        if not options.json:
            print(f"\nwritten: {path}, which builds these {len(made.planned)} runs")
    return 0


def vocabulary(tokenizer: str) -> int:
    """How many tokens it has, known before any text is read. Raises ValueError."""
    from isoflop.data.tokenizers import named, trained_size

    return trained_size(tokenizer) or named(tokenizer).vocab_size


def _affordable(
    options: argparse.Namespace, ladders: dict[str, Any], known: Pilot, ask: Ask
) -> tuple[Design, Speed | None]:
    """The design that the FLOPs, hours or dollars pay for."""
    hours = money.hours(options.hours, options.dollars, options.price)
    speed = Speed(given=options.throughput) if options.throughput else None
    if hours is None:
        made = design(options.budget, ladders, known, ask)
        if speed is None and options.price is not None:
            speed = money.measured([p.run for p in made.planned])
        return made, speed
    if speed is not None:
        return design(hours * 3600 * (speed.given or 0.0), ladders, known, ask), speed
    # The rate depends on the sizes, and these on the rate: one round is enough.
    middle = next(iter(ladders.values()))[PROBED]
    trial = money.measured([_probe(middle, ask)])
    assert trial.measured is not None
    rate = trial.measured[middle] * trial.processes
    guess = design(hours * 3600 * rate, ladders, known, ask)
    speed = money.measured([p.run for p in guess.planned])
    total = guess.flops * hours / _hours(guess, speed)
    made = design(total, ladders, known, ask)
    return made, money.measured([p.run for p in made.planned])


def _probe(config: Any, ask: Ask) -> Any:
    from isoflop.run import AdamW, Run
    from isoflop.targets import suiting

    return Run(
        model=config,
        objective=suiting(config)(),
        data=ask.data,
        optimizer=AdamW(lr=1e-3),
        batch_tokens=8 * config.context,
        tokens=8 * config.context,
    )


def _hours(made: Design, speed: Speed) -> float:
    return sum(speed.seconds(p.run, p.budget) for p in made.planned) / 3600


def _judged(
    made: Design,
    speed: Speed | None,
    known: Pilot,
    memory: tuple[float, str],
    options: argparse.Namespace,
) -> Plan:
    """With what the design could detect."""
    target = options.target or FARTHER * made.budgets[-1]
    power, noise = dict[str, list[Detectable]](), float(options.noise or 0.0)
    for arch in dict.fromkeys(p.arch for p in made.planned):
        mine = [p for p in made.planned if p.arch == arch]
        points = _points(mine)
        law = known.belief(arch, points, float(np.log(SUPPOSED_LOSS)))
        noise = options.noise or law.noise
        fitted = simulate(law, points, noise, worlds=options.worlds, seed=options.seed)
        largest = max(mine, key=lambda p: p.budget)
        factor = largest.budget / (largest.size * largest.tokens)
        power[arch] = [
            detectable(law, fitted, flops, factor) for flops in (made.budgets[-1], target)
        ]
    return Plan(made, known, speed, options.price, target, noise, power, memory)


def _points(planned: list[Planned]) -> Points:
    n, d, c = ([getattr(p, name) for p in planned] for name in ("size", "tokens", "budget"))
    return Points.of(np.array(n, float), np.array(d, float), np.array(c, float))


def rows(plan: Plan) -> list[dict[str, Any]]:
    """One row per architecture, budget and size; its seeds counted."""
    found: dict[tuple[str, float, int], dict[str, Any]] = {}
    for p in plan.design.planned:
        row = found.setdefault(
            (p.arch, p.budget, p.size),
            {
                "arch": p.arch,
                "budget": p.budget,
                "params_without_input_embedding": p.size,
                "params_all": p.run.model.parameters().all,
                "tokens": p.tokens,
                "tokens_per_parameter": p.tokens / p.size,
                "batch_tokens": p.run.batch_tokens,
                "steps": round(p.tokens / p.run.batch_tokens),
                "learning_rate": p.run.optimizer.lr,
                "memory_bytes": p.memory.needed,
                "seeds": 0,
                "hours": 0.0 if plan.speed else None,
                "expected_best": p.centre,
            },
        )
        row["seeds"] += 1
        if plan.speed:
            row["hours"] += plan.speed.seconds(p.run, p.budget) / 3600
    return list(found.values())


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything, as plain values; what is infinite is null."""
    hours = _hours(plan.design, plan.speed) if plan.speed else None
    return {
        "flops": plan.design.flops,
        "hours": hours,
        "dollars": None if hours is None or plan.price is None else hours * plan.price,
        "target_flops": plan.target,
        "noise": plan.noise,
        "runs": len(plan.design.planned),
        "budgets": plan.design.budgets,
        "points": rows(plan),
        "power": {
            arch: [
                {k: v if np.isfinite(v) else None for k, v in asdict(one).items()} for one in found
            ]
            for arch, found in plan.power.items()
        },
        "memory_of_device": plan.memory[0],
        "notes": list(plan.design.notes),
    }


def text(plan: Plan) -> str:
    """The table and what it means, for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("FLOPs", "parameters", "tokens", "D/N", "batch", "steps", "rate", "GiB", "seeds",
                 "hours"):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows(plan):
        table.add_row(
            row["arch"] + (" *" if row["expected_best"] else ""),
            scientific(row["budget"]),
            compact(row["params_without_input_embedding"]),
            compact(row["tokens"]),
            f"{row['tokens_per_parameter']:.3g}",
            compact(row["batch_tokens"]),
            str(row["steps"]),
            f"{row['learning_rate']:g}",
            f"{row['memory_bytes'] / 2**30:.2g}",
            str(row["seeds"]),
            "" if row["hours"] is None else f"{row['hours']:.3g}",
        )
    page = io.StringIO()
    Console(width=110, file=page).print(table)
    return "\n".join([page.getvalue().rstrip(), "", *_sentences(plan)])


def _sentences(plan: Plan) -> list[str]:
    made = plan.design
    said = [
        f"{len(made.planned)} runs, {scientific(made.flops)} FLOPs in all. * expected best size"
    ]
    if plan.speed:
        hours = _hours(made, plan.speed)
        price = "" if plan.price is None else f", {hours * plan.price:,.2f} dollars"
        said.append(f"{hours:.3g} hours{price}: {plan.speed.source}")
    said.append(
        f"memory with a margin of {MARGIN - 1:.0%} fits in {plan.memory[0] / 2**30:.1f} GiB "
        f"({plan.memory[1]})"
    )
    for arch, found in plan.power.items():
        for one in found:
            said.append(f"{arch} at {scientific(one.flops)} FLOPs: {_power(one)}")
    said.append(
        f"(two families of runs like these, noise {plan.noise:.2%} of the loss between seeds, "
        f"80 % power at 5 %, {next(iter(plan.power.values()))[0].worlds} simulated worlds)"
    )
    return [*said, *made.notes]


def _power(one: Detectable) -> str:
    lost = f"; {one.lost} worlds have no optimum" if one.lost else ""
    factor = f"x{one.multiplier:.3g}" if np.isfinite(one.multiplier) else "more than any factor"
    return (
        f"a difference of {one.difference:.2%} in loss ({one.nats:.3f} nats), {factor} in compute, "
        f"would be detected{lost}"
    )


def _draw(options: argparse.Namespace, plan: Plan) -> None:
    from isoflop.scaling import prospects

    shown = [*plan.design.planned, *plan.design.left_out]
    fits = np.arange(len(shown)) < len(plan.design.planned)
    n, d, c = (
        np.array([getattr(p, k) for p in shown], float) for k in ("size", "tokens", "budget")
    )
    middle = sorted({(p.size, p.tokens) for p in plan.design.planned if p.centre})
    centre = (np.array([float(m[0]) for m in middle]), np.array([m[1] for m in middle]))
    put(options.picture, prospects.png(prospects.design(n, d, c, centre, fits)))
