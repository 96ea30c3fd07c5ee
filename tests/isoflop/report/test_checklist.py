"""Does the list fail where a reviewer would, and say what would mend it?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop.report.analysis import analyse, best_of, judge, swept_axes
from isoflop.report.checklist import Check

BUDGETS = (1e11, 1e12, 1e13)


def table(
    *, seeds: int = 3, rates: tuple[float, ...] = (0.5, 1.0, 2.0), best: float = 1.0, **fields: Any
) -> pd.DataFrame:
    """Runs of one family whose loss is best at `best` times the rule's learning rate."""
    random = np.random.default_rng(0)
    rows = []
    for budget in BUDGETS:
        for index, share in enumerate(np.linspace(-1.5, 1.5, 7)):
            size = 2.2e4 * (budget / 1e11) ** 0.5 * np.exp(share)
            tokens = budget / (6 * size)
            for rate in rates:
                for seed in range(seeds):
                    loss = 1.7 + 30 * size**-0.34 + 90 * tokens**-0.33
                    loss += 0.03 * np.log(rate / best) ** 2 + 0.002 * random.normal()
                    rows.append(
                        {
                            "run": f"{budget:.0e}-{index}-{rate}-{seed}",
                            "status": "finished", "error": None,
                            "axis.arch": "x", "axis.flops": budget, "axis.lr": rate,
                            "axis.seed": seed, "seed": seed, "learning_rate": rate,
                            "params_all": size * 1.2, "params_without_input_embedding": size,
                            "params_without_embeddings": size * 0.9,
                            "tokens": tokens, "unique_tokens": 1e9, "epochs": tokens / 1e9,
                            "flops": budget, "flops_6nd_without_embeddings": budget * 0.9,
                            "loss": loss, "warmup": 0.1, "decay": "cosine", "host": "h",
                            "code": "abc", **fields,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def checks(runs: pd.DataFrame) -> dict[str, Check]:
    return {check.name: check for check in analyse(runs, resamples=50).checks}


def one(runs: pd.DataFrame, word: str) -> Check:
    found = [check for name, check in checks(runs).items() if word in name]
    assert len(found) == 1, word
    return found[0]


def test_a_loss_below_the_texts_entropy_is_a_leak() -> None:
    runs = table().assign(bits_per_byte=lambda runs: runs["loss"] / 2)
    assert one(runs, "own entropy").status == "not applicable"
    least = runs["bits_per_byte"].min()
    for floor, status in ((0.9 * least, "pass"), (1.005 * least, "pass"), (1.1 * least, "fail")):
        found = one(runs.assign(floor_bits_per_byte=floor), "own entropy")
        assert found.status == status and f"{floor:.4f} of the text" in found.evidence


def test_a_careful_study_passes_everything_it_has_records_for() -> None:
    found = checks(table())
    failed = {name: check for name, check in found.items() if check.status == "fail"}
    assert failed == {}
    unknown = [name for name, check in found.items() if check.status == "not applicable"]
    assert unknown == [
        "Batches no larger than the gradient noise scale",  # not measured
        "No run ends below the text's own entropy",  # not known
        "Loss curves of all scales collapse onto one",  # no curves were given
    ]


def test_batches_are_held_against_the_noise_scale() -> None:
    fine = one(table(batch_tokens=1000, noise_scale=2000.0), "noise scale")
    assert fine.status == "pass" and "0.5 to 0.5 times" in fine.evidence
    assert one(table(batch_tokens=9000, noise_scale=2000.0), "noise scale").status == "fail"


@pytest.mark.parametrize(
    ("changes", "word", "evidence"),
    [
        ({"rates": (1.0,)}, "tuned per size", "21 of 21 sizes were trained with fewer than 3"),
        ({"best": 2.0}, "tuned per size", "sizes the best rate is at the sweep's edge"),
        ({"seeds": 1}, "3 seeds", "3 seeds at 0 scales"),
        ({"epochs": 9.0}, "epochs", "at most 9 epochs"),
        ({"decay": "constant"}, "end of a schedule", "never cooled down"),
        ({"warmup": 0.5}, "Warm-up", "50 % of each"),
        ({"code": "abc+changes"}, "on record", "uncommitted"),
        ({"code": None}, "on record", "unknown for some runs: code"),
    ],
)
def test_what_a_reviewer_would_ask_fails(changes: dict[str, Any], word: str, evidence: str) -> None:
    check = one(table(**changes), word)
    assert check.status == "fail" and evidence in check.evidence and check.cure


def test_too_short_a_range_of_budgets_fails() -> None:
    runs = table()
    check = one(runs[runs["axis.flops"] < 5e12], "decades")
    assert check.status == "fail" and "1.0 decades" in check.evidence and "1e13" in check.cure


def test_an_optimum_with_one_size_on_a_side_fails() -> None:
    runs = table()
    sizes = np.sort(runs.loc[runs["axis.flops"] == 1e12, "params_all"].unique())
    found = one(runs[~runs["params_all"].isin(sizes[:2])], "each side")
    assert found.status == "fail" and "x at 1e12" in found.evidence


def test_runs_that_failed_are_counted() -> None:
    runs = table()
    runs.loc[:3, ["status", "loss"]] = ["diverged", np.nan]
    assert one(runs, "did not finish").evidence.startswith("4 diverged of")


def test_a_table_that_does_not_say_is_unknown_not_passed() -> None:
    for word, column in (("Warm-up", "warmup"), ("schedule", "decay"), ("epochs", "epochs")):
        assert one(table().drop(columns=column), word).status == "not applicable"


def test_no_runs_have_no_checks() -> None:
    assert analyse(table().assign(status="missing"), resamples=10).checks == ()


class TestJudge:
    def test_tokenizers_are_judged_by_bits_per_byte(self) -> None:
        """The family with fewer nats per token has more bits per byte, and must lose."""
        long, short = table(rates=(1.0,)), table(rates=(1.0,))
        long["bits_per_byte"] = long["loss"] / 2
        short = short.assign(**{"axis.arch": "y", "loss": short["loss"] - 0.5})
        short["bits_per_byte"] = long["bits_per_byte"] + 0.3
        runs = pd.concat([long, short], ignore_index=True)
        curve = pd.DataFrame({"step": [1], "val/loss": [9.0], "val/bits_per_byte": [4.0]})
        unit, judged, curves = judge("val/bits_per_byte", runs, {"run": curve})
        found = analyse(judged, curves=curves, resamples=50, unit=unit)
        assert "Per FLOP x is better than y at 3 of 3 budgets" in found.verdict.text
        assert "bits per byte" in found.verdict.text and "nats" not in found.verdict.text
        assert curves["run"]["val/loss"].tolist() == [4.0]

    def test_losses_are_left_as_they_are_otherwise(self) -> None:
        runs = table()
        unit, judged, _ = judge("val/loss", runs, {})
        assert unit == "nats per token" and judged is runs


class TestSweptSettings:
    def test_each_size_keeps_its_best_rate(self) -> None:
        runs = table(best=2.0)
        swept = swept_axes(runs, "axis.arch", "axis.flops", "params_all")
        assert swept == ("axis.lr",)
        kept = best_of(runs, swept, "axis.arch", "axis.flops", "params_all")
        assert set(kept["axis.lr"]) == {2.0} and len(kept) == len(runs) / 3

    def test_without_a_sweep_nothing_is_dropped(self) -> None:
        runs = table(rates=(1.0,))
        assert swept_axes(runs, "axis.arch", "axis.flops", "params_all") == ()

    def test_runs_without_a_result_stay(self) -> None:
        runs = table()
        runs.loc[:1, ["status", "loss"]] = ["failed", np.nan]
        kept = best_of(runs, ("axis.lr",), "axis.arch", "axis.flops", "params_all")
        assert (kept["status"] == "failed").sum() == 2

    def test_the_law_is_that_of_the_best_settings(self) -> None:
        tuned, swept = analyse(table(rates=(1.0,)), resamples=20), analyse(table(), resamples=20)
        assert [m.loss and m.loss.value for m in swept.minima] == pytest.approx(
            [m.loss and m.loss.value for m in tuned.minima], abs=0.01
        )
