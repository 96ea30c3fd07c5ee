"""Which point should a search try next, which of its runs is not worth its end, what was found?

Optuna chooses and remembers: every trial stands in `optuna.db` in the study's folder, which
optuna-dashboard opens. A trial that a killed driver left running is taken up again, and runs that
finished under other settings are told to a new search of the same folder, as far as they lie in its
space.

    ask -> (identity) -> heard (rungs, prune?) -> tell        one trial
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from isoflop.orchestration.samplers import (
    EXCESS,
    Point,
    Space,
    distributions,
    pruner,
    sampler,
    suggest,
)
from isoflop.space import Distribution, Findings, SamplerName, Settings, Tried

FILE = "optuna.db"
RUN = "run"  # user attribute of a trial: the identity of its run
HELD = "point"  # all axes of a trial, held ones too
TOLD = "told"  # a run that another search had trained
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna warns of what is experimental, in each call; the choice was made here once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One point to try, as its trial in the storage knows it."""

    trial: optuna.Trial
    point: Point

    @property
    def number(self) -> int:
        return int(self.trial.number)


@dataclass
class _Curve:
    """What was heard of a running trial: tokens, value, and the better end of its interval."""

    tokens: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    hopes: list[float] = field(default_factory=list)

    def at(self, rung: float) -> tuple[float, float] | None:
        """Value and hope between two evaluations, straight in ln(tokens); None outside of them."""
        for index in range(1, len(self.tokens)):
            before, after = self.tokens[index - 1], self.tokens[index]
            if before <= rung <= after:
                share = _share(before, rung, after)
                return tuple(  # type: ignore[return-value]
                    series[index - 1] + share * (series[index] - series[index - 1])
                    for series in (self.values, self.hopes)
                )
        return None


def _share(low: float, x: float, high: float) -> float:
    low, x, high = (math.log(max(1.0, value)) for value in (low, x, high))
    return 1.0 if high == low else (x - low) / (high - low)


