"""Do the budgets of one size share a trunk through Ray, and end as they would have alone?"""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop import record
from isoflop.campaign import Campaign, Machine
from isoflop.design import Study, grid
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.job import execute
from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Text
from isoflop.training.distributed import Ranks
from models import LlamaConfig

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours


def campaign(corpus: Path, storage: Path) -> Campaign:
    def run(*, arch: str, width: int, tokens: int) -> Run:
        return Run(
            model=LlamaConfig(width=width, depth=1, heads=1, context=32),
            data=Text(source=str(corpus), tokenizer="bytes"),
            tokens=tokens,
            batch_tokens=128,
            optimizer=AdamW(lr=4e-3),
            schedule=Schedule(decay="wsd", warmup_steps=5, cooldown=0.2),
            evaluation=Evaluation(tokens=512, times=2),
            rollouts=Rollouts(prompts=("", "def "), seeds=2, new_tokens=8, captures=2, budget=1),
        )

    axes = grid(arch=["llama"], width=[8, 16], tokens=[4_000, 8_000, 16_000])
    study = Study(name="branches", run=run, points=axes, budget="tokens")
    return Campaign.prepare(study, Machine(storage=storage), list(study.points), [], quiet=True)


def test_a_study_with_trunks(
    ray_cluster: Resources, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = campaign(corpus, tmp_path / "shared")
    made.plan()
    shown = capsys.readouterr().out
    assert "4 runs cool down from a longer run's checkpoint: that saves " in shown
    assert made.go() == 0
    table = record.table(made.jobs).set_index("label")
    shared = table["flops_shared"] / table["flops"]
    assert (shared[table["tokens"] < 16_000] > 0.75).all()
    assert (shared[table["tokens"] > 15_000] == 0).all()
    assert not (tmp_path / "shared" / "branches" / "trunks").exists()

    alone = campaign(corpus, tmp_path / "alone")
    for job in alone.jobs:
        assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    expected = record.table(alone.jobs).set_index("label")
    assert (table["loss"] == expected["loss"]).all()
