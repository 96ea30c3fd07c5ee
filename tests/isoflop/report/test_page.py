from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop.report import written
from isoflop.report.analysis import Analysis, analyse
from isoflop.report.page import build
from isoflop.report.texts import rollout_data

HOSTILE = "</script><script>alert('x')</script>  two  spaces\n\tand a tab"


@dataclass(frozen=True)
class Study:
    table: pd.DataFrame
    curves: dict[str, pd.DataFrame]
    rollouts: pd.DataFrame


def _loss(family: str, size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    floor = {"gpt2": 1.9, "llama": 1.75}[family]
    loss: np.ndarray = floor + 25 * size**-0.33 + 120 * np.maximum(tokens, 1e4) ** -0.34
    return loss


def _table(random: np.random.Generator) -> pd.DataFrame:
    rows = []
    for family in ("gpt2", "llama"):
        for budget in (1e11, 3e11, 1e12):
            sizes = np.exp(9.6 + 0.5 * np.log(budget / 1e11) + np.linspace(-1.8, 1.8, 7))
            for index, size in enumerate(sizes):
                tokens = budget / (7 * size)  # attention and head cost more than 6ND says
                loss = _loss(family, size, tokens) + 0.004 * random.normal()
                rows.append(
                    {
                        "run": f"{family}{budget:.0e}{index}",
                        "label": f"{family} {size:.0f}",
                        "status": "finished",
                        "error": "",
                        "axis.arch": family,
                        "axis.width": 16 * (index + 2),
                        "axis.flops": budget,
                        "axis.seed": 0,
                        "params_all": int(size * 1.5),
                        "params_without_input_embedding": int(size),
                        "params_without_embeddings": int(size * 0.6),
                        "tokens": int(tokens),
                        "steps": 100,
                        "learning_rate": 0.003,
                        "flops": budget * 1.001,
                        "flops_6nd_all": 6 * size * 1.5 * tokens,
                        "flops_6nd_without_embeddings": 6 * size * 0.6 * tokens,
                        "loss": loss,
                        "best_loss": loss,
                        "bits_per_byte": loss / 2.2,
                        "train_loss": loss - 0.05,
                        "seconds": 12.0,
                        "tokens_per_second": tokens / 12,
                        "rollout/loop": 0.6 - 0.03 * index,
                        "rollout/loop.low": 0.5 - 0.03 * index,
                        "rollout/loop.high": 0.7 - 0.03 * index,
                        "rollout/parses_as_python": 0.1 + 0.05 * index,
                    }
                )
    table = pd.DataFrame(rows)
    lost = ["loss", "best_loss", "bits_per_byte", "train_loss", "rollout/loop"]
    table.loc[5, ["status", "error"]] = ["failed", "RuntimeError: <b>disk</b> full"]
    table.loc[26, ["status", "error"]] = ["diverged", "loss is nan at step 7"]
    table.loc[[5, 26], lost] = np.nan
    return table


def _curve(row: dict[str, object]) -> pd.DataFrame:
    size, tokens = float(str(row["params_without_input_embedding"])), float(str(row["tokens"]))
    share = np.linspace(0, 1, 21)
    sparse = np.where(np.isin(np.arange(21), [0, 2, 6, 12, 20]), 1.0, np.nan)
    held_out = _loss(str(row["axis.arch"]), np.full(21, size), share * tokens)
    return pd.DataFrame(
        {
            "step": (share * 100).astype(int),
            "tokens": share * tokens,
            "flops": share * float(str(row["flops"])),
            "seconds": share * 12,
            "learning_rate": 0.003 * (1 - 0.9 * share),
            "train/loss": np.where(share > 0, held_out - 0.05, np.nan),
            "val/loss": held_out * sparse,
            "rollout/loop": (0.9 - 0.3 * share) * sparse,
            "rollout/loop.low": (0.8 - 0.3 * share) * sparse,
            "rollout/loop.high": (1.0 - 0.3 * share) * sparse,
        }
    )


def _rollouts(table: pd.DataFrame) -> pd.DataFrame:
    prompts = ["def add(a, b):\n    ", "", "class Tree:"]
    return pd.DataFrame(
        [
            {
                "run": run,
                "step": step,
                "tokens_seen": step * 100,
                "flops": step * 1e6,
                "prompt_id": f"p{number}",
                "sample_id": sample,
                "prompt": prompt,
                "text": HOSTILE if sample else f"return a + b  # {step} {run}\n    " * 2,
                "stop_condition": "length",
                "n_tokens": 24,
                "m.loop": 0.0,
            }
            for run in table.loc[table["status"] == "finished", "run"]
            for step in (0, 10, 100)
            for number, prompt in enumerate(prompts)
            for sample in range(2)
        ]
    )


@pytest.fixture(scope="module")
def study() -> Study:
    table = _table(np.random.default_rng(7))
    curves = {str(row["run"]): _curve(row) for row in table.to_dict("records")}
    return Study(table, curves, _rollouts(table))


@pytest.fixture(scope="module")
def analysis(study: Study) -> Analysis:
    return analyse(study.table, curves=study.curves, resamples=200)


@pytest.fixture(scope="module")
def page(
    study: Study, analysis: Analysis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    yield _build(tmp_path_factory.mktemp("report"), study, analysis)


def _build(folder: Path, study: Study, analysis: Analysis | None = None) -> Path:
    return build(
        folder,
        name="scaling_grid",
        question="Is llama better than gpt2 per FLOP & by how much?",
        table=study.table,
        curves=study.curves,
        rollouts=study.rollouts,
        analysis=analysis,
    )


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)


def own_part(page: Path) -> str:
    """The page without plotly's script, whose addresses (of maps) no figure of ours asks for."""
    from plotly.offline import get_plotlyjs

    text, library = page.read_text(), get_plotlyjs()
    assert text.count(library) == 1
    return text.replace(library, "")


def test_the_page_is_one_file_that_fetches_nothing(page: Path) -> None:
    text = own_part(page)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    elements = Elements(text)
    sources = [a[key] or "" for _, a in elements.tags for key in ("src", "href") if key in a]
    assert len(sources) > 6
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert page.stat().st_size < 9_000_000


def test_figures_and_minima_are_files_too(page: Path, analysis: Analysis) -> None:
    folder = page.parent
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "loss-against-compute.png",
        "isoflop.png",
        "parametric.png",
        "loss-curves.png",
        "collapse.png",
        "rollouts-against-compute.png",
        "rollouts-over-training.png",
    }
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (folder / "figures").iterdir())
    rows = list(csv.DictReader((folder / "minima.csv").read_text().splitlines()))
    assert len(rows) == 6
    first = analysis.minima[0]
    assert first.loss and float(rows[0]["loss.low"]) == pytest.approx(first.loss.low)
    assert float(rows[0]["flops_6nd"]) != float(rows[0]["flops"])
    assert not [path for path in folder.rglob(".*")]  # no temporary file is left


