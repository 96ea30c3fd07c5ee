"""How is a question asked? A study: axes, their points, and a function from a point to a run.

These are values; what a study's command does with them is in `study` and `campaign`.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from isoflop.run import Run, override, short
from isoflop.space import Distribution, Settings, check


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


OBJECTIVES = ("val/loss", "val/bits_per_byte")  # what families are judged by

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

    @property
    def varied(self) -> set[str]:
        """The axes that tell points apart."""
        return {name for name, values in self.axes.items() if len(values) > 1} or set(self.axes)

    def described(self) -> list[str]:
        """What the points are, in lines of a help text."""
        axes = [
            f"  {name:<8} {', '.join(short(v) for v in values)}"
            for name, values in self.axes.items()
        ]
        return [*axes, f"  {len(self)} points"]

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


@dataclass(frozen=True)
class Search(Grid):
    """Points that are chosen one after another, by what was found at the earlier ones. `points` are
    those chosen so far, whatever the settings were then."""

    points: tuple[Point, ...] = ()
    space: Mapping[str, Any] = field(default_factory=dict)  # axis to distribution, or to its value
    settings: Settings = field(default_factory=Settings)

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """As of a grid, with the values seen so far."""
        found: dict[str, tuple[Any, ...]] = {}
        for name, spec in self.space.items():
            held = () if isinstance(spec, Distribution) else (spec,)
            found[name] = tuple(dict.fromkeys([*held, *(point[name] for point in self.points)]))
        return found

    @property
    def varied(self) -> set[str]:
        return {name for name, spec in self.space.items() if isinstance(spec, Distribution)}

    def described(self) -> list[str]:
        settings = self.settings
        axes = [f"  {name:<8} {spec}" for name, spec in self.space.items()]
        aims = "; ".join(
            f"{verb} {', '.join(names)}"
            for verb, names in (("minimise", settings.minimise), ("maximise", settings.maximise),
                                ("near held-out text", settings.near))
            if names
        )  # fmt: skip
        bounds = f" with {', '.join(settings.constraints)}" if settings.constraints else ""
        ends = f", runs ended early by {settings.pruning.kind}" if settings.pruning else ""
        return [*axes, f"  {settings.trials} trials by {settings.sampler}: {aims}{bounds}{ends}"]

    def by(self, sampler: str | None = None, **settings: Any) -> Search:
        """The same space, searched so; see `isoflop.space.Settings`. Raises ValueError."""
        if sampler is not None:
            settings["sampler"] = sampler
        changed = replace(self, settings=replace(self.settings, **settings))
        check(changed.space, changed.settings)
        return changed


def search(**axes: Any) -> Search:
    """Points drawn from distributions: `search(lr=log(1e-4, 1e-2), arch="llama")`.

    Says `.by(sampler, trials=..., minimise=(...), ...)` how they are chosen. Raises ValueError.
    """
    check(axes, Settings())
    return Search(space=axes)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named question. `family` is the axis that tells the compared models apart (each gets a law
    of its own), `budget` the axis of equal compute (each value gets an IsoFLOP curve).
    `objective`: what the report judges by; bits per byte where tokenizers differ.
    """

    name: str
    run: Callable[..., Run]
    points: Grid
    objective: str = "val/loss"
    family: str = "arch"
    budget: str = "flops"
    source: Path | None = None  # of a run that is written in a file: that file

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"the objective of study {self.name!r} is {self.objective!r}; "
                f"it must be one of {', '.join(OBJECTIVES)}"
            )
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
        if self.source is not None:
            return self.source
        return Path(self.run.__code__.co_filename).resolve()

    @property
    def question(self) -> str:
        """The first line of the study file's docstring."""
        if self.source is not None:
            return f"What does the run of {self.source.name} come to?"
        text = sys.modules[self.run.__module__].__doc__ or self.name
        return text.strip().splitlines()[0]

    def label(self, point: Point) -> str:
        """What people call a point: "llama width=32 flops=1e11"; axes of one value are left out."""
        varied = self.points.varied
        return " ".join(
            value if isinstance(value, str) else f"{name}={short(value)}"
            for name, value in point.items()
            if name in varied and value is not None
        )


ADDED = "points.json"  # in a study's folder: points that `--next --go` took up


def added(folder: Path) -> list[Point]:
    """The points that became part of a study after its file was written. Raises ValueError."""
    try:
        points = json.loads((folder / ADDED).read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"{folder / ADDED} cannot be read: {error}") from None
    return [dict(point) for point in points]


def extended(study: Study, storage: Path) -> Study:
    """The study with what was added to it. Points of axes that it no longer has are refused."""
    folder = storage / study.name
    more = [point for point in added(folder) if point not in list(study.points)]
    if any(set(point) != set(study.points.axes) for point in more):
        raise ValueError(
            f"{folder / ADDED} holds points of other axes than {', '.join(study.points.axes)}; "
            "move it away if the study has changed"
        )
    points = (*study.points, *more)
    return replace(study, points=replace(study.points, points=points)) if more else study


def select(study: Study, only: Sequence[str]) -> list[Point]:
    """The points that agree with every AXIS=VALUE. Raises ValueError that names what there is."""
    points = list(study.points)
    if only and isinstance(study.points, Search):
        raise ValueError(f"--only {only[0]}: a search chooses its points by itself")
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
