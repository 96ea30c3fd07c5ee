"""What is a study? A question, the axes that answer it, and one function from axes to a run.

    study = Study(name="scaling-grid", run=run, points=grid(arch=[...], width=[...], flops=[...]))

    if __name__ == "__main__":
        main(study)

`main` gives every study the same command line. A study file does no I/O when imported, trains
nothing itself, and states every decision that a run depends on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.run import Run, override, short

if TYPE_CHECKING:
    from isoflop.campaign import Campaign

Point = dict[str, Any]  # axis name to value


@dataclass(frozen=True)
class Grid:
    """Points of a study. Add two grids over the same axes to give each its own values."""

    points: tuple[Point, ...]

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Every axis with its different values, in the order they first appear."""
        return {
            name: tuple(dict.fromkeys(point[name] for point in self.points))
            for name in self.points[0]
        }

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def __add__(self, other: Grid) -> Grid:
        if set(self.axes) != set(other.axes):
            raise ValueError(
                f"grids over different axes cannot be added: {', '.join(self.axes)} "
                f"and {', '.join(other.axes)}"
            )
        return Grid(self.points + other.points)


def grid(**axes: Sequence[Any]) -> Grid:
    """Every combination of the axes' values: `grid(width=[64, 128], seed=range(3))`."""
    if not axes:
        raise ValueError("a grid needs at least one axis")
    for name, values in axes.items():
        if len(values) == 0:
            raise ValueError(f"axis {name!r} has no values")
    combinations = itertools.product(*axes.values())
    return Grid(tuple(dict(zip(axes, values, strict=True)) for values in combinations))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named question. `family` is the axis that tells the compared models apart (each gets a law
    of its own), `budget` the axis of equal compute (each value gets an IsoFLOP curve).
    """

    name: str
    run: Callable[..., Run]
    points: Grid
    objective: str = "val/loss"
    family: str = "arch"
    budget: str = "flops"

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise ValueError(
                f"a study's name is {self.name!r}; it must be of letters, digits, - and _"
            )
        for axis in (self.family, self.budget):
            if axis not in self.points.axes:
                known = ", ".join(self.points.axes)
                raise ValueError(f"{axis!r} is not an axis of study {self.name!r}; it has {known}")

    @property
    def file(self) -> Path:
        """The study file, where results lie beside by default."""
        return Path(self.run.__code__.co_filename).resolve()

    @property
    def question(self) -> str:
        """The first line of the study file's docstring."""
        text = sys.modules[self.run.__module__].__doc__ or self.name
        return text.strip().splitlines()[0]

    def label(self, point: Point) -> str:
        """What people call a point: "llama width=32 flops=1e11"; axes of one value are left out."""
        varied = {name for name, values in self.points.axes.items() if len(values) > 1}
        return " ".join(
            value if isinstance(value, str) else f"{name}={short(value)}"
            for name, value in point.items()
            if name in varied or len(varied) == 0
        )


def select(study: Study, only: Sequence[str]) -> list[Point]:
    """The points that agree with every AXIS=VALUE. Raises ValueError that names what there is."""
    points = list(study.points)
    wanted: dict[str, set[str]] = {}
    for choice in only:
        axis, equals, value = choice.partition("=")
        if not equals or axis not in study.points.axes:
            known = ", ".join(study.points.axes)
            raise ValueError(
                f"--only {choice}: write AXIS=VALUE with an axis of this study: {known}"
            )
        values = study.points.axes[axis]
        match = [str(v) for v in values if _same(value, v)]
        if not match:
            known = ", ".join(short(v) for v in values)
            raise ValueError(f"--only {choice}: {axis} has the values {known}")
        wanted.setdefault(axis, set()).update(match)
    return [p for p in points if all(str(p[axis]) in allowed for axis, allowed in wanted.items())]


def _same(text: str, value: Any) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    return text == str(value)


