"""Is agreement between loss and text what ranks say, and does every metric get its law?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isoflop.scaling.agreement import (
    SIZE,
    Agreement,
    agreement,
    metric_laws,
    rollout_metrics,
)
from isoflop.scaling.interval import Refusal


def made(runs: int = 24, noise: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e15, 1e18, runs // 3), 3)
    size = flops**0.5 * np.tile([0.5, 1.0, 2.0], runs // 3)
    loss = 1.7 + 40 * flops**-0.1 + 0.01 * np.tile([1, 0, 1], runs // 3)
    return pd.DataFrame(
        {
            "run": [f"r{i}" for i in range(runs)],
            "status": "finished",
            "flops": flops,
            SIZE: size,
            "loss": loss,
            "rollout/repetition": 0.3 + 20 * flops**-0.15 + noise * rng.normal(size=runs),
            "rollout/repetition.low": 0.0,
            "rollout/noise": rng.normal(size=runs),
        }
    )


def found(*arguments: object, **more: object) -> Agreement:
    result = agreement(*arguments, **more)  # type: ignore[arg-type]
    assert isinstance(result, Agreement)
    return result


def test_it_is_kendalls() -> None:
    table = made()
    noise = found(table, "rollout/noise", direction="down")
    assert noise.tau == pytest.approx(
        stats.kendalltau(table["loss"], table["rollout/noise"]).statistic
    )
    assert noise.low < noise.tau < noise.high and abs(noise.tau) < 0.5
    strong = found(table, "rollout/repetition", direction="down")
    assert strong.tau > 0.8 and strong.low > 0.6
    assert found(table, "rollout/repetition", direction="up").tau == pytest.approx(-strong.tau)


def test_a_band_is_nearness_to_the_reference() -> None:
    table = made()
    near = found(table, "rollout/repetition", direction="band", reference=0.3)
    assert near.tau == found(table, "rollout/repetition", direction="down").tau
    far = found(table, "rollout/repetition", direction="band", reference=9.0)
    assert far.tau == pytest.approx(-near.tau) and not far.same_choice
    own = dict.fromkeys(table["run"].astype(str), 0.3)
    assert found(table, "rollout/repetition", direction="band", reference=own) == near
    with pytest.raises(ValueError, match="give the reference"):
        agreement(table, "rollout/repetition", direction="band")


def test_what_has_no_order_is_refused() -> None:
    table = made().assign(**{"rollout/loop": 0.0})
    assert isinstance(agreement(table, "rollout/loop"), Refusal)
    assert isinstance(agreement(table.head(3), "rollout/noise"), Refusal)
    table.loc[3:, "status"] = "failed"
    assert isinstance(agreement(table, "rollout/noise"), Refusal)
    with pytest.raises(ValueError, match="no column"):
        agreement(table, "rollout/other")


def test_every_metric_has_its_laws() -> None:
    table = made(noise=0.002).assign(**{"rollout/none": np.nan})
    assert rollout_metrics(table) == ["rollout/repetition", "rollout/noise", "rollout/none"]
    laws = metric_laws(table, resamples=30).set_index(["metric", "against"])
    assert len(laws) == 9
    good = laws.loc[("rollout/repetition", "flops")]
    assert good["relative"] < 0.2
    assert good["beyond"] == pytest.approx(0.3 + 20 * 1e19**-0.15, abs=0.05)
    assert good["low"] <= good["beyond"] <= good["high"]
    other = laws.loc[("rollout/noise", "flops")]
    assert other["refused"] or other["relative"] > 0.7
    assert laws.loc[("rollout/none", "loss"), "refused"] == "no finished run has it"


def test_a_share_is_never_predicted_outside_its_range() -> None:
    table = made()
    x = np.log(table["flops"].to_numpy())
    table["rollout/share"] = 1 / (1 + np.exp(-0.8 * (x - x.mean())))
    laws = metric_laws(table, rates=["rollout/share"], resamples=30).set_index(
        ["metric", "against"]
    )
    law = laws.loc[("rollout/share", "flops")]
    assert law["relative"] < 0.05 and 0.95 < law["low"] <= law["beyond"] <= law["high"] <= 1
