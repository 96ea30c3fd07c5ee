"""What does Optuna call a search's space, its sampler and its pruning?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from isoflop.space import Choice, Distribution, Numbers, Settings

EXCESS = "constraints"  # user attribute of a trial: how far it is beyond each bound

Space = Mapping[str, Any]
Point = dict[str, Any]


def suggest(trial: optuna.Trial, space: Space) -> Point:
    point: Point = {k: v for k, v in space.items() if not isinstance(v, Distribution)}
    for axis, spec in space.items():
        if not isinstance(spec, Distribution):
            continue
        if not spec.holds(point):
            point[axis] = None
        elif isinstance(spec, Choice):
            point[axis] = trial.suggest_categorical(axis, spec.options)
        elif isinstance(spec, Numbers) and spec.whole:
            least, most, step = int(spec.low), int(spec.high), int(spec.step or 1)
            point[axis] = trial.suggest_int(axis, least, most, step=step, log=spec.log)
        else:
            assert isinstance(spec, Numbers)
            low, high = float(spec.low), float(spec.high)
            point[axis] = trial.suggest_float(axis, low, high, step=spec.step, log=spec.log)
    return {axis: point[axis] for axis in space}


def distributions(
    space: Space, point: Mapping[str, Any]
) -> dict[str, optuna.distributions.BaseDistribution]:
    """Optuna's own, of the axes that the point has."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for axis, spec in space.items():
        if not isinstance(spec, Distribution) or not spec.holds(point):
            continue
        if isinstance(spec, Choice):
            found[axis] = optuna.distributions.CategoricalDistribution(spec.options)
        elif isinstance(spec, Numbers) and spec.whole:
            found[axis] = optuna.distributions.IntDistribution(
                int(spec.low), int(spec.high), log=spec.log, step=int(spec.step or 1)
            )
        else:
            assert isinstance(spec, Numbers)
            found[axis] = optuna.distributions.FloatDistribution(
                spec.low, spec.high, log=spec.log, step=spec.step
            )
    return found


def sampler(space: Space, settings: Settings, done: int) -> optuna.samplers.BaseSampler:
    """Seeded by how far the search is, so that one that goes on does not draw the same again."""
    samplers = optuna.samplers
    seed, first = settings.seed + done, max(4, min(10, settings.trials // 3))
    bounds: Callable[[FrozenTrial], Sequence[float]] | None = (
        (lambda trial: trial.user_attrs.get(EXCESS, ())) if settings.constraints else None
    )
    match settings.sampler:
        case "tpe":
            # Trials under way count as bad ones: else those asked for meanwhile lie beside them.
            return samplers.TPESampler(
                seed=seed, n_startup_trials=first, constraints_func=bounds, constant_liar=True
            )
        case "gp":
            return samplers.GPSampler(
                seed=seed, n_startup_trials=first, constraints_func=bounds,
                warn_independent_sampling=False,
            )  # fmt: skip
        case "cmaes":
            _need("cmaes")
            return samplers.CmaEsSampler(
                seed=seed, n_startup_trials=first, warn_independent_sampling=False
            )
        case "nsga2":
            population = max(4, min(50, settings.trials // 4))
            return samplers.NSGAIISampler(
                population_size=population, seed=seed, constraints_func=bounds
            )
        case "qmc":  # its place in the sequence stands in the storage
            return samplers.QMCSampler(
                scramble=True, seed=settings.seed, warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            )  # fmt: skip
        case "grid":
            free = {k: list(v.values or ()) for k, v in space.items()
                    if isinstance(v, Distribution)}  # fmt: skip
            return _Grid(free, seed=settings.seed)
        case "random":
            return samplers.RandomSampler(seed=seed)


class _Grid(optuna.samplers.GridSampler):  # type: ignore[misc]
    """Optuna's, which stops a loop after the last combination that ask and tell do not have
    (github.com/optuna/optuna/issues/5141); `Settings` end a search here."""

    def after_trial(self, *args: Any) -> None: ...


def _need(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ValueError(
            f"the sampler needs the package {package}: pip install {package}, or choose tpe or gp"
        )


def pruner(settings: Settings, longest: int) -> optuna.pruners.BasePruner:
    pruning, pruners = settings.pruning, optuna.pruners
    if pruning is None:
        return pruners.NopPruner()
    if pruning.kind == "median":
        return pruners.MedianPruner(n_startup_trials=pruning.spared)
    options = {"min_resource": pruning.first, "reduction_factor": pruning.factor}
    if pruning.kind == "asha":
        return pruners.SuccessiveHalvingPruner(**options)
    return pruners.HyperbandPruner(**options, max_resource=max(longest, pruning.first))
