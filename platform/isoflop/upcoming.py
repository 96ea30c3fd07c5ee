"""Which run should a study do next? `--next` ranks what its function can build; `--go` does it.

Candidates are every combination of the study's axes that has no result yet, the budgets going one
step beyond the largest, and one more seed of what is done. They are ranked by how much each cuts
the variance of the predicted loss at a target compute per FLOP, or per dollar (`scaling.ranking`).
What `--go` takes up becomes part of the study (`points.json` in its folder): later commands
resume, report and fit those runs as they do the study's own.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import record
from isoflop.campaign import Campaign, job_of
from isoflop.design import ADDED, Grid, Point, Study, UserError, added, build, user_input
from isoflop.orchestration.job import FINAL, Job, result
from isoflop.report.analysis import judge
from isoflop.run import Run, short
from isoflop.scaling.files import put
from isoflop.scaling.interval import scientific
from isoflop.scaling.ranking import SIZE, Ranking, describe, rank

if TYPE_CHECKING:
    import pandas as pd

FARTHER = 10.0  # the target, in units of the largest budget that was run
SHOWN = 12  # rows of the table


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What `--next` was asked."""

    go: int | None = None  # do the best so many; None: start nothing
    target: float | None = None  # FLOPs; None: 10 times the largest finished run
    spend: float | None = None  # FLOPs (dollars, with a price); None: as much as was spent so far
    price: float | None = None  # dollars per hour of this machine

    def __post_init__(self) -> None:
        for name in ("go", "target", "spend", "price"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name} is {value}; it must be above 0, and finite")


def next_runs(campaign: Campaign, overrides: list[str], wish: Wish) -> int:
    """Print the ranking, and with `go` do the best. Returns the exit status."""
    folder = campaign.folder
    waiting = [job for job in campaign.jobs if job.axes in added(folder) and not _final(job)]
    if waiting and wish.go:
        print(f"{len(waiting)} runs taken up before are not finished; they come first")
        return replace(campaign, chosen=waiting[: wish.go]).go()
    unit, done, _ = judge(campaign.study.objective, record.table(campaign.jobs), {})
    jobs = candidates(campaign, overrides)
    with user_input():
        if not jobs:
            raise ValueError("every run that the study's axes allow has been done")
        ranking, table, cost = _ranked(campaign, done, jobs, wish)
    _show(ranking, jobs, wish, unit)
    _keep(folder, ranking, done, table, cost, jobs, wish)
    if not wish.go:
        print("Nothing has been started. --next --go K runs the best K.")
        return 0
    taken = [jobs[prospect.row] for prospect in ranking.prospects[: wish.go]]
    if not taken:
        return 0
    keep(folder, campaign.study, [job.axes for job in taken])
    points = [
        *campaign.study.points,
        *(j.axes for j in taken if j.axes not in campaign.study.points),
    ]
    study = replace(campaign.study, points=Grid(tuple(points)))
    return replace(campaign, study=study, jobs=_with(campaign.jobs, taken), chosen=taken).go()


def candidates(campaign: Campaign, overrides: list[str]) -> list[Job]:
    """Runs that the study's function can build and that have no result, one for each family, size
    and length: the cheapest information is a new place, then a new seed."""
    study = campaign.study
    known = {replace(job.run.data, fingerprint=""): job.prepared for job in campaign.jobs}
    done = {job.run.identity for job in campaign.jobs if _ended(job)}
    found: dict[tuple[Any, ...], Job] = {}
    for point in combinations(study):
        run = buildable(study, point, overrides)
        prepared = known.get(replace(run.data, fingerprint="")) if run else None
        if run is None or prepared is None:
            continue
        job = job_of(study, campaign.machine, point, run, prepared)
        if job.run.identity in done or _ended(job):
            continue
        count = job.run.model.parameters().without_input_embedding
        found.setdefault((str(point[study.family]), count, job.run.tokens), job)
    return list(found.values())


def combinations(study: Study) -> list[Point]:
    """Every combination of the axes' values, the study's own points first, with one budget beyond
    the largest and one seed more."""
    axes = {name: list(values) for name, values in study.points.axes.items()}
    budgets = sorted(v for v in axes[study.budget] if isinstance(v, int | float))
    if budgets:
        step = budgets[-1] / budgets[-2] if len(budgets) > 1 else 3.0
        axes[study.budget].append(float(short(float(budgets[-1] * step))))
    if all(isinstance(v, int) for v in axes.get("seed", [None])):
        axes["seed"].append(max(axes["seed"]) + 1)
        axes["seed"].sort()
    own = list(study.points)
    products = [dict(zip(axes, v, strict=True)) for v in itertools.product(*axes.values())]
    if "seed" in axes:  # new places before new seeds
        products.sort(key=lambda point: axes["seed"].index(point["seed"]))
    return [*own, *(point for point in products if point not in own)]


