"""Is a prediction written once, before its run, and scored for what it said?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop.scaling import register
from isoflop.scaling.register import Prediction, calibration, described, predict, read, score

World = Callable[..., pd.DataFrame]


@pytest.fixture
def table(world: World) -> pd.DataFrame:
    return world({"a": {}, "b": {"alpha": 0.3}}, budgets=(1e11, 3e11, 1e12, 3e12))


def largest(table: pd.DataFrame) -> pd.DataFrame:
    found: pd.DataFrame = table[table["flops"] == table["flops"].max()]
    return found


def test_the_largest_runs_are_predicted_from_the_smaller(table: pd.DataFrame) -> None:
    ahead = largest(table)
    found, refused = predict("s", table, ahead)
    assert not refused and {p.run for p in found} == set(ahead["run"])
    for p in found:
        assert p.fitted == 21 and p.low < p.loss < p.high
    assert len({p.rows for p in found}) == 2, "the rows of each family"
    scored = score(found, dict(zip(ahead["run"], ahead["loss"], strict=True)))
    said = calibration(scored)
    assert said is not None and said.scored == 14 and said.inside >= 12 and said.error < 0.01
    blind, _ = predict("s", table.assign(loss=table["loss"].where(table["flops"] < 3e12)), ahead)
    assert [p.loss for p in blind] == [p.loss for p in found], "its own loss is never looked at"


def test_the_rows_that_were_fitted_are_in_the_hash(table: pd.DataFrame) -> None:
    ahead = largest(table)
    first = predict("s", table, ahead)[0][0]
    shuffled = predict("s", table.sample(frac=1, random_state=0), ahead)[0][0]
    assert shuffled.rows == first.rows
    changed = table.copy()
    changed.loc[changed.index[0], "loss"] += 1e-6
    assert predict("s", changed, ahead)[0][0].rows != first.rows


def test_what_fixes_no_law_is_refused(table: pd.DataFrame) -> None:
    few = table[(table["flops"] == 1e11) | (table["flops"] == 3e12)]
    few = few[few["axis.arch"] == "a"].iloc[3:]
    found, refused = predict("s", few, largest(table))
    assert not found and set(refused) == {"a", "b"}
    assert "4 runs cannot fix a law of 5 parameters" in str(refused["a"])
    assert "no smaller run has finished" in str(refused["b"])


def test_the_first_word_counts(table: pd.DataFrame, tmp_path: Path) -> None:
    first = predict("s", table, largest(table))[0][0]
    assert register.register(tmp_path, first)
    (kept,) = read(tmp_path)
    assert kept == first and kept.hash == kept.digest
    assert not register.register(tmp_path, replace(first, loss=1.0))
    assert read(tmp_path) == [first]
    assert os.listdir(tmp_path / "predictions") == [f"{first.run}.json"]


def test_a_changed_file_is_named_and_not_scored(table: pd.DataFrame, tmp_path: Path) -> None:
    first, second = predict("s", table, largest(table))[0][:2]
    for prediction in (first, second):
        assert register.register(tmp_path / "s", prediction)
    path = tmp_path / "s" / "predictions" / f"{first.run}.json"
    values = json.loads(path.read_text())
    path.chmod(0o644)
    path.write_text(json.dumps({**values, "loss": values["loss"] * 1.01}))
    runs = tmp_path / "s" / "runs"
    for run, loss in ((first.run, first.loss), (second.run, second.high + 0.1)):
        (runs / run).mkdir(parents=True)
        (runs / run / "result.json").write_text(json.dumps({"status": "finished", "loss": loss}))
    scored = register.storage_scores(tmp_path)
    said = calibration(scored)
    assert said is not None and (said.scored, said.inside, said.altered, said.open) == (1, 0, 1, 0)
    assert said.chance == pytest.approx(0.05)
    assert "0 of 1 pre-registered" in described(said) and "1 were changed" in described(said)
    rows = register.frame(scored).set_index("run")
    assert rows.loc[second.run, "error_absolute"] == pytest.approx(second.high + 0.1 - second.loss)
    assert not rows.loc[first.run, "genuine"]
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no prediction"):
        read(tmp_path / "s")


def test_a_run_without_a_loss_stays_open(table: pd.DataFrame) -> None:
    first = predict("s", table, largest(table))[0][0]
    said = calibration(score([first], {}))
    assert said is not None and (said.scored, said.open) == (0, 1)
    assert "1 await their run" in described(said)
    assert calibration([]) is None


@pytest.mark.parametrize("worlds", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_intervals_hold_about_as_often_as_they_say(world: World, worlds: int) -> None:
    """Over worlds of three budgets that predict a fourth, three times as large."""
    losses: dict[str, float] = {}
    said: list[Prediction] = []
    for seed in range(worlds):
        made = world({"a": {}}, budgets=(1e11, 3e11, 9e11, 2.7e12), seed=seed, sizes=5)
        made = made.assign(run=[f"{seed}-{run}" for run in made["run"]])
        said += predict("s", made, largest(made))[0]
        losses |= dict(zip(made["run"], made["loss"], strict=True))
    found = calibration(score(said, losses))
    assert found is not None and found.scored == 5 * worlds
    assert found.inside / found.scored > 0.9
    assert abs(found.bias) < 0.002
    widths = np.array([np.log(p.high / p.low) for p in said])
    assert np.median(widths) < 0.06, "and are not wide for nothing"
