"""Do small points share a GPU by what they take, and large ones have it alone?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isoflop.orchestration import sharing
from isoflop.orchestration.cluster import Resources
from isoflop.orchestration.job import Job, execute
from isoflop.orchestration.sharing import CONTEXT, WHOLE, Sharing, shape
from isoflop.orchestration.slots import Slots, slots
from isoflop.run import AdamW, Run
from isoflop.training.checkpoint import write_json
from isoflop.training.distributed import Ranks
from isoflop.training.means import Means
from isoflop.training.memory import memory
from isoflop.training.micro import usable
from isoflop.training.process import keep_to
from models import LlamaConfig

MakeRun = Callable[..., Run]
H100 = 80 * 2**30


def test_eight_small_points_and_one_large(make_run: MakeRun) -> None:
    small = make_run("llama")
    large = make_run(LlamaConfig(context=32, width=4096, depth=24, heads=32))
    gpu = Sharing(H100)
    assert gpu.points(small) == 8
    assert gpu.points(large) == 1 and gpu.share(large) == 1.0, "4.8 B parameters, 78 GB"
    assert gpu.share(small) == pytest.approx(WHOLE / 8 - CONTEXT / H100)
    assert 8 * (gpu.share(small) * H100 + CONTEXT) <= WHOLE * H100 * 1.0001


def test_all_of_them_fit(make_run: MakeRun) -> None:
    """At every size of a GPU: what points take together, with CUDA's own, is there."""
    run = make_run(LlamaConfig(context=32, width=256, depth=4, heads=4), batch_tokens=32 * 64)
    needed = memory(run).needed
    numbers = []
    for gigabytes in range(1, 24):
        gpu = Sharing(gigabytes * 2**30)
        number = gpu.points(run)
        numbers.append(number)
        assert number == 1 or number * (needed + CONTEXT) <= gpu.total
    assert numbers == sorted(numbers) and {1, 2, 3, 4, 8} <= set(numbers)


def test_what_was_measured_counts(
    make_run: MakeRun, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = make_job(make_run("llama"), "done")
    split = make_job(make_run("gpt2"), "split")
    for job, parts in ((done, 1), (split, 2)):
        job.folder.mkdir()
        values = {"peak_bytes": 20 * 2**30, "accumulated": parts, "workers": 1}
        write_json(job.folder / "result.json", {"status": "finished", **values})
    monkeypatch.setattr(sharing, "memory", lambda run: pytest.fail("counted"))
    gpu = Sharing.learnt(H100, [done, split, make_job(make_run("llama"), "missing")])
    assert gpu.peaks == {shape(done.run): 20 * 2**30}
    assert gpu.points(done.run) == 3
    other = make_run("llama", seed=7, optimizer=AdamW(lr=1e-4), tokens=128)
    assert gpu.points(other) == 3, "the same shape"
    assert gpu.points(make_run("llama", batch_tokens=64)) == 8, "another one"


def test_slots(make_run: MakeRun, make_job: Callable[..., Job]) -> None:
    machine = Resources(cpus=16, gpus=2)
    runs = [make_run("llama"), make_run("gpt2")]

    def asked() -> Sharing:
        return Sharing(H100)

    found = slots(machine, 1, None, asked, runs)
    assert found.at_once == 16 and found.sharing == Sharing(H100)
    jobs = [make_job(run, str(number)) for number, run in enumerate(runs)]
    assert found.bundle_of(jobs[:1]) == {"CPU": 1, "GPU": 1 / 8}
    assert found.bundle_of(jobs) == {"CPU": 1, "GPU": 1}, "as one, they fill it"
    assert found.placed(jobs) is jobs
    assert slots(Resources(cpus=5, gpus=2), 1, None, asked, runs).at_once == 5
    assert slots(machine, 1, 3, asked, runs).at_once == 3
    for alone in (
        slots(machine, 1, 2, lambda: pytest.fail("not asked"), runs),
        slots(machine, 2, None, lambda: pytest.fail("not asked"), runs),
        slots(machine, 1, None, lambda: None, runs),
    ):
        assert alone.sharing is None and alone.bundle["GPU"] == 1 and alone.at_once <= 2
    assert slots(Resources(cpus=4, gpus=0), 1, None, asked, runs).sharing is None


def test_a_job_is_told_its_share(make_run: MakeRun, make_job: Callable[..., Job]) -> None:
    job = replace(make_job(make_run("llama")), means=Means(micro_batch=2))
    made = Slots(workers=1, at_once=8, gpu=True, sharing=Sharing(H100))
    (placed,) = made.placed([job])
    assert placed.means.micro_batch == 2 and 0.1 < placed.means.gpu < 0.125
    assert Slots(workers=1, at_once=1, gpu=True).placed([job]) == [job]
    assert execute(placed, Ranks(), lambda records: None)["peak_bytes"] is None, "of a processor"


def test_a_share_is_set_for_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "cuda" is the current one; torch takes a number here, or nothing."""
    seen: list[tuple[float, int | None]] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, at: seen.append((share, at))
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda at: {None: 0.5}[at])
    for device in ("cpu", "cuda", "cuda:1"):
        keep_to(device, 0.25)
    assert seen == [(0.25, None), (0.25, 1)]
    assert usable("cuda") == 50, "of 70 that others leave"


FAKE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import ray
ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
from conftest import tiny
from isoflop.campaign import Campaign, Machine
from isoflop.orchestration.job import result
from isoflop.orchestration.points import Slots, run_points
from isoflop.orchestration.sharing import Sharing
class Deaf:
    def started(self, job): ...
    def progressed(self, job, records): ...
    def ended(self, job, result): ...
study = tiny(Path(sys.argv[2]), tokens=8_000)
made = Campaign.prepare(study, Machine(storage=Path(sys.argv[3])), list(study.points)[:8], [])
slots = Slots(workers=1, at_once=4, gpu=True, sharing=Sharing(80 * 2**30))
run_points(made.chosen, slots, Path(sys.argv[3]) / "ray", Deaf())
found = [result(job.folder) for job in made.chosen]
print(json.dumps([[r["status"], r["started"], r["ended"], r["process"]] for r in found]))
ray.shutdown()
"""


@pytest.mark.slow
def test_ray_places_several_points_on_one_gpu(corpus: Path, tmp_path: Path) -> None:
    """Ray is told of a GPU that is not there: its counting is what is tried."""
    place = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", FAKE, place, str(corpus), str(tmp_path)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [status for status, *_ in rows] == ["finished"] * 8
    spans = [(started, ended) for _, started, ended, _ in rows]
    most = max(sum(a <= moment < b for a, b in spans) for moment, _ in spans)
    assert most >= 2, "side by side on the one GPU"
    assert len({process for *_, process in rows}) < 8, "in processes that are used again"


@pytest.mark.gpu
def test_a_share_is_kept_on_a_gpu(make_run: MakeRun, make_job: Callable[..., Job]) -> None:
    """A process takes no more than its share, and what a run took is measured and given back."""
    assert torch.cuda.is_available()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        job = replace(make_job(make_run("llama")), means=Means(gpu=2**30 / total))
        values = execute(job, Ranks(device="cuda"), lambda records: None)
        assert values["status"] == "finished" and 0 < values["peak_bytes"] < 2**30
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**31, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert Sharing.learnt(total, [job]).points(job.run) == 8
