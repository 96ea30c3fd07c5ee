"""Is a better state found better by what it is, an equal one not, and is the note right?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop.cli import main
from isoflop.report.compare import compare, markdown, mean_difference
from isoflop.report.states import State, root_of, state
from isoflop.scaling.interval import Interval, Refusal

BUDGETS = (1e11, 1e12, 1e13)


def runs(
    gain: float = 1.0, *, seed: int = 0, noise: float = 0.003, archs: tuple[str, ...] = ("x",)
) -> pd.DataFrame:
    """A family whose compute is worth `gain` times as much; seed noise that the sides share less
    than wholly."""
    shared, own = np.random.default_rng(0), np.random.default_rng(1000 + seed)
    rows = []
    for arch in archs:
        for budget in BUDGETS:
            for index, share in enumerate(np.linspace(-1.5, 1.5, 6)):
                size = 2.2e4 * (budget / 1e11) ** 0.5 * np.exp(share)
                tokens = budget / (6 * size)
                better = gain**0.5  # in both size and tokens: the multiplier is then `gain`
                loss = 1.7 + 30 * (better * size) ** -0.34 + 90 * (better * tokens) ** -0.33
                loss += noise * shared.normal() + noise / 3 * own.normal()
                rows.append(
                    {"run": f"{arch}{budget:.0e}{index}", "status": "finished", "loss": loss,
                     "axis.arch": arch, "axis.flops": budget, "axis.width": 8 * index,
                     "axis.seed": 0, "params_without_input_embedding": size, "params_all": size,
                     "params_without_embeddings": size, "tokens": tokens, "flops": budget}
                )  # fmt: skip
    return pd.DataFrame(rows)


def interval(value: object) -> Interval:
    assert isinstance(value, Interval), value
    return value


def test_a_gain_of_compute_is_found_with_its_size() -> None:
    found = compare(runs(), runs(1.5, seed=1), resamples=300).families[0]
    overall = interval(found.paired[-1].difference)
    assert overall.high < 0 and found.paired[-1].pairs == 18
    assert found.worth and (found.worth.first, found.worth.second) == ("head", "base")
    assert interval(found.worth.multiplier).value == pytest.approx(1.5, rel=0.15)
    assert interval(found.worth.multiplier).low > 1
    assert found.conclusion.startswith("x: head is better by 0.")


def test_a_loss_of_compute_is_told_from_the_other_side() -> None:
    found = compare(runs(1.5), runs(seed=1), resamples=300)
    assert found.families[0].worth and found.families[0].worth.first == "base"
    assert "head is worse by 0." in markdown(found)
    assert "head needs 1." in markdown(found)


def test_equal_states_differ_as_often_as_the_level_says() -> None:
    """40 pairs of equal states: at 95 % about two are called different."""
    wrong = 0
    for seed in range(40):
        one, two = runs(seed=2 * seed), runs(seed=2 * seed + 1)
        pairs = one.merge(two, on=["axis.flops", "axis.width"], suffixes=(".base", ".head"))
        pairs["difference"] = pairs["loss.head"] - pairs["loss.base"]
        found = interval(mean_difference(pairs, ["axis.flops", "axis.width"]))
        wrong += not found.low <= 0 <= found.high
    assert wrong <= 6


def test_pairs_share_their_noise() -> None:
    """The interval of the pairs is much narrower than that of the two minima's difference."""
    noisy = runs(noise=0.02), runs(seed=1, noise=0.02)
    found = compare(*noisy, resamples=300).families[0]
    paired = {p.budget: interval(p.difference) for p in found.paired if p.budget}
    for row in found.analysis.verdict.rows:
        assert row.difference
        apart = row.difference.high - row.difference.low
        assert paired[row.budget].high - paired[row.budget].low < apart


def test_the_same_runs_do_not_differ_at_all() -> None:
    found = compare(runs(), runs(), resamples=50).families[0]
    assert interval(found.paired[-1].difference) == Interval(0.0, 0.0, 0.0)
    assert "no difference can be told" in found.conclusion


def test_too_few_pairs_are_refused() -> None:
    short = runs()[lambda t: t["axis.flops"] == 1e11].head(2)
    found = compare(short, short, resamples=20).families[0]
    assert isinstance(found.paired[-1].difference, Refusal)
    assert "nothing can be concluded" in found.conclusion


def test_families_of_one_side_are_named() -> None:
    found = compare(runs(archs=("x", "y")), runs(archs=("y", "z")), resamples=20)
    assert [one.family for one in found.families] == ["y"] and found.left_out == ("x", "z")
    with pytest.raises(ValueError, match="none in common"):
        compare(runs(archs=("x",)), runs(archs=("z",)))


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"the runs of b have no column 'axis\.flops'"):
        compare(runs(), runs().drop(columns="axis.flops"), names=("a", "b"))


