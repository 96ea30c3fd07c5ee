"""Does `isoflop fit` answer for hyper-parameters, tasks, metrics, seeds and budgets as well?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop import cli


def fit(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", *words, "--resamples", "30", "--no-report"])
    return int(str(end.value.code))


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def table(seeds: int = 1) -> pd.DataFrame:
    """Five budgets of six sizes, each with `seeds` seeds; an accuracy and a metric of each run."""
    random, rows = np.random.default_rng(0), []
    for flops in np.geomspace(1e18, 1e22, 5):
        for offset in np.linspace(-1.5, 1.5, 6):
            for _ in range(seeds):
                size = np.sqrt(flops / 120) * np.exp(offset)
                tokens = flops / (6 * size)
                loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.3
                loss *= np.exp(0.004 * random.normal())
                accuracy = 0.2 + 2.0 * np.exp(-0.6 * loss) + 0.005 * random.normal()
                novelty = 0.4 + 0.5 * (flops / 1e18) ** -0.1 + 0.004 * random.normal()
                rows.append([size, tokens, loss, accuracy, novelty, "x"])
    return pd.DataFrame(rows, columns=["N", "D", "loss", "accuracy", "novelty", "note"])


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    table().to_csv(path, index=False)
    return path


def test_budgets_give_approach_two(csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(str(csv), "--form", "chinchilla", "--json") == 0
    law, two = objects(capsys)
    assert law["approach"] == 3 and two["approach"] == 2 and len(two["minima"]) == 5
    assert two["a"]["interval"][0] <= 0.3 / 0.64 <= two["a"]["interval"][1]
    assert {row["choice"] for row in law["sensitivity"]} == {"drop", "delta", "objective"}
    wide, plain = law["prediction"]["calibrated_interval"], law["prediction"]["interval"]
    assert wide[0] <= plain[0] < law["prediction"]["value"] < plain[1] <= wide[1]


def test_tasks_and_metrics_are_added(csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--task", "accuracy", "--metric", "novelty", "--floor", "0.4", "--form", "chinchilla")
    assert fit(str(csv), *words, "--json") == 0
    task, metric = objects(capsys)[2:]
    assert task["law"] == "task" and task["held_out"]["error"] < 0.02
    assert task["held_out"]["error"] < task["held_out"]["naive"] / 5
    assert metric["law"] == "metric" and metric["floor"] == 0.4
    truth = 0.4 + 0.5 * 1e4**-0.1
    assert metric["prediction"]["value"] == pytest.approx(truth, abs=0.01)
    out = csv.parent / "report"
    more = ("--against", "loss", "--task-curve", "sigmoid", "--out", str(out))
    assert fit(str(csv), *words, *more) == 0
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert drawn == {"chinchilla.png", "accuracy-all-runs.png", "novelty-all-runs.png"}
    shown = capsys.readouterr().out
    assert "accuracy, all runs: compute to loss" in shown and "against loss" in shown


def test_repeats_tell_the_seed_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.csv"
    table(seeds=4).to_csv(path, index=False)
    assert fit(str(path), "--repeats", "--form", "chinchilla", "--json") == 0
    noise = objects(capsys)[0]["seed_noise"]
    assert noise["sd_of_log_loss"]["value"] == pytest.approx(0.004, rel=0.25)
    assert noise["cells"] == 30 and 2 * 0.004 < noise["detectable"] < 6 * 0.004
    table().to_csv(path, index=False)
    assert fit(str(path), "--repeats", "--form", "chinchilla") == 0
    assert "repeat these runs with 2 more seeds each: N " in capsys.readouterr().out


def sweep() -> pd.DataFrame:
    random, rows = np.random.default_rng(1), []
    for size in (1e7, 4e7, 1.6e8):
        for tokens in (1e9, 4e9):
            for k in range(-3, 4):
                lr = 2**k * 0.3 * size**-0.3
                loss = 3 * np.exp(0.01 * (k * np.log(2)) ** 2 + 0.0005 * random.normal())
                rows.append({"N": size, "D": tokens, "lr": lr, "loss": loss})
    return pd.DataFrame(rows)


def test_hyper_parameters_have_laws_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "lr.csv", tmp_path / "report"
    sweep().to_csv(path, index=False)
    assert fit(str(path), "--hyper", "lr", "--json", "--out", str(out)) == 0
    (law,) = objects(capsys)
    low, high = law["exponents"]["N"]["interval"]
    assert low <= -0.3 <= high and len(law["cells"]) == 6
    assert json.loads((out / "laws.json").read_text())[0] == law
    page = (out / "report.html").read_text()
    assert "best lr" in page and page.count("<img ") == 1
    assert (out / "figures" / "best-lr.png").read_bytes().startswith(b"\x89PNG")
    cut = sweep()
    cut[cut["lr"] > 0.5 * cut["N"] ** -0.3].to_csv(path, index=False)
    assert fit(str(path), "--hyper", "lr") == 1
    shown = capsys.readouterr().out
    assert "no law: 0 of 6 cells have an optimum of lr" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "bleu"), "there is no column 'bleu'"),
        (("--metric", "bleu"), "there is no column 'bleu'"),
        (("--hyper", "lr"), "there is no column 'lr'"),
        (("--task", "accuracy", "--task-curve", "line"), "--task-curve is 'line'"),
        (("--task", "accuracy", "--chance", "2"), "--chance is 2.0"),
        (("--metric", "novelty", "--against", "time"), "--against is 'time'"),
        (("--curves",), "name it with --run"),
        (("--planned", "plan"), "--planned: there is no column 'plan'"),
        (("--run", "id"), "--run: there is no column 'id'"),
    ],
)
def test_wrong_questions_give_one_clear_sentence(
    csv: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert fit(str(csv), "--form", "tied", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
