"""Does `isoflop fit` read anybody's table, and say clearly what it cannot read?"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop import cli

ROOT = Path(__file__).parents[2]
TRUTH = {"E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.3}
Csv = Callable[..., Path]


@pytest.fixture
def csv(tmp_path: Path) -> Csv:
    def write(noise: float = 0.0, **changes: Any) -> Path:
        random = np.random.default_rng(3)
        size = np.repeat([1e7, 3e7, 1e8, 3e8, 1e9], 4)
        tokens = np.tile([2e9, 8e9, 3e10, 1e11], 5)
        loss = 1.8 + 400 * size**-0.34 + 900 * tokens**-0.3
        loss *= np.exp(noise * random.normal(size=20))
        frame = pd.DataFrame({"params": size, "tokens": tokens, "loss": loss}).assign(**changes)
        path = tmp_path / "runs.csv"
        frame.to_csv(path, index=False)
        return path

    return write


def fit(path: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", str(path), "--resamples", "20", "--no-report", *words])
    return int(str(end.value.code))


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_gives_the_truth_back(csv: Csv, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(csv(), "--json", "--target", "1e22") == 0
    found = {law["form"]: law for law in objects(capsys)}
    assert list(found) == ["chinchilla", "tied", "kaplan", "gadre"]
    law = found["chinchilla"]
    for name, value in TRUTH.items():
        assert law[name] == pytest.approx(value, rel=1e-3)
        low, high = law["intervals"][name]
        assert low <= law[name] <= high and law["standard_errors"][name] >= 0
    best = law["optimum"]
    assert best["C"] == 1e22 and 6 * best["N"] * best["D"] == pytest.approx(1e22)
    size = np.geomspace(best["N"] / 10, best["N"] * 10, 2001)
    losses = 1.8 + 400 * size**-0.34 + 900 * (1e22 / 6 / size) ** -0.3
    assert best["N"] == pytest.approx(size[losses.argmin()], rel=0.01)
    assert best["loss"] == pytest.approx(losses.min(), rel=1e-4)
    assert law["objective"] < 1e-9 < found["kaplan"]["objective"]
    assert {"N_c", "D_c", "alpha_N", "alpha_D"} <= set(found["kaplan"])
    assert found["gadre"]["eta"] == pytest.approx(found["tied"]["alpha"] / 2, rel=1e-4)


def test_text_and_report(csv: Csv, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "report"
    assert fit(csv(noise=0.003), "--form", "chinchilla", "--out", str(folder)) == 0
    shown = capsys.readouterr().out
    assert "parameters from column 'params'" in shown
    assert "L = E + A N^-alpha + B D^-beta" in shown and "report.html" in shown
    page = (folder / "report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page
    laws = json.loads((folder / "laws.json").read_text())
    assert [law["form"] for law in laws] == ["chinchilla"]
    table = pd.read_csv(folder / "laws.csv")
    assert list(table["parameter"]) == list(TRUTH)
    residuals = pd.read_csv(folder / "residuals.csv")
    assert np.abs(np.log(residuals["predicted_chinchilla"] / residuals["loss"])).max() < 0.02
    assert not list(folder.rglob(".*"))


def test_other_names_and_rules(csv: Csv, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv()
    frame = pd.read_csv(path)
    frame["work"] = 6 * frame["params"] * frame["tokens"]
    frame = frame.rename(columns={"params": "size of model"}).drop(columns="tokens")
    frame.to_csv(path, index=False)
    words = ("--n", "size of model", "--d", "C/6N", "--c", "work", "--form", "chinchilla")
    assert fit(path, *words, "--json") == 0
    (law,) = objects(capsys)
    assert law["alpha"] == pytest.approx(0.34, rel=1e-3)


def test_compute_by_column_moves_the_optimum(csv: Csv, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv()
    frame = pd.read_csv(path)
    frame.assign(flops=7.5 * frame["params"] * frame["tokens"]).to_csv(path, index=False)
    assert fit(path, "--c", "flops", "--form", "chinchilla", "--target", "1e22", "--json") == 0
    (law,) = objects(capsys)
    assert law["flops_per_parameter_token"] == pytest.approx(7.5)
    best = law["optimum"]
    assert best["N"] * best["D"] == pytest.approx(1e22 / 7.5)


def test_families_drops_and_pins(csv: Csv, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv(arch=["a", "b"] * 10)
    assert fit(path, "--by", "arch", "--pin", "E=1.8", "--form", "chinchilla", "--json") == 0
    laws = objects(capsys)
    assert [law["family"] for law in laws] == ["a", "b"]
    assert all(law["E"] == pytest.approx(1.8) and law["pinned"] == {"E": 1.8} for law in laws)
    assert fit(csv(), "--drop", "3", "--form", "chinchilla", "--json") == 0
    assert objects(capsys)[0]["points"] == 17
    tied = [3.0, 3.0, 3.0, 2.9, 2.8, *np.linspace(2.1, 2.7, 15)]
    assert fit(csv(loss=tied), "--drop", "2", "--form", "chinchilla", "--json") == 0
    assert objects(capsys)[0]["points"] == 17


def test_shared_parameters_and_distinct_tokens(
    csv: Csv, capsys: pytest.CaptureFixture[str]
) -> None:
    path = csv(noise=0.002, arch=["a", "b"] * 10)
    words = ("--by", "arch", "--share", "E", "--form", "tied")
    assert fit(path, *words, "--json") == 0
    a, b = objects(capsys)
    assert a["E"] == b["E"] and a["A"] != b["A"] and a["shared"] == ["E"]
    worth = a["compute_multipliers"]["b"]
    assert worth["interval"][0] <= worth["value"] <= worth["interval"][1]
    assert worth["value"] * b["compute_multipliers"]["a"]["value"] == pytest.approx(1, rel=0.05)
    assert fit(path, *words) == 0
    shown = capsys.readouterr().out
    assert "b needs x" in shown and "held out, a: " in shown and "once calibrated" in shown
    assert a["held_out"]["rolling_origin"]["error"] < 0.02
    frame = pd.read_csv(path)
    frame.assign(distinct=frame["tokens"] / np.tile([1, 2, 4, 10], 5)).to_csv(path, index=False)
    assert fit(path, "--form", "repetition", "--unique", "distinct", "--json") == 0
    assert {"R_D", "R_N", "E", "alpha"} <= set(objects(capsys)[0])


def test_rows_without_a_value_are_counted(csv: Csv, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv()
    frame = pd.read_csv(path)
    frame.loc[[2, 5], "loss"] = np.nan
    frame.to_csv(path, index=False)
    assert fit(path, "--form", "chinchilla") == 0
    assert "2 of 20 rows lack a value and are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        (("--n", "weights"), {}, "--n: there is no column 'weights'. The table has params, tokens"),
        (("--by", "arch"), {}, "--by: there is no column 'arch'"),
        (
            (),
            {"loss": 0.0},
            "values must be above 0, or empty where they are not known (20 such rows)",
        ),
        ((), {"tokens": "many"}, "column 'tokens' holds something other than numbers"),
        (("--objective", "l3"), {}, "objective is 'l3'; it must be one of huber, l1, l2"),
        (("--form", "cubic"), {}, "form is 'cubic'; it must be one of chinchilla, tied"),
        (("--delta", "0"), {}, "delta is 0.0; it must be above 0"),
        (("--drop", "20"), {}, "drop is 20, but there are only 20 rows"),
        (("--resamples", "0"), {}, "resamples is 0"),
        (("--target", "-1"), {}, "target is -1.0; it must be above 0"),
        (("--pin", "gamma=1"), {}, "can pin 'gamma'"),
        (("--share", "E"), {}, "--share E takes families: name them with --by"),
        (("--form", "repetition"), {}, "takes distinct tokens: name them with --unique"),
        (("--pin", "E"), {}, "--pin is 'E'; it must be NAME=NUMBER"),
        ((), {"loss": np.nan}, "20 of 20 rows lack a value"),
    ],
)
def test_wrong_input_gives_one_clear_sentence(
    csv: Csv,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    changes: dict[str, Any],
    said: str,
) -> None:
    assert fit(csv(**changes), *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error


@pytest.mark.filterwarnings("default")  # the package that it is compared to is not ours
def test_bench_fit_finds_no_better_optimum(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--runs", "60", "--share", "0.002", "--resamples", "20", "--seed", "1"]
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "fit", *words])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "scipy, 9 starts" in shown and "times the fit" in shown
    installed = importlib.util.find_spec("chinchilla") is not None
    assert ("chinchilla, 32 starts" in shown) == installed
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "fit", "--share", "2"])
    assert end.value.code == 2


def test_no_usual_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("a,b\n1,2\n")
    assert fit(path) == 2
    assert "name it with --n. The table has a, b" in capsys.readouterr().err
    assert fit(tmp_path / "absent.csv") == 2
    assert "there is no file" in capsys.readouterr().err


def test_too_few_rows_refuse(csv: Csv, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv()
    pd.read_csv(path).head(5).to_csv(path, index=False)
    assert fit(path, "--form", "chinchilla") == 1
    assert "5 runs cannot fix a law of 5 parameters" in capsys.readouterr().out
    assert fit(path, "--form", "chinchilla", "--json") == 1
    assert objects(capsys)[0]["refusal"]["reason"] == "too few points"


def test_whole_numbers_whose_product_overflows(
    csv: Csv, capsys: pytest.CaptureFixture[str]
) -> None:
    path = csv()
    frame = pd.read_csv(path)
    loss = 1.8 + 400 * (frame["params"] * 1e4) ** -0.34 + 900 * (frame["tokens"] * 1e3) ** -0.3
    whole = {
        "params": (frame["params"] * 1e4).astype("int64"),
        "tokens": (frame["tokens"] * 1e3).astype("int64"),
    }
    frame.assign(**whole, loss=loss).to_csv(path, index=False)
    assert fit(path, "--form", "gadre", "--form", "chinchilla", "--json") == 0
    laws = objects(capsys)
    assert laws[0]["optimum"]["C"] == pytest.approx(6e27)
    assert laws[1]["alpha"] == pytest.approx(0.34, rel=1e-2)


def test_the_report_is_written_without_being_asked_for(
    csv: Csv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = csv(noise=0.003)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", path.name, "--form", "tied", "--resamples", "20"])
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and "report: runs-laws/report.html" in shown
    assert "the form tied predicts larger runs so well: each budget from all smaller ones" in shown
    page = (tmp_path / "runs-laws" / "report.html").read_text()
    assert "width=device-width" in page and "<td>alpha</td>" in page
    assert "By it 6e20 FLOPs are best spent on" in page
    assert fit(path, "--json") == 0 and not (tmp_path / "laws.json").exists()


def test_neither_torch_nor_ray_is_imported(csv: Csv, tmp_path: Path) -> None:
    code = (
        "import sys; from isoflop import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    words = [
        "fit",
        str(csv()),
        "--form",
        "tied",
        "--resamples",
        "5",
        "--out",
        str(tmp_path / "report"),
    ]
    shown = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "report" / "report.html").exists()