class TestCommand:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Path, Path]:
        for name, table in (("old", runs()), ("new", runs(1.5, seed=1))):
            (tmp_path / name).mkdir()
            table.to_parquet(tmp_path / name / "runs.parquet")
        return tmp_path / "old", tmp_path / "new"

    def test_two_folders(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        note = tmp_path / "note.md"
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, folders), "--resamples", "50", "--out", str(note)])
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        assert printed.startswith("### new against old") and "| x | all | 18 |" in printed
        assert note.read_text() == printed.rstrip("\n") + "\n"

    def test_json(self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["compare", *map(str, folders), "--resamples", "50", "--json"])
        values = json.loads(capsys.readouterr().out)
        assert values["families"][0]["multiplier"]["first"] == "head"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nowhere", "neither"], "there is no run table"),
            (["one"], "compare takes two folders"),
            (["a.py"], "give --base REV"),
            (["a.py", "--base", "main"], "there is no study file a.py"),
        ],
    )
    def test_wrong_words(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *words])
        assert ended.value.code == 2 and message in capsys.readouterr().err


class TestStates:
    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        def git(*words: str) -> None:
            who = ["-c", "user.name=x", "-c", "user.email=x@y"]
            subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

        git("init", "-q", "-b", "main")
        (tmp_path / "study.py").write_text("1\n")
        git("add", "-A")
        git("commit", "-qm", "one")
        return tmp_path

    def test_a_commit_is_known_by_its_hash(self, checkout: Path) -> None:
        found = state(checkout, "main")
        assert found.commit and found.key == found.commit[:12] and found.name == "main"

    def test_the_working_tree_is_known_by_its_content(self, checkout: Path) -> None:
        def key() -> str:
            return state(checkout, None).key

        clean = key()
        assert clean == key()
        (checkout / "study.py").write_text("2\n")
        changed = key()
        (checkout / "more.py").write_text("3\n")
        assert len({clean, changed, key()}) == 3

    def test_an_unknown_revision_is_named(self, checkout: Path) -> None:
        with pytest.raises(ValueError, match="nothing-like-it"):
            state(checkout, "nothing-like-it")

    def test_outside_of_git_there_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "study.py").touch()
        with pytest.raises(ValueError, match="git rev-parse"):
            root_of(tmp_path / "study.py")


STUDY = """
from isoflop.run import AdamW, Evaluation, Run, Text
from isoflop.study import Study, grid, main
from models import LlamaConfig

def run(*, arch, width, flops, seed):
    shape = dict(width=width, depth=1, heads=2, context=32)
    return Run(model=LlamaConfig(**shape), optimizer=AdamW(lr=0.01), flops=flops, batch_tokens=128,
               data=Text(source=TEXT, tokenizer="bytes"), seed=seed,
               evaluation=Evaluation(tokens=512, times=1))

study = Study(name="tiny", run=run,
              points=grid(arch=["llama"], width=[8, 16, 24, 32], flops=[2e9], seed=[0]))
if __name__ == "__main__":
    main(study)
"""


@pytest.mark.slow
def test_two_states_of_the_code_are_trained_and_compared(tmp_path: Path) -> None:
    """A clone whose last commit spoils the optimizer: the command must find it worse."""
    root, clone = Path(__file__).parents[3], tmp_path / "clone"

    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", *who, *words], cwd=clone, check=True, capture_output=True)

    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    git("checkout", "-qb", "before")
    text = "\n".join(f"line {i} of a small text, {i * i} squared" for i in range(4000))
    (tmp_path / "text.txt").write_text(text)
    (clone / "studies" / "tiny.py").write_text(
        STUDY.replace("TEXT", repr(str(tmp_path / "text.txt")))
    )
    git("add", "-A")
    git("commit", "-qm", "a study")
    layers = clone / "models" / "layers.py"
    changed = layers.read_text().replace("INITIAL_STD = 0.02", "INITIAL_STD = 2.0")
    assert changed != layers.read_text()
    layers.write_text(changed)
    words = ["studies/tiny.py", "--base", "before", "--json", "--resamples", "100"]
    command = [sys.executable, "-m", "isoflop.cli", "compare", *words]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["families"][0]["paired"][-1]
    assert found["pairs"] == 4 and found["low"] > 0.05
    again = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert again.stdout == done.stdout and "nothing to train" in again.stderr
    assert isinstance(state(clone, None), State)
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 1
