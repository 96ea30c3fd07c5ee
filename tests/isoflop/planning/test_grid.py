"""Does a design bracket the expected best sizes, keep to its budget, leave out what cannot be?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from isoflop.planning.grid import (
    APART,
    FEWEST_STEPS,
    SIDE,
    Ask,
    Design,
    design,
)
from isoflop.planning.pilot import FAMILY, Pilot, load, ruled, without
from isoflop.planning.shapes import WIDTHS, ladder, named, size
from isoflop.run import Text
from isoflop.scaling.forms import Points
from isoflop.scaling.gain import best_points
from models import ZOO, GPT2Config, LlamaConfig

LADDERS = {kind.name: ladder(kind, vocab=512, context=64) for kind in (GPT2Config, LlamaConfig)}


def pilot_runs(tokens_per_parameter: float) -> pd.DataFrame:
    """Of equal exponents, so that this ratio is best everywhere; no noise."""
    flops = np.repeat([1e10, 1e11, 1e12], 7)
    size = np.sqrt(flops / 6 / tokens_per_parameter) * np.tile(2.0 ** np.arange(-3, 4), 3)
    tokens = flops / 6 / size
    loss = 1.8 + (size / 1e5) ** -0.35 + (tokens / tokens_per_parameter / 1e5) ** -0.35
    return pd.DataFrame(
        {
            "status": "finished",
            FAMILY: "llama",
            "params_without_input_embedding": size,
            "tokens": tokens,
            "flops": flops,
            "loss": loss,
        }
    )


def made(total: float, pilot: Pilot | None = None, memory: float = 1e12, **more: int) -> Design:
    ask = Ask(data=Text(tokenizer="bpe-512"), context=64, memory=memory, **more)
    return design(total, {"llama": LADDERS["llama"]}, pilot or without(), ask)


@pytest.mark.parametrize("total", [3e12, 1e14])
def test_budgets_and_sizes(total: float) -> None:
    found = made(total)
    assert 0.97 * total < found.flops < 1.01 * total
    budgets = found.budgets
    assert np.diff(np.log(budgets)) == pytest.approx(np.log(APART), rel=0.01)
    if total >= 1e14:
        assert budgets[-1] / budgets[0] > 200, "over two decades"
    for budget in budgets:
        here = [p for p in found.planned if p.budget == budget]
        best = {p.size for p in here if p.centre}
        assert len(best) == 1
        (best_size,) = best
        sizes = {p.size for p in here}
        assert sum(n < best_size for n in sizes) >= SIDE <= sum(n > best_size for n in sizes)
        ratio = next(p.tokens / p.size for p in here if p.centre)
        assert 10 < ratio < 40, "the rule: about 20 tokens per parameter"
        assert {p.run.flops for p in here} == {budget}, "lengths by the models' own FLOPs"
        assert all(p.tokens >= FEWEST_STEPS * 64 for p in here)
    assert "20 tokens a parameter" in found.notes[0]


def test_noise_is_measured_where_it_is_cheap() -> None:
    found = made(1e14)
    seeds = {b: {p.seed for p in found.planned if p.budget == b} for b in found.budgets}
    assert [len(seeds[b]) for b in found.budgets] == [3, 3, 1, 1, 1, 1]
    assert made(1e14, seeds=2).flops == pytest.approx(1e14, rel=0.01)


def test_few_flops_are_refused_or_said() -> None:
    small = made(1e12)
    assert 3 <= len(small.budgets) < 6
    assert any("two decades would need more FLOPs" in note for note in small.notes)
    with pytest.raises(ValueError, match=r"1e0?9 FLOPs pay for no 3 budgets"):
        made(1e9)
    with pytest.raises(ValueError, match="the budget is inf FLOPs"):
        made(float("inf"))


def test_what_does_not_fit_is_left_out_and_said() -> None:
    everything = made(1e14)
    limit = sorted(p.memory.needed for p in everything.planned)[len(everything.planned) // 2]
    found = made(1e14, memory=float(limit))
    assert found.left_out and all(p.memory.needed <= limit for p in found.planned)
    assert len(found.planned) + len(found.left_out) == len(everything.planned)
    assert any("left out" in note for note in found.notes)
    with pytest.raises(ValueError, match="no run of the plan fits in memory"):
        made(1e14, memory=1e3)


def test_a_pilot_centres_the_design(tmp_path: Path) -> None:
    """Its law, not the rule."""
    table = pilot_runs(tokens_per_parameter=100.0)
    path = tmp_path / "runs.parquet"
    table.to_parquet(path)
    for source in (path, tmp_path):
        pilot = load(source)
        assert set(pilot.laws) == {"llama"} and pilot.sizes == 5
        found = made(1e14, pilot)
        assert f"centred by 21 runs of {source}" in found.notes[0]
        ratios = [p.tokens / p.size for p in found.planned if p.centre]
        assert all(60 < ratio < 170 for ratio in ratios)
    assert pilot.law("other") is None, "the rule holds where there is no law"


def test_a_pilot_without_families_serves_all(tmp_path: Path) -> None:
    table = pilot_runs(20.0).drop(columns=FAMILY)
    path = tmp_path / "some.csv"
    table.to_csv(path, index=False)
    pilot = load(path)
    assert pilot.law("gpt2") is pilot.law("llama") is not None
    with pytest.raises(ValueError, match="there is no file"):
        load(tmp_path / "none.csv")


def test_the_rule_as_a_law_has_its_optimum_at_20() -> None:
    flops = np.array([1e12, 3e13])
    size = np.array([3e5, 2e6])
    points = Points.of(size, flops / 6 / size, flops)
    law = ruled(points, np.log(3.5))
    for budget in (1e11, 1e15):
        place = best_points(law, budget, 6.0)
        assert isinstance(place, Points)
        assert np.exp(place.y - place.x)[0] == pytest.approx(20.0)
    middle = Points(*(np.array([part.mean()]) for part in (points.x, points.y, points.c, points.u)))
    assert law.predict(middle)[0][0] < np.log(3.5) + 0.3


def test_ladders_grow_and_can_be_built() -> None:
    for shapes in LADDERS.values():
        sizes = [size(config) for config in shapes]
        assert len(shapes) == len(WIDTHS) and sizes == sorted(set(sizes))
        assert sizes[0] < 1e4 and sizes[-1] > 1e11
        assert np.diff(np.log2(sizes)).max() < 1.3
        assert sum(p.numel() for p in shapes[0].build().parameters()) == shapes[0].parameters().all


def test_unknown_architectures_are_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(LlamaConfig):
        name: ClassVar[str] = "odd"
        state: int

    with pytest.raises(ValueError, match="--arch odd: plans know architectures shaped by width"):
        ladder(Odd, vocab=8, context=8)
    assert named(None, {"odd": Odd, "gpt2": GPT2Config}) == [GPT2Config]
    with pytest.raises(ValueError, match="--arch 'mamba': known are gpt2, llama"):
        named(["llama", "mamba"], {"gpt2": GPT2Config, "llama": LlamaConfig})
    assert named(["llama", "llama"], ZOO) == [LlamaConfig]
