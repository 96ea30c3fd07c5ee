"""Is it told what a run takes of its machine, without touching the run?"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from isoflop.orchestration import system
from isoflop.orchestration.job import Job, execute
from isoflop.orchestration.system import Meter, gpu
from isoflop.run import Run
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record

MakeRun = Callable[..., Run]
MakeJob = Callable[..., Job]


def test_a_run_tells_memory_processor_and_its_share_of_the_peak(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    told: list[Record] = []
    job = make_job(make_run())
    values = execute(job, Ranks(), told.extend)
    (looked,) = [record for record in told if "system/system_memory_usage_megabytes" in record]
    assert looked["system/process_memory_megabytes"] > 50, "torch alone is more"
    whole = looked["system/system_memory_usage_megabytes"]
    assert looked["system/process_memory_megabytes"] < 1.5 * whole
    assert 0 < looked["system/system_memory_usage_percentage"] <= 100
    reached = [record["utilisation"] for record in told if "utilisation" in record]
    assert reached and all(0 < share < 2 for share in reached), "2: the peak was timed under load"
    assert values["utilisation"] == reached[-1]
    kept = json.loads((job.folder / "history.json").read_text())
    assert not any("utilisation" in record for record in kept), "the run's own record is its alone"


def test_it_looks_now_and_then(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Record] = []
    meter = Meter(make_run(), Ranks(), told.extend)
    meter([{"step": 0}])
    meter([{"step": 1}, {"step": 2}])
    monkeypatch.setattr(system, "SECONDS", 0.0)
    meter([{"step": 3}, {"step": 4}])
    meter([])
    looked = [record["step"] for record in told if "system/process_memory_megabytes" in record]
    assert looked == [0, 4]


def test_only_the_rank_that_leads_looks(make_run: MakeRun) -> None:
    told: list[Record] = []
    Meter(make_run(), Ranks(rank=1, world=2), told.extend)([{"step": 0, "tokens_per_second": 9.0}])
    assert told == [{"step": 0, "tokens_per_second": 9.0}]


def test_a_processor_has_no_gpu() -> None:
    assert gpu("cpu") == {}


@pytest.mark.gpu
def test_a_gpu_tells_its_memory() -> None:
    held = torch.zeros(2**26, device="cuda")  # 256 MiB
    found = gpu("cuda")
    assert found["system/gpu_process_memory_megabytes"] >= held.nbytes / 1e6
    assert found["system/gpu_memory_usage_megabytes"] >= held.nbytes / 1e6
    assert 0 < found["system/gpu_memory_usage_percentage"] <= 100
