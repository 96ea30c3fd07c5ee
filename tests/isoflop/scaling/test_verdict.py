from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from isoflop.scaling.isoflop import counted, minima
from isoflop.scaling.verdict import UNDECIDED, Verdict, verdict

World = Callable[..., pd.DataFrame]


def judge(table: pd.DataFrame, resamples: int = 500) -> Verdict:
    return verdict(table, minima(table, resamples=resamples))


def test_a_better_family_is_named_with_its_lead(world: World) -> None:
    found = judge(world({"gpt2": {}, "llama": {"E": 1.65}}))
    assert [row.better for row in found.rows] == ["llama"] * 3
    assert "Per FLOP llama is better than gpt2 at 3 of 3 budgets." in found.text
    assert "At 1e12 FLOPs llama reaches" in found.text
    assert all(row.difference and abs(row.difference.value - 0.15) < 0.04 for row in found.rows)
    assert all(row.first_better is not None and row.first_better < 0.01 for row in found.rows)


def test_equal_families_are_rarely_told_apart(world: World) -> None:
    false = []
    for seed in range(150):
        table = world({"a": {}, "b": {}}, seed=seed, sizes=6, budgets=(1e11,), width=1.0)
        (row,) = judge(table, resamples=400).rows
        if row.difference:
            false.append(row.better is not None)
    assert len(false) > 100
    assert np.mean(false) <= 0.09  # 5 % nominal, and 2.2 standard errors of 150 worlds


def test_equal_families_cannot_be_told_in_words(world: World) -> None:
    found = judge(world({"a": {}, "b": {}}, seed=3))
    assert UNDECIDED in found.text
    assert not any(row.better for row in found.rows)


def test_one_seed_per_point_is_said(world: World) -> None:
    table = world({"a": {}, "b": {}})
    assert "one seed each" in judge(table).text
    two = pd.concat([table.assign(**{"axis.seed": s}) for s in (0, 1)], ignore_index=True)
    assert "one seed each" not in judge(two).text


def test_a_refused_budget_says_why_and_what_would_cure_it(world: World) -> None:
    table = world({"a": {}, "b": {}}, noise=0.0)
    edge = (table["axis.arch"] == "b") & (table["axis.flops"] == 1e11) & (table["axis.width"] > 128)
    found = judge(table[~edge])
    assert "At 1e11 FLOPs nothing can be said about a and b: for b, the largest size" in found.text
    assert "add larger sizes" in found.text


def test_one_family_has_minima_and_no_comparison(world: World) -> None:
    found = judge(world({"a": {}}))
    assert found.rows == ()
    assert "a is best at" in found.text


def test_three_families_are_compared_in_pairs(world: World) -> None:
    found = judge(world({"a": {}, "b": {"E": 1.6}, "c": {"E": 2.0}}, budgets=(1e11,)))
    assert [(row.first, row.second, row.better) for row in found.rows] == [
        ("a", "b", "b"),
        ("a", "c", "a"),
        ("b", "c", "b"),
    ]


def test_many_families_are_told_as_an_order(world: World) -> None:
    made = {"a": {}, "b": {"E": 1.5}, "c": {"E": 2.1}, "d": {"E": 1.8001}}
    found = judge(world(made, budgets=(1e11,)))
    assert len(found.rows) == 6
    assert sum(row.better is None for row in found.rows) == 1
    places = [found.text.index(f" {family} ") for family in "bac"]
    assert places == sorted(places)
    assert "Of 6 pairs, 5 can be told apart at 95 %, each by itself; b is better" in found.text
    assert "cannot be told: a from d." in found.text or "cannot be told: d from a." in found.text
    assert len(found.text) < 600, "no sentence for each pair"


def test_a_refused_family_is_left_out_of_the_order_and_says_why(world: World) -> None:
    table = world({"a": {}, "b": {"E": 1.6}, "c": {"E": 2.0}}, noise=0.0, budgets=(1e11,))
    table = table[(table["axis.arch"] != "b") | (table["axis.width"] <= 128)]
    found = judge(table)
    best = table.loc[table["axis.arch"] == "b", "loss"].min()
    said = f"At 1e11 FLOPs nothing can be said about b ({best:.3f} at best): the largest size"
    assert said in found.text
    assert "Of 1 pair, 1 can be told apart" in found.text
    assert "b " not in found.text.split("nats per token: ")[1].split(".")[0]


def test_runs_that_did_not_finish_are_counted_in_the_text(world: World) -> None:
    table = world({"a": {}, "b": {}})
    table.loc[0, "status"] = "failed"
    table.loc[1, ["status", "loss"]] = ["diverged", np.nan]
    assert "2 of 42 runs are not in the fits (" in judge(table).text


def test_nothing_finished(world: World) -> None:
    table = world({"a": {}}).assign(status="failed", loss=np.nan)
    assert "No run has finished" in judge(table).text


def test_no_budgets(world: World) -> None:
    found = verdict(world({"a": {}}), [], budgets=None).text
    assert "no axis of budgets" in found and "The lowest loss is" in found
    assert (
        "one size at each budget of tokens" in verdict(world({"a": {}}), [], budgets="tokens").text
    )


def test_of_one_run_its_end_is_told() -> None:
    table = pd.DataFrame(
        {"run": ["a"], "status": ["finished"], "loss": [4.56789], "tokens": [2e5], "flops": [3e10],
         "params_without_input_embedding": [9.08e4]}
    )  # fmt: skip
    text = verdict(table, ()).text
    assert "ended at 4.5679 nats per token" in text and "90.8k parameters, 200k tokens" in text


def test_budgets_of_tokens_are_called_tokens(world: World) -> None:
    table = world({"gpt2": {}, "llama": {"E": 1.65}}).rename(columns={"axis.flops": "axis.tokens"})
    found = verdict(table, minima(table, budget="axis.tokens"), budgets=counted("axis.tokens"))
    assert "At equal tokens llama is better than gpt2 at 3 of 3 budgets." in found.text
    assert "At 1e12 tokens llama reaches" in found.text and "FLOP" not in found.text
    assert counted("axis.flops") == counted(None) == "FLOPs"