def buildable(study: Study, point: Point, overrides: list[str]) -> Run | None:
    """The run of a point that the study never named; None where its function has no answer."""
    if point in list(study.points):
        return build(study, point, overrides)
    try:
        return build(study, point, overrides)
    except (ValueError, LookupError, TypeError, ArithmeticError):
        return None  # a table without this width, a shape that cannot be, ...


def keep(folder: Path, study: Study, points: list[Point]) -> None:
    """Write down that these points belong to the study from now on."""
    known = added(folder)
    new = [p for p in points if p not in known and p not in list(study.points)]
    put(folder / ADDED, json.dumps([*known, *new], indent=1).encode())


def _final(job: Job) -> bool:
    return (result(job.folder) or {}).get("status") in FINAL


def _ended(job: Job) -> bool:
    """Finished, diverged or failed: not worth another start as it is."""
    return (result(job.folder) or {}).get("status") in (*FINAL, "failed")


def _with(jobs: list[Job], more: list[Job]) -> list[Job]:
    return list({job.run.identity: job for job in (*jobs, *more)}.values())


def _ranked(
    campaign: Campaign, done: pd.DataFrame, jobs: list[Job], wish: Wish
) -> tuple[Ranking, pd.DataFrame, np.ndarray[Any, np.dtype[np.float64]]]:
    """The ranking, the candidates as a run table, and what each costs in FLOPs or dollars."""
    table = record.table(jobs)
    ended = done[done["status"] == "finished"]
    flops = table["flops"].to_numpy(float)
    cost, spent = flops, float(ended["flops"].sum())
    if wish.price is not None:
        from isoflop.plan import throughput

        rates = throughput(job.run for job in jobs)
        per_flop = np.array([wish.price / 3600 / rates[job.run.model] for job in jobs])
        cost, spent = flops * per_flop, spent * float(np.median(per_flop))
    ranking = rank(
        done,
        table,
        target=wish.target or FARTHER * float(ended["flops"].max() if len(ended) else 1.0),
        cost=cost,
        budget=wish.spend or spent,
        family=f"axis.{campaign.study.family}",
    )
    return ranking, table, cost


def _show(ranking: Ranking, jobs: list[Job], wish: Wish, unit: str) -> None:
    from rich.console import Console
    from rich.table import Table

    for aim in ranking.aims:
        print(describe(aim, ranking.target, unit))
    paid = "dollars" if wish.price is not None else "FLOPs"
    table = Table(box=None, pad_edge=False)
    table.add_column("next")
    table.add_column("run")
    for name in ("parameters", "tokens", paid, "interval before", "after", "cut"):
        table.add_column(name, justify="right")
    for number, prospect in enumerate(ranking.prospects[:SHOWN], 1):
        run = jobs[prospect.row].run
        table.add_row(
            str(number),
            jobs[prospect.row].label,
            short(float(run.model.parameters().without_input_embedding)),
            short(float(run.tokens or 0)),
            scientific(prospect.cost),
            f"±{prospect.before:.2%}",
            f"±{prospect.after:.2%}",
            f"{1 - prospect.after / prospect.before:.1%}",
        )
    if ranking.prospects:
        Console(width=max(110, Console().width)).print(table)
    for line in (*ranking.notes, ranking.verdict):
        print(line)


def _keep(
    folder: Path,
    ranking: Ranking,
    done: pd.DataFrame,
    table: pd.DataFrame,
    cost: np.ndarray[Any, np.dtype[np.float64]],
    jobs: list[Job],
    wish: Wish,
) -> None:
    """`next.json` and `figures/next.png` beside the report."""
    from isoflop.scaling import prospects

    rows = [
        {"label": jobs[p.row].label, "axes": jobs[p.row].axes, "cost": p.cost,
         "interval_before": p.before, "interval_after": p.after}
        for p in ranking.prospects
    ]  # fmt: skip
    unit = "dollars" if wish.price is not None else "FLOPs"
    said = {"target_flops": ranking.target, "unit": unit, "verdict": ranking.verdict, "next": rows}
    put(folder / "next.json", json.dumps(said, indent=1).encode())
    if not ranking.prospects:
        return
    ended = done[done["status"] == "finished"]
    spent = np.concatenate([[0.0], np.cumsum([p.cost for p in ranking.prospects])])
    interval = np.array([ranking.prospects[0].before, *(p.after for p in ranking.prospects)])
    figure = prospects.plane(
        (ended[SIZE].to_numpy(float), ended["tokens"].to_numpy(float)),
        (table[SIZE].to_numpy(float), table["tokens"].to_numpy(float)),
        ranking.gain / cost,
        [p.row for p in ranking.prospects[:SHOWN]],
        spent,
        interval,
        value_label=f"variance of ln L removed per {unit.removesuffix('s')}",
        cost_label=f"{unit} of further runs",
    )
    put(folder / "figures" / "next.png", prospects.png(figure))