def build(study: Study, point: Point, overrides: Sequence[str]) -> Run:
    """The run of one point, with every PATH=VALUE set. Raises ValueError naming the bad one."""
    run = study.run(**point)
    for choice in overrides:
        path, equals, value = choice.partition("=")
        if not equals:
            raise ValueError(f"--set {choice}: write PATH=VALUE, as in optimizer.lr=1e-3")
        run = override(run, path, value)
    return run


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """The command line of a study. Exits with 2 and one sentence on wrong input, 1 if runs failed,
    130 if it was stopped."""
    options = parser(study).parse_args(arguments)
    try:
        sys.exit(_dispatch(study, options))
    except UserError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class UserError(ValueError):
    """Wrong input, said in one sentence before anything starts."""


@contextmanager
def user_input() -> Iterator[None]:
    """What goes wrong in this block is the input's fault; elsewhere a ValueError is a bug and shows
    its traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _dispatch(study: Study, options: argparse.Namespace) -> int:
    from isoflop.campaign import Campaign, Machine

    with user_input():
        chosen = select(study, options.only)
    machine = Machine(
        storage=Path(options.storage or study.file.parent / "results"),
        tracking=options.tracking,
        address=options.address,
        workers=options.workers,
        at_once=options.at_once,
    )
    campaign = Campaign.prepare(study, machine, chosen, options.set, quiet=options.print_config)
    return _act(campaign, options)


def _act(campaign: Campaign, options: argparse.Namespace) -> int:
    if options.print_config:
        runs = {job.run.identity: job.run.as_json() for job in campaign.chosen}
        print(json.dumps(runs, indent=2))
        return 0
    if options.plan:
        campaign.plan()
        return 0
    if options.smoke:
        campaign.smoke()
        return 0
    if options.report:
        campaign.report()
        return 0
    return campaign.go()


def parser(study: Study) -> argparse.ArgumentParser:
    """The options every study has, with this study's axes at the end of the help."""
    axes = "\n".join(
        f"  {name:<8} {', '.join(short(v) for v in values)}"
        for name, values in study.points.axes.items()
    )
    command = f"python {study.file.parent.name}/{study.file.name}"
    text = argparse.ArgumentParser(
        prog=command,
        usage=f"{command} [what to do] [which points] [where]",
        description=study.question,
        epilog=f"axes:\n{axes}\n  {len(study.points)} points",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = text.add_argument_group("what to do (default: train every point that has no result yet)")
    modes = what.add_mutually_exclusive_group()
    modes.add_argument(
        "--plan", action="store_true", help="print runs, tokens, FLOPs, time; start nothing"
    )
    modes.add_argument("--print-config", action="store_true", help="print every run as JSON")
    modes.add_argument(
        "--smoke", action="store_true", help="two steps of the smallest point, in seconds"
    )
    modes.add_argument(
        "--report", action="store_true", help="rebuild the report from what has finished"
    )
    which = text.add_argument_group("which points")
    which.add_argument(
        "--only", action="append", default=[], metavar="AXIS=VALUE",
        help="keep the points with this value; repeat for more",
    )  # fmt: skip
    which.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE",
        help="change a field of every run: optimizer.lr=1e-3, data=FOLDER, data.tokenizer=bytes",
    )  # fmt: skip
    where = text.add_argument_group("where (never part of a run's identity)")
    where.add_argument(
        "--address", metavar="ADDR", help="Ray cluster to join (default: a local one)"
    )
    where.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="processes per run; more than 1 trains with Ray Train (default: 1)",
    )  # fmt: skip
    where.add_argument(
        "--at-once", type=int, metavar="N", help="runs side by side (default: all cores or GPUs)"
    )
    where.add_argument(
        "--tracking",
        metavar="URI",
        help="MLflow server or database (default: SQLite in the storage)",
    )
    where.add_argument(
        "--storage",
        metavar="DIR",
        help="results and prepared text (default: results/ by the study)",
    )
    where.add_argument("--debug", action="store_true", help="tracebacks instead of one-line errors")
    return text