class Searching:
    """The trials of one search, in its study's folder."""

    def __init__(
        self,
        folder: Path | None,
        name: str,
        space: Space,
        settings: Settings,
        *,
        overrides: Sequence[str] = (),
        longest: int = 1,  # tokens of the longest run, for hyperband's brackets
    ) -> None:
        """`folder`: None keeps the trials in memory. Raises ValueError for a sampler whose package
        is not installed."""
        self.space, self.settings = space, settings
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        up = [aim.towards == "up" for aim in settings.aims]
        with quiet():
            self.study = optuna.create_study(
                storage=None if folder is None else f"sqlite:///{(folder / FILE).absolute()}",
                study_name=f"{name}-{digest(space, settings, overrides)}",
                directions=["maximize" if one else "minimize" for one in up],
                load_if_exists=True,
                pruner=pruner(settings, longest),
            )
            self.study.sampler = sampler(space, settings, len(self.study.get_trials(False)))
            names = [str(aim) for aim in settings.aims]
            self.study.set_metric_names(names)
        self.running: dict[str, optuna.Trial] = {}
        self.curves: dict[str, _Curve] = {}

    @property
    def asked(self) -> int:
        """Trials that this search has chosen itself, whatever became of them."""
        return sum(TOLD not in trial.user_attrs for trial in self.study.get_trials(False))

    def ask(self) -> Asked:
        """The next point. `begin` must be told which run it is."""
        with quiet():
            return self._point_of(self.study.ask())

    def _point_of(self, trial: optuna.Trial) -> Asked:
        """Axes that the storage knows of the trial stay as they are; the others are drawn."""
        point = suggest(trial, self.space)
        trial.set_user_attr(HELD, point)
        return Asked(trial=trial, point=point)

    def begin(self, asked: Asked, run: str) -> None:
        """The point is the run of this identity."""
        asked.trial.set_user_attr(RUN, run)
        self.running[run] = asked.trial

    def drop(self, asked: Asked, why: str) -> None:
        """The point cannot be run."""
        asked.trial.set_user_attr("why", why)
        with quiet():
            self.study.tell(asked.trial, state=TrialState.FAIL)

    def resume(self) -> list[Asked]:
        """Points that were asked for and never told: a driver was killed, or stopped, be it in the
        midst of asking. `begin` must be told again which runs they are."""
        open_trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        with quiet():
            return [
                self._point_of(optuna.Trial(self.study, frozen._trial_id)) for frozen in open_trials
            ]

    def known(self, run: str) -> bool:
        """Has this search tried that run?"""
        return any(t.user_attrs.get(RUN) == run for t in self.study.get_trials(deepcopy=False))

    def tell(self, run: str, status: str, values: Mapping[str, float | None]) -> None:
        """How a run of this search ended, with its metrics (by what `str` says of an aim, and by
        the name in a bound); other runs are ignored.

        A stopped one stays open. One that diverged counts as worse than any other where there is
        one aim; Optuna has no place for it among several.
        """
        trial = self.running.get(run)
        if trial is None or status == "stopped":
            return
        del self.running[run]
        self.curves.pop(run, None)
        lacking = self._lacking(values)
        with quiet():
            if status == "finished" and not lacking:
                trial.set_user_attr(EXCESS, self._excess(values))
                self.study.tell(trial, self._numbers(values))
                return
            ended = status not in ("finished", "failed") and len(self.settings.aims) == 1
            why = f"{lacking[0]} has no value" if status == "finished" else status
            trial.set_user_attr("why", why)
            self.study.tell(trial, state=TrialState.PRUNED if ended else TrialState.FAIL)

    def warm(self, run: str, point: Point, values: Mapping[str, float | None]) -> bool:
        """Tell of a run that finished before; False where it lies outside of the space, has no
        value, or is known."""
        if self._lacking(values) or not inside(self.space, point) or self.known(run):
            return False
        with quiet():
            self.study.add_trial(
                optuna.create_trial(
                    params={axis: point[axis] for axis in distributions(self.space, point)},
                    distributions=distributions(self.space, point),
                    values=self._numbers(values),
                    user_attrs={RUN: run, HELD: point, TOLD: True, EXCESS: self._excess(values)},
                )
            )
        return True

    def heard(self, run: str, tokens: float, value: float, hope: float | None = None) -> str | None:
        """A measurement on the way. Says why the run is not worth its end, if so.

        `hope`: the better end of the value's interval; a run is ended only if that is too bad.
        """
        trial, pruning = self.running.get(run), self.settings.pruning
        if trial is None or pruning is None:
            return None
        curve = self.curves.setdefault(run, _Curve())
        curve.tokens.append(tokens)
        curve.values.append(value)
        curve.hopes.append(value if hope is None else hope)
        for rung in pruning.rungs(int(tokens) + 1):
            found = curve.at(rung)
            if found is None or rung in self._frozen(trial).intermediate_values:
                continue
            trial.report(found[0], rung)
            if self._ends(trial, {rung: found[1]}, exact=hope is None):
                aim = self.settings.aims[0].metric
                return (
                    f"{aim} is {found[0]:.4g} after {rung} tokens "
                    f"({self.settings.pruning.kind if self.settings.pruning else ''})"
                )
        return None

    def _ends(self, trial: optuna.Trial, hopes: dict[int, float], exact: bool) -> bool:
        if exact:
            return bool(trial.should_prune())
        frozen = self.study._storage.get_trial(trial._trial_id)
        better = {**frozen.intermediate_values, **hopes}
        hopeful = optuna.create_trial(
            state=TrialState.RUNNING, intermediate_values=better, user_attrs=frozen.user_attrs
        )
        return bool(self.study.pruner.prune(self.study, hopeful))

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    def _lacking(self, values: Mapping[str, float | None]) -> list[str]:
        """Aims and bounds without a finite value."""
        needed = [str(aim) for aim in self.settings.aims]
        needed += [bound.metric for bound in self.settings.bounds]
        known = {name: value for name, value in values.items() if value is not None}
        return [name for name in needed if not math.isfinite(known.get(name, math.nan))]

    def _numbers(self, values: Mapping[str, float | None]) -> list[float]:
        """A value for each aim."""
        return [float(values[str(aim)] or 0.0) for aim in self.settings.aims]

    def _excess(self, values: Mapping[str, float | None]) -> list[float]:
        return [bound.excess(values[bound.metric] or 0.0) for bound in self.settings.bounds]

    def findings(self) -> Findings:
        """All trials, the best of them, and how much each axis explains of each aim."""
        trials = self.study.get_trials(deepcopy=False)
        tried = tuple(_tried(trial) for trial in trials if RUN in trial.user_attrs)
        ended = any(one.status == "finished" and one.kept for one in tried)
        with quiet():
            best = self.study.best_trials if ended else []
        return Findings(
            space=self.space,
            settings=self.settings,
            tried=tried,
            best=tuple(trial.user_attrs[RUN] for trial in best),
            importance=tuple(self._importance(i) for i in range(len(self.settings.aims))),
        )

    def _importance(self, aim: int) -> dict[str, float]:
        """Of each axis for one aim; empty where too few runs have ended, or all ended alike."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        values = {trial.values[aim] for trial in ended}
        axes = [a for a in ended[0].params if all(a in t.params for t in ended)] if ended else []
        axes = [axis for axis in axes if len({trial.params[axis] for trial in ended}) > 1]
        if len(ended) < ENOUGH or len(values) < 2 or not axes:
            return {}
        with quiet():
            found = get_param_importances(
                self.study,
                evaluator=FanovaImportanceEvaluator(seed=0),
                params=axes,
                target=lambda trial: trial.values[aim],
            )
        return {axis: found[axis] for axis in found}


ENOUGH = 6  # finished trials before an axis is said to matter


def preview(space: Space, settings: Settings, count: int) -> list[Point]:
    """So many points as a search may choose: drawn evenly, nothing is kept."""
    even: SamplerName = "grid" if settings.sampler == "grid" else "random"
    plain = replace(settings, sampler=even, pruning=None)
    searching = Searching(None, "preview", space, plain)
    return [searching.ask().point for _ in range(count)]


def inside(space: Space, point: Mapping[str, Any]) -> bool:
    """Could this search have chosen the point?"""
    if set(space) != set(point):
        return False
    for axis, spec in space.items():
        value = point[axis]
        if not isinstance(spec, Distribution):
            fits = value == spec
        elif spec.holds(point):
            fits = spec.admits(value)
        else:
            fits = value is None
        if not fits:
            return False
    return True


def digest(space: Space, settings: Settings, overrides: Sequence[str] = ()) -> str:
    """Trials can be compared within one space, under one set of aims and bounds."""
    content = {
        "space": {axis: str(spec) for axis, spec in space.items()},
        "aims": [str(aim) for aim in settings.aims],
        "constraints": settings.constraints,
        "overrides": sorted(overrides),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _tried(trial: FrozenTrial) -> Tried:
    ended = trial.state == TrialState.COMPLETE
    return Tried(
        number=trial.number,
        run=trial.user_attrs[RUN],
        point=trial.user_attrs[HELD],
        status=STATES[trial.state],
        values=tuple(trial.values) if ended else (),
        kept=all(excess <= 0 for excess in trial.user_attrs.get(EXCESS, ())),
        why=str(trial.user_attrs.get("why", "")),
    )
