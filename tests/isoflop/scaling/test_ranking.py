"""Is the order of what to run next right, said in words, and does it end where nothing is left?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling.prospects import design, plane, png
from isoflop.scaling.ranking import LEAST, SIZE, Ranking, describe, rank

World = Callable[..., pd.DataFrame]
BUDGETS = (1e11, 3e11, 1e12, 3e12)


def split(table: pd.DataFrame, most: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What has been done, and what has not: candidates have no loss."""
    small = table["flops"] <= most
    return table[small], table[~small].assign(loss=np.nan, status="missing")


def ranked(done: pd.DataFrame, left: pd.DataFrame, **changes: float) -> Ranking:
    cost = left["flops"].to_numpy(float)
    options = {"target": 1e13, "budget": float(cost.sum()), **changes}
    return rank(done, left, cost=cost, **options)  # type: ignore[arg-type]


def test_families_share_the_money(world: World) -> None:
    table = world({"a": {}, "b": {"alpha": 0.28}}, budgets=BUDGETS)
    done, left = split(table, 3e11)
    found = ranked(done, left)
    assert {aim.family for aim in found.aims} == {"a", "b"}
    assert {p.family for p in found.prospects} == {"a", "b"}
    assert all(p.family == left["axis.arch"].iloc[p.row] for p in found.prospects)
    for prospect in found.prospects:
        assert prospect.before - prospect.after >= LEAST * prospect.before
    assert f"of {len(left)} candidates are worth their cost" in found.verdict
    assert found.gain.shape == (len(left),) and (found.gain > 0).all()
    for aim in found.aims:
        assert aim.runs == 14 and not aim.by_rule
        assert f"{aim.family}: 14 runs predict" in describe(aim, found.target)


def test_the_family_that_is_known_less_comes_first(world: World) -> None:
    done, left = split(world({"a": {}, "b": {}}, budgets=BUDGETS), 3e11)
    few = pd.concat([done[done["axis.arch"] == "a"], done[done["axis.arch"] == "b"].iloc[:3]])
    assert ranked(few, left).prospects[0].family == "b"


def test_what_is_expected_is_near_the_truth(world: World) -> None:
    table = world({"a": {}}, budgets=(1e10, 1e11, 1e12, 1e13), noise=0.002)
    done, left = split(table, 1e12)
    (aim,) = ranked(done, left, target=1e13).aims
    best = table[table["flops"] == 1e13]["loss"].min()
    assert abs(np.log(aim.loss / best)) < 2 * np.hypot(aim.deviation, aim.noise)
    assert aim.size * aim.tokens * 6 == pytest.approx(1e13, rel=1e-6)


def test_it_ends(world: World) -> None:
    """Nothing can be paid for; or what is left is too far from the target to tell anything."""
    done, left = split(world({"a": {}}, budgets=BUDGETS), 1e12)
    poor = ranked(done, left, budget=1e9)
    assert not poor.prospects and poor.verdict == "stop: no candidate can be paid for"
    tiny = world({"a": {}}, budgets=(1e7,), sizes=4, width=0.5)
    far = ranked(done, tiny, target=1e12)
    assert not far.prospects and far.verdict.startswith("stop: no candidate that can be paid for")


def test_a_family_without_a_run_is_said(world: World) -> None:
    done, left = split(world({"a": {}, "b": {}}, budgets=BUDGETS), 3e11)
    only = ranked(done[done["axis.arch"] == "a"], left)
    assert only.notes == ("no run of b has finished: run one of its points first",)
    assert {p.family for p in only.prospects} == {"a"}
    assert np.isnan(only.gain[(left["axis.arch"] == "b").to_numpy()]).all()
    nothing = ranked(done[done["axis.arch"] == "a"], left[left["axis.arch"] == "b"])
    assert not nothing.prospects and nothing.verdict == "nothing to run"


def test_wrong_input(world: World) -> None:
    done, left = split(world({"a": {}}, budgets=BUDGETS), 3e11)
    with pytest.raises(ValueError, match="no run has finished"):
        ranked(done.assign(status="failed"), left)
    with pytest.raises(ValueError, match="the target is -1"):
        ranked(done, left, target=-1.0)


def test_the_pictures_are_drawn(world: World) -> None:
    done, left = split(world({"a": {}}, budgets=BUDGETS), 3e11)
    found = ranked(done, left)
    n, d = left[SIZE].to_numpy(), left["tokens"].to_numpy()
    spent = np.concatenate([[0.0], np.cumsum([p.cost for p in found.prospects])])
    interval = np.array([found.prospects[0].before, *(p.after for p in found.prospects)])
    figure = plane(
        (done[SIZE].to_numpy(), done["tokens"].to_numpy()), (n, d), found.gain,
        [p.row for p in found.prospects], spent, interval, value_label="gain", cost_label="FLOPs",
    )  # fmt: skip
    assert png(figure).startswith(b"\x89PNG")
    fits = np.arange(len(n)) % 2 == 0
    drawn = design(n, d, left["flops"].to_numpy(), (n[:2], d[:2]), fits)
    (ax,) = drawn.axes
    assert len(ax.lines) == 3, "a line per budget, and the optimum"
    assert png(drawn).startswith(b"\x89PNG")
