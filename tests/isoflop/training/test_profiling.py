"""Does a profile say where the time of a step goes, in a trace that viewers open?"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from isoflop.run import Run
from isoflop.training.loop import Inputs
from isoflop.training.profiling import STEPS, profile


@pytest.mark.parametrize("model", ["llama", "t5", "diffusion"])
def test_parts_add_up_and_the_trace_is_one(
    model: str,
    make_run: Callable[..., Run],
    make_inputs: Callable[[Run], Inputs],
    tmp_path: Path,
) -> None:
    run = make_run(model)
    found = profile(run, make_inputs(run).batches, tmp_path / "profile")
    names = [part.name for part in found.parts]
    assert names == ["data", "copy", "forward", "backward", "clip", "optimizer"]
    assert sum(part.share for part in found.parts) == pytest.approx(1.0)
    assert all(part.calls == 1 and part.milliseconds > 0 for part in found.parts)
    flops = run.model.flops_per_token().training
    assert found.flops_per_second == pytest.approx(found.tokens_per_second * flops)
    assert found.operations[0].milliseconds >= found.operations[-1].milliseconds

    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    marked = [event for event in trace["traceEvents"] if event.get("name") == "backward"]
    assert len([event for event in marked if event.get("ph") == "X"]) >= STEPS
    assert json.loads((tmp_path / "profile" / "parts.json").read_text())["step"] == found.step
    assert "ui.perfetto.dev" in str(found) and "backward" in str(found)


@pytest.mark.gpu
def test_on_a_gpu_memory_is_kept_too(
    make_run: Callable[..., Run], make_inputs: Callable[[Run], Inputs], tmp_path: Path
) -> None:
    assert torch.cuda.is_available()
    run = make_run("llama")
    found = profile(run, make_inputs(run).batches, tmp_path / "profile", fine=True)
    assert found.peak_bytes > 0
    assert (tmp_path / "profile" / "memory.pickle").stat().st_size > 0
