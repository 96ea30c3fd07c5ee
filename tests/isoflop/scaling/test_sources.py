"""Are a study's folder, a long table and an experiment read as the runs that they are?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop import cli
from isoflop.scaling.columns import Columns
from isoflop.scaling.sources import load

TRUTH = 0.30 / 0.66


def long_table(archs: tuple[str, ...] = ("gpt",)) -> pd.DataFrame:
    """Loss curves of runs with a constant learning rate."""
    parts = []
    for arch in archs:
        for index, size in enumerate(np.geomspace(1e7, 2e9, 10)):
            tokens = np.geomspace(2.0, 300.0, 60) * size
            loss = 1.8 + 300 * size**-0.36 + 400 * tokens**-0.30
            columns = {"run": f"{arch}{index}", "axis.arch": arch, "tokens": tokens, "loss": loss}
            rows = pd.DataFrame({**columns, "params_without_input_embedding": size})
            parts.append(rows.assign(flops=6.5 * size * tokens, learning_rate=1e-3))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A results folder as a study leaves it: the run table, and a history per run."""
    table, folder = long_table(("gpt", "llama")), tmp_path / "results" / "grid"
    ends = table.groupby("run").tail(1).assign(status="finished")
    for name, rows in table.groupby("run"):
        (folder / "runs" / str(name)).mkdir(parents=True)
        # As the loop logs: an evaluation before the first step, rates with training losses alone.
        steps = [{"step": 0, "tokens": 0, "flops": 0.0, "val/loss": 9.0}]
        for k, r in enumerate(rows.itertuples()):
            place = {"step": k + 1, "tokens": r.tokens, "flops": r.flops}
            trained = {"train/loss": r.loss + 1, "learning_rate": 1e-3}
            steps.append({**place, **({"val/loss": r.loss} if k % 2 else trained)})
        (folder / "runs" / str(name) / "history.json").write_text(json.dumps(steps))
    ends.to_parquet(folder / "runs.parquet")
    return folder


def objects(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", *words, "--resamples", "20", "--form", "chinchilla", "--json"])
    assert end.value.code == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_study_folder_gives_laws_and_the_envelope(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = objects(capsys, str(study))
    assert [(o["approach"], o["family"]) for o in found] == [
        (3, "gpt"), (3, "llama"), (1, "gpt"), (1, "llama"),
    ]  # fmt: skip
    assert found[0]["refusal"]["reason"] == "one line only"  # type: ignore[index]
    one = found[2]
    assert one["a"]["value"] == pytest.approx(TRUTH, abs=0.03)  # type: ignore[index]
    assert one["caution"] is None  # the rates are known, and constant
    assert objects(capsys, str(study.parent))[0]["family"] == "gpt"  # the folder of one study


def test_the_report_draws_what_was_found(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects(capsys, str(study), "--out", str(tmp_path / "out"))
    assert (tmp_path / "out/figures/envelope.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/report.html").read_text().count("<img ") == 1


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no runs\.parquet; run the study"):
        load(str(tmp_path), Columns())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        long_table().to_parquet(tmp_path / name / "runs.parquet")
    with pytest.raises(ValueError, match="name one of a, b in it"):
        load(str(tmp_path), Columns())


def test_a_torn_history_is_left_out(study: Path) -> None:
    (study / "runs" / "gpt0" / "history.json").write_text("[{")
    found = load(str(study), Columns())
    assert found.history is not None and (found.history["tokens"] > 0).all()
    assert "gpt0" not in set(found.history["run"])
    assert "gpt1" in set(found.history["run"])


def test_a_long_table_is_its_runs_ends_and_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "curves.csv"
    begin = long_table().groupby("run").head(1).assign(tokens=0.0, flops=0.0, loss=9.0)
    pd.concat([begin, long_table()]).sample(frac=1, random_state=0).to_csv(path, index=False)
    words = (str(path), "--n", "params_without_input_embedding", "--c", "flops", "--curves")
    law, one = objects(capsys, *words)
    assert law["refusal"]["reason"] == "one line only"  # type: ignore[index]
    assert one["a"]["value"] == pytest.approx(TRUTH, abs=0.03)  # type: ignore[index]
    assert one["caution"]["reason"] == "mid-schedule losses"  # type: ignore[index]
    objects(capsys, *words, "--rate", "learning_rate")


def test_curves_need_the_name_of_their_run(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    long_table().drop(columns="run").to_csv(path, index=False)
    with pytest.raises(ValueError, match="name it with --run"):
        load(str(path), Columns(), long=True)
    with pytest.raises(ValueError, match="--run: there is no column 'id'"):
        load(str(path), Columns(run="id"), long=True)


@pytest.mark.parametrize("where", ["mlflow:", "mlflow:sqlite:///x.db", "mlflow:#grid"])
def test_an_experiment_needs_address_and_name(where: str) -> None:
    with pytest.raises(ValueError, match="must be mlflow:ADDRESS#EXPERIMENT"):
        load(where, Columns())


def test_an_experiment_is_read_by_whoever_can() -> None:
    asked = []

    def reader(address: str, name: str) -> tuple[pd.DataFrame, dict[str, list[dict[str, float]]]]:
        asked.append((address, name))
        return long_table().groupby("run").tail(1), {}

    found = load("mlflow:sqlite:////tmp/a#b.db#grid", Columns(), experiment=reader)
    assert found.history is None
    assert asked == [("sqlite:////tmp/a#b.db", "grid")] and found.columns.c == "flops"
