"""Are differences between runs found where there are any, and not where there are none?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isoflop.rollouts.comparing import (
    clustered_error,
    compare,
    false_discovery,
    holm,
    needed,
    paired,
    probability,
)
from isoflop.rollouts.statistics import mean


def rows(values: np.ndarray, metric: str = "entropy") -> pd.DataFrame:
    """Values (prompts, samples) as a capture has them."""
    prompts, samples = values.shape
    return pd.DataFrame(
        {
            "spec": "",
            "prompt_id": np.repeat([f"p{i}" for i in range(prompts)], samples),
            "sample_id": np.tile(np.arange(samples), prompts),
            f"m.{metric}": values.ravel(),
        }
    )


def test_pairs_take_out_what_prompts_do() -> None:
    rng = np.random.default_rng(0)
    effect = 10 * rng.normal(size=(12, 1))
    first = effect + rng.normal(size=(12, 4))
    second = effect + rng.normal(size=(12, 4)) + 0.8
    shuffled = rows(second).sample(frac=1, random_state=0)
    found = paired(rows(first), shuffled, "entropy")
    assert found.value == pytest.approx((second - first).mean())
    assert found.low is not None and found.low > 0 and probability(found) < 0.01
    alone = mean(second.ravel(), np.repeat(np.arange(12), 4))
    assert (alone.standard_error or 0) > 5 * (found.standard_error or 0)


def test_only_what_both_were_asked_counts() -> None:
    first, second = np.zeros((6, 2)), np.ones((8, 2))
    second[7] = 100
    found = paired(rows(first), rows(second), "entropy")
    assert (found.value, found.prompts, found.rollouts) == (1.0, 6, 12)
    with pytest.raises(ValueError, match="no metric 'other'"):
        paired(rows(first), rows(second), "other")
    with pytest.raises(ValueError, match="twice"):
        paired(pd.concat([rows(first)] * 2), rows(second), "entropy")


def test_a_table_of_metrics() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(10, 3))
    first, second = rows(base), rows(base + 0.5 + 0.1 * rng.normal(size=base.shape))
    first["m.loop"], second["m.loop"] = rng.normal(size=30), rng.normal(size=30)
    table = compare(first, second, ["entropy", "loop", "absent"]).set_index("metric")
    assert list(table.index) == ["entropy", "loop"]
    assert table.loc["entropy", "p_holm"] == pytest.approx(2 * table.loc["entropy", "p"])
    assert table.loc["entropy", "p_holm"] < 0.001 < 0.05 < table.loc["loop", "p_false_discovery"]
    few = compare(first[first.prompt_id < "p3"], second, ["entropy"])
    assert few["p"].isna().all() and few["p_holm"].isna().all()


def test_fewer_pairs_than_a_metric_declares_to_need_are_said() -> None:
    same = {name: rows(np.ones((40, 10)), name) for name in ("loop", "length")}
    first = same["loop"].assign(**{"m.length": 1.0})
    table = compare(first, first, ["loop", "length"]).set_index("metric")
    assert table["least"].to_dict() == {"loop": 400, "length": 0}
    assert not table["few"].any(), "400 are enough"
    table = compare(first[:-1], first, ["loop", "length"]).set_index("metric")
    assert table["few"].to_dict() == {"loop": True, "length": False}


def test_corrections_are_the_published_ones() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand, Holm's own steps
    many = np.random.default_rng(0).random(30)
    assert false_discovery(many) == pytest.approx(stats.false_discovery_control(many))
    with_gap = holm([0.01, np.nan, 0.5])
    assert with_gap[[0, 2]] == pytest.approx([0.02, 0.5]) and np.isnan(with_gap[1])
    with pytest.raises(ValueError, match="p-values lie in"):
        holm([1.5])


def test_false_alarms_are_as_rare_as_said() -> None:
    """Of 20 equal metrics at once, Holm's raises one in at most 5 % of studies."""
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(400):
        drawn = rng.normal(size=(20, 16))
        t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / 4)
        alarms += bool((holm(2 * stats.t.sf(np.abs(t), 15)) < 0.05).any())
    assert alarms / 400 < 0.08


def test_the_clustered_error_is_that_of_the_prompts() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(9, 1)) + rng.normal(size=(9, 5))
    prompts = np.repeat(np.arange(9), 5)
    by_prompt = values.mean(axis=1).std(ddof=1) / 3
    assert clustered_error(values.ravel(), prompts) == pytest.approx(by_prompt)
    bootstrapped = mean(values.ravel(), prompts).standard_error
    assert bootstrapped == pytest.approx(by_prompt, rel=0.1)
    assert clustered_error([1.0, 2.0], [0, 0]) is None


def test_how_many_prompts_are_needed() -> None:
    found = mean(np.random.default_rng(0).normal(size=64), np.repeat(np.arange(16), 4))
    assert found.standard_error is not None
    assert needed(found, 1.96 * found.standard_error / 2) == 64
    assert needed(mean([1.0], [0]), 0.1) is None
    with pytest.raises(ValueError, match="half_width is 0"):
        needed(found, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "seeds"), [(8, 4), (16, 2), (48, 8)])
def test_paired_intervals_hold_the_truth_95_times_in_100(prompts: int, seeds: int) -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(3000):
        shift = 0.3 + 0.5 * rng.normal(size=(prompts, 1))  # prompts differ in what changes, too
        drawn = shift + rng.normal(size=(prompts, seeds))
        found = mean(drawn.ravel(), np.repeat(np.arange(prompts), seeds), resamples=600)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.93 <= hits / 3000 <= 0.97