def test_the_verdict_comes_first_and_is_right(page: Path, analysis: Analysis) -> None:
    words = "".join(Elements(page.read_text()).words)
    assert "Per FLOP llama is better than gpt2 at 3 of 3 budgets." in analysis.verdict.text
    assert words.index("Per FLOP llama is better") < words.index("Figures")


def test_what_models_wrote_cannot_run(page: Path) -> None:
    text = own_part(page)
    assert "<script>alert" not in text
    data = 1 + text.count('<div class="plot"')  # the rollouts, and those of each figure
    assert text.count("<script") == data + 3  # plotly, and the page's own two
    data = re.search(r'id="rollout-data">(.*?)</script>', text, re.DOTALL)
    assert data
    loaded = json.loads(data.group(1))
    assert HOSTILE in {row[4] for row in loaded["texts"]}  # whitespace and all, to the character
    assert "def add(a, b):\n    " in loaded["prompts"]


def test_runs_that_did_not_finish_are_named_with_their_error(page: Path) -> None:
    text = page.read_text()
    elements = Elements(text)
    assert "RuntimeError: <b>disk</b> full" in elements.words  # escaped: it is text, not a tag
    assert "loss is nan at step 7" in elements.words
    rows = [a.get("class") for tag, a in elements.tags if tag == "tr"]
    assert rows.count("failed") == 1 and rows.count("diverged") == 1
    assert rows.count("finished") == 40


def test_all_conventions_and_both_counts_of_flops_are_reported(analysis: Analysis) -> None:
    assert [growth.convention for growth in analysis.exponents] == [
        "params_all",
        "params_without_input_embedding",
        "params_without_embeddings",
    ]
    assert {e.compute for growth in analysis.exponents for e in growth.exponents} == {
        "exact",
        "6ND",
    }
    assert [f.family for f in analysis.fits] == ["gpt2", "llama"]


def test_the_same_study_gives_the_same_page(page: Path, study: Study, tmp_path: Path) -> None:
    again = analyse(study.table, curves=study.curves, resamples=200)
    assert _build(tmp_path, study, again).read_bytes() == page.read_bytes()


def test_a_study_without_runs_still_has_a_page(study: Study, tmp_path: Path) -> None:
    table = study.table.assign(status="missing", loss=np.nan)
    page = _build(tmp_path, Study(table, {}, pd.DataFrame()))
    words = "".join(Elements(page.read_text()).words)
    assert "No run has finished" in words and "missing" in words
    assert 'id="rollout-data"' not in page.read_text()


def test_a_study_whose_table_is_empty_still_has_a_page(study: Study, tmp_path: Path) -> None:
    page = _build(tmp_path, Study(study.table.head(0), {}, pd.DataFrame()))
    assert "No run has finished" in page.read_text()


def test_what_was_predicted_stands_beside_what_came(study: Study, tmp_path: Path) -> None:
    told = study.table.assign(predicted=np.nan, predicted_low=np.nan, predicted_high=np.nan)
    told.loc[[0, 1, 5], "predicted"] = 3.0
    told.loc[[0, 1, 5], ["predicted_low", "predicted_high"]] = [[0.1, 99.0], [2.9, 3.1], [2.0, 4.0]]
    words = "".join(Elements(_build(tmp_path, Study(told, {}, pd.DataFrame())).read_text()).words)
    part = words[words.index("Predicted before they ran") :]
    assert "3 [0.1, 99]" in part and "not yet" in part  # run 5 failed
    assert part.index("yes") < part.index("no")


def test_flops_beyond_int64_in_the_table(study: Study, tmp_path: Path) -> None:
    huge = study.table.assign(flops=[int(f) * 10**12 for f in study.table["flops"]])
    assert huge["flops"].dtype == object  # Python's integers, above 9.2e18
    words = "".join(Elements(_build(tmp_path, Study(huge, {}, pd.DataFrame())).read_text()).words)
    assert "1e23" in words


def test_a_study_with_one_run_and_no_axes(study: Study, tmp_path: Path) -> None:
    table = study.table.head(1).drop(columns=["axis.arch", "axis.flops"])
    page = build(
        tmp_path,
        name="one",
        question="?",
        table=table,
        curves={str(table["run"].iloc[0]): study.curves[str(table["run"].iloc[0])]},
        rollouts=study.rollouts[study.rollouts["run"] == table["run"].iloc[0]],
        family=None,
        budget=None,
    )
    assert "no axis of budgets" in page.read_text()


def test_too_many_rollouts_leave_whole_samples_out(study: Study, analysis: Analysis) -> None:
    long = study.rollouts.assign(text="x" * 5000)
    data = rollout_data(study.table, long, analysis)
    assert data["samples"] == ["0"] and data["left_out"] == 1
    assert len(data["texts"]) == 40 * 3 * 3


def test_sets_that_share_a_prompt_keep_their_texts(study: Study, analysis: Analysis) -> None:
    rows = study.rollouts
    both = pd.concat([rows.assign(spec=""), rows.assign(spec="code", text="other")])
    data = rollout_data(study.table, both, analysis)
    assert data["prompts"] == 2 * rollout_data(study.table, rows, analysis)["prompts"]
    assert data["sets"] == [""] * 3 + ["code"] * 3
    assert {row[2] for row in data["texts"] if row[4] == "other"} == {3, 4, 5}


def test_what_moves_with_scale_is_said(study: Study) -> None:
    loop = 0.1 + 0.4 * (study.table["loss"] - study.table["loss"].min())  # nearer to people's 0.1
    table = study.table.assign(**{"rollout/loop": loop, "rollout/other": 0.0})
    laws = written.laws(table)
    assert set(laws["metric"]) == {"rollout/loop", "rollout/parses_as_python"} and len(laws) == 6
    more = table.assign(**{"rollout/stopped": loop / 2})
    every = written.laws(more, every=True)
    assert set(every["metric"]) == {*laws["metric"], "rollout/stopped"}
    pd.testing.assert_frame_equal(every[every["metric"] != "rollout/stopped"], laws)
    line, _ = written.lines(table, laws, {"rollout/loop": dict.fromkeys(table["run"], 0.1)})
    assert line.agreement == "1.00 [1.00, 1.00], same best run" and line.reference == "0.1"
    assert re.match(r"against loss a logistic: held-out error 0\.\d+ of the spread", line.laws[2])
    none, _ = written.lines(table, laws.assign(beyond=1e-22, low=1e-30), {})
    assert "a tenth less 0 [0, " in none.laws[2]
    wild, _ = written.lines(table, laws.assign(beyond=1e-27 - 10 * loop.max()), {})
    assert "at a tenth less it would be far from all that was measured (0.1 to" in wild.laws[2]
    bare, _ = written.lines(table, laws, {})
    assert bare.agreement == "no held-out value to be near to"
    assert written.lines(table, laws.iloc[:0], {}) == []


def test_a_missing_axis_is_named(study: Study) -> None:
    with pytest.raises(ValueError, match=r"no column 'axis\.tempo'; it has run, label"):
        analyse(study.table, family="axis.tempo")


def test_the_verdict_does_not_need_figures(study: Study, analysis: Analysis) -> None:
    swapped = study.table.assign(
        **{"axis.arch": study.table["axis.arch"].map({"gpt2": "llama", "llama": "gpt2"})}
    )
    other = analyse(swapped, resamples=200)
    assert "Per FLOP gpt2 is better than llama" in other.verdict.text
    assert replace(analysis, verdict=other.verdict).verdict != analysis.verdict
