"""Is a batch in parts the same batch, and does a run survive that its memory runs out?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop import objectives
from isoflop.data.rows import Rows, row_seeds, sample
from isoflop.objectives import Batch
from isoflop.orchestration.job import Job, execute, result
from isoflop.run import Evaluation, Run, Text
from isoflop.targets import Autoregressive
from isoflop.training import micro
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Hooks, Inputs, Outcome, train
from isoflop.training.means import Means
from isoflop.training.memory import memory
from isoflop.training.micro import NOTE, choose, largest
from isoflop.training.step import gradients
from models import GPT2Config, LlamaConfig
from models.interface import Config, FlopCount, Model, ParameterCount

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]


def losses(outcome: Outcome) -> list[float]:
    return [r["train/loss"] for r in outcome.progress.history if "train/loss" in r]


# --- parts are the whole -------------------------------------------------------------------------


def batch_of(run: Run, rows: int, documents: bool) -> Batch:
    """Rows of random ids; with documents, the later rows have ever more padding."""
    made = sample(rows, run.model.context, run.model.text_vocab)
    if documents:
        ids = torch.zeros(made.ids.shape, dtype=torch.int32).numpy()
        for row in range(rows):
            ids[row, made.ids.shape[1] - 4 * row :] = -1
        made = Rows(ids=made.ids, seeds=row_seeds(0, 0, 0, rows), documents=ids)
    return objectives.build(run.objective, run.model).batch(made)


def passed(run: Run, batch: Batch, rows: int | None) -> tuple[float, Tensor]:
    """The loss, and the gradient of all weights."""
    torch.manual_seed(1)
    model = run.model.build()
    objective = objectives.build(run.objective, run.model)
    loss = gradients(model, objective, batch, run, Ranks(), rows=rows)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return float(loss), nn.utils.parameters_to_vector(found)


@pytest.mark.parametrize("rows", [1, 2, 4, 7])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "diffusion", "t5"])
def test_gradients_of_parts_add_up(
    name: str, documents: bool, rows: int, make_run: MakeRun
) -> None:
    """Of seven rows, with and without padding: to the rounding of float32."""
    run = make_run(name, batch_tokens=7 * 32)
    batch = batch_of(run, 7, documents)
    whole, part = passed(run, batch, None), passed(run, batch, rows)
    assert part[0] == pytest.approx(whole[0], rel=2e-6)
    torch.testing.assert_close(part[1], whole[1], rtol=1e-4, atol=1e-7)
    if rows == 7:
        assert part[0] == whole[0] and torch.equal(part[1], whole[1])


def test_the_mean_is_over_tokens_and_not_over_parts(make_run: MakeRun) -> None:
    """Rows of unequally many predicted tokens: the mean of the parts' means is another number."""
    run = make_run("gpt2", batch_tokens=7 * 32)
    batch = batch_of(run, 7, documents=True)
    means = [passed(run, part, None)[0] for part in batch.parts(3)]
    whole = passed(run, batch, None)[0]
    assert abs(sum(means) / len(means) - whole) > 4e-5 * whole
    assert passed(run, batch, 3)[0] == pytest.approx(whole, rel=2e-6)


@pytest.mark.parametrize(("rows", "sizes"), [
    (1, [1] * 7), (2, [1, 2, 2, 2]), (3, [2, 2, 3]), (4, [3, 4]), (6, [3, 4]), (7, [7]), (99, [7])
])  # fmt: skip
def test_parts_are_nearly_equal(rows: int, sizes: list[int], make_run: MakeRun) -> None:
    batch = batch_of(make_run("t5", batch_tokens=7 * 32), 7, documents=True)
    parts = batch.parts(rows)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    for name, value in batch.inputs.items():
        assert torch.equal(torch.cat([part.inputs[name] for part in parts]), value)


def test_a_run_in_parts_is_the_run(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("llama", evaluation=Evaluation(tokens=512, times=2, noise_scale=True))
    whole = train(run, make_inputs(run), Ranks(), tmp_path / "whole")
    parts = train(run, make_inputs(run), Ranks(), tmp_path / "parts", means=Means(micro_batch=1))
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(parts) != losses(whole), "else nothing was split"
    assert (whole.computed["accumulated"], parts.computed["accumulated"]) == (1, 4)
    for name in ("val/loss", "gradient/noise"):
        one, other = (o.progress.history[-1][name] for o in (whole, parts))
        assert other == pytest.approx(one, rel=1e-3)


# --- memory runs out -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NarrowConfig(Config):
    """A model with dropout that, from its `after`-th pass in training on, holds only so many
    rows."""

    name = "narrow"
    holds: int = 1
    after: int = 0
    width: int = 16

    def build(self) -> Model:
        return Narrow(self)

    def parameters(self) -> ParameterCount:
        table = self.vocab * self.width
        return ParameterCount(all=table, without_input_embedding=table, without_embeddings=0)

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        return FlopCount(body=0, attention=0, head=2 * self.width * self.vocab)


class Narrow(Model):
    config: NarrowConfig

    def __init__(self, config: NarrowConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.passes = 0

    def hidden(self, tokens: Tensor, cache: Any = None, **places: Tensor | None) -> Tensor:
        self.passes += self.training
        rows = len(tokens)
        if self.training and self.passes > self.config.after and rows > self.config.holds:
            torch.rand(5)  # what was drawn in vain must not count
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return F.dropout(self.embedding(tokens), 0.3, self.training)

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)

    def new_cache(self, batch: int, length: int, kind: str = "static") -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(("holds", "sizes"), [(3, [4]), (2, [4]), (1, [4, 2])])
def test_out_of_memory_halves_and_goes_on_with_the_same_step(
    holds: int, sizes: list[int], make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """To the bit the run that had the smaller size from the first step on, dropout included."""
    narrow = make_run(NarrowConfig(context=32, holds=holds))
    said: list[str] = []
    found = train(narrow, make_inputs(narrow), Ranks(), tmp_path / "a", Hooks(warn=said.append))
    assert found.status == "finished"
    assert found.computed["out_of_memory"] == sizes and len(said) == len(sizes)
    assert "out of memory with 4 rows at once, going on with 2: CUDA out of memory" in said[0]
    rows = found.computed["micro_batch"]
    assert rows == sizes[-1] // 2
    given = train(
        narrow, make_inputs(narrow), Ranks(), tmp_path / "b", means=Means(micro_batch=rows)
    )
    assert losses(found) == losses(given)
    assert given.computed["out_of_memory"] == []


def test_out_of_memory_later_keeps_the_steps_before(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    wide = make_run(NarrowConfig(context=32, holds=99))
    late = make_run(NarrowConfig(context=32, holds=2, after=10))
    whole = train(wide, make_inputs(wide), Ranks(), tmp_path / "a")
    found = train(late, make_inputs(late), Ranks(), tmp_path / "b")
    assert losses(found)[:10] == losses(whole)[:10] and losses(found)[10:] != losses(whole)[10:]
    assert losses(found) == pytest.approx(losses(whole), rel=0.1), "another dropout, the same rows"


def test_a_run_that_goes_on_knows_its_size(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run(NarrowConfig(context=32, holds=2))
    whole = train(run, make_inputs(run), Ranks(), tmp_path / "whole")
    looks = iter(range(6))
    hooks = Hooks(stop=lambda: next(looks, None) is None)
    assert train(run, make_inputs(run), Ranks(), tmp_path / "a", hooks).status == "stopped"
    said: list[str] = []
    found = train(run, make_inputs(run), Ranks(), tmp_path / "a", Hooks(warn=said.append))
    assert said == [] and losses(found) == losses(whole)
    assert json.loads((tmp_path / "a" / NOTE).read_text())["rows"] == 2


def test_one_row_too_many_is_the_error_itself(
    make_run: MakeRun, make_job: Callable[..., Job]
) -> None:
    values = execute(make_job(make_run(NarrowConfig(context=32, holds=0))), Ranks(), lambda r: None)
    assert values["status"] == "failed"
    assert values["error"].startswith("OutOfMemoryError: CUDA out of memory")
    assert len(values["warnings"]) == 2, "4 to 2, 2 to 1"


def test_another_error_is_not_tried_again(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("gpt2")
    model = run.model.build()
    made = micro.Micro(model=model, ranks=Ranks(), folder=tmp_path, share=4, rows=4)
    calls: list[int] = []

    def attempt() -> None:
        calls.append(made.rows)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        made.steadily(attempt, print)
    assert calls == [4]


def test_where_one_row_does_not_fit_layers_are_computed_twice(
    make_run: MakeRun, tmp_path: Path
) -> None:
    model = make_run("llama").model.build()
    made = micro.Micro(model=model, ranks=Ranks(), folder=tmp_path, share=4, rows=1)
    said: list[str] = []

    def attempt() -> str:
        if not made.checkpointing:
            raise torch.OutOfMemoryError("none left")
        return "done"

    assert made.steadily(attempt, said.append) == "done"
    assert "with 1, computing each layer twice" in said[0]
    assert made.described()["checkpointing"] is True
    assert json.loads((tmp_path / NOTE).read_text()) == {"rows": 1, "checkpointing": True}
    with pytest.raises(torch.OutOfMemoryError):
        made.steadily(lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("x")), said.append)


def test_a_group_starts_again_with_less(make_run: MakeRun, tmp_path: Path) -> None:
    """Its other ranks wait for this one's gradients, so that it cannot try again by itself."""
    model = make_run("gpt2").model.build()
    made = micro.Micro(model=model, ranks=Ranks(world=2), folder=tmp_path, share=8, rows=8)
    tries: list[int] = []

    def attempt() -> None:
        tries.append(made.rows)
        raise torch.OutOfMemoryError("none left")

    with pytest.raises(torch.OutOfMemoryError):
        made.steadily(attempt, print)
    assert tries == [8] and json.loads((tmp_path / NOTE).read_text())["rows"] == 4


def test_a_processors_memory_runs_out(
    make_run: MakeRun,
    make_job: Callable[..., Job],
    start_jobs: Callable[..., list[subprocess.Popen[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address space is limited to what a quarter of the batch takes: in a process of its own,
    which has no memory that others have left."""
    model = GPT2Config(context=128, width=128, depth=6, heads=4)
    run = make_run(
        model, batch_tokens=64 * 128, tokens=64 * 128, evaluation=Evaluation(tokens=256, times=1)
    )
    quarter = memory(replace(run, batch_tokens=16 * 128)).needed
    assert memory(run).needed > 2 * quarter
    job = make_job(run)
    monkeypatch.setenv("MEMORY_LEFT", str(quarter))
    (process,) = start_jobs([job], 1)
    _, errors = process.communicate(timeout=180)
    values = result(job.folder) or {}
    assert values["status"] == "finished", errors
    assert 1 <= values["micro_batch"] <= 32 and values["out_of_memory"][0] == 64
    assert "allocate memory" in values["warnings"][0]
    assert values["accumulated"] == 64 // values["micro_batch"]


# --- the size to begin with ----------------------------------------------------------------------


def line(fixed: int, each: int, asked: list[int], breaks: int = 10**9) -> micro.Peak:
    """So much and so much more with every row; None (out of memory) from `breaks` on."""

    def peak(rows: int) -> int | None:
        asked.append(rows)
        took = fixed + each * rows
        return None if took >= breaks else took

    return peak


@pytest.mark.parametrize(("share", "room", "found"), [
    (64, 10**6, 64), (64, 100 + 10 * 64, 64), (64, 100 + 10 * 64 - 1, 63), (64, 250, 15),
    (64, 120, 2), (64, 119, 1), (64, 110, 1), (64, 109, 0), (1, 110, 1), (1, 50, 0), (2, 120, 2),
])  # fmt: skip
def test_the_largest_that_fits(share: int, room: int, found: int) -> None:
    asked: list[int] = []
    assert largest(line(100, 10, asked), share, room) == found
    assert len(asked) <= 5 and max(asked) <= share


def test_memory_that_runs_out_early_or_grows_late_is_found_out() -> None:
    """Trials see more than a line foretells: less than was said to be there, or chunked logits."""
    found = largest(line(100, 10, [], breaks=400), 1000, 10_000)
    assert found <= 29, "never what failed"

    def chunked(rows: int) -> int:
        return 100 + 10 * min(rows, 8) + 2 * rows

    sure = largest(chunked, 1000, 600)
    assert 180 <= sure <= 210 and chunked(sure) <= 600


def chosen(run: Run, folder: Path, means: Means | None = None) -> micro.Micro:
    model = run.model.build()
    objective = objectives.build(run.objective, run.model)
    first = lambda: batch_of(run, run.rows, documents=False)  # noqa: E731
    return choose(model, objective, first, run, Ranks(), folder, means or Means())


def test_on_a_processor_the_count_decides(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_run(LlamaConfig(context=32, width=32, depth=2, heads=2), batch_tokens=32 * 64)
    needs = [memory(replace(run, batch_tokens=32 * rows)).needed for rows in (10, 64)]
    monkeypatch.setattr(micro, "own_share", lambda: needs[1])
    assert chosen(run, tmp_path).rows == 64 and not (tmp_path / NOTE).exists()
    monkeypatch.setattr(micro, "own_share", lambda: needs[0])
    made = chosen(run, tmp_path)
    assert (made.rows, made.parts, made.checkpointing) == (10, 7, False)
    monkeypatch.setattr(micro, "own_share", lambda: needs[1])
    assert chosen(run, tmp_path).rows == 10, "as it was when the run began"
    assert chosen(run, tmp_path, Means(micro_batch=64)).rows == 64
    monkeypatch.setattr(micro, "own_share", lambda: 1000)
    made = chosen(run, tmp_path / "other")
    assert (made.rows, made.checkpointing) == (1, True)


def test_a_small_step_is_not_counted(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It takes seconds, and a grid of small runs has none to give."""
    monkeypatch.setattr(micro, "memory", lambda run: pytest.fail("counted"))
    assert chosen(make_run("gpt2"), tmp_path).rows == 4


def test_rows_that_are_compared_are_not_split(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("gpt2", objective=Autoregressive(contrast=0.1))
    with pytest.raises(ValueError, match=r"--micro-batch is 2, but objective\.contrast"):
        chosen(run, tmp_path, Means(micro_batch=2))
    made = chosen(run, tmp_path, Means(micro_batch=4))
    assert made.rows == 4
    with pytest.raises(ValueError, match="--micro-batch is 0; it must be at least 1 row"):
        Means(micro_batch=0)


def test_the_size_is_no_part_of_a_run(make_run: MakeRun, make_job: Callable[..., Job]) -> None:
    run = make_run("gpt2", data=Text(source="x", tokenizer="bytes", validation=0.1))
    job = replace(make_job(run), means=Means(micro_batch=1))
    assert "micro" not in json.dumps(job.run.as_json())


# --- on a GPU ------------------------------------------------------------------------------------


@contextmanager
def fraction(bytes_: int) -> Iterator[None]:
    """Only so much of the GPU for this process."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(bytes_ / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.fixture
def gpu_run(make_run: MakeRun) -> Run:
    """Some 20 MB of activations a row, and 256 rows: 5 GB."""
    model = LlamaConfig(context=256, width=256, depth=8, heads=4)
    return make_run(
        model, batch_tokens=256 * 256, tokens=3 * 256 * 256,
        evaluation=Evaluation(tokens=1024, times=1), precision="float32",
    )  # fmt: skip


@pytest.mark.gpu
def test_a_gpu_is_probed(gpu_run: Run, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """In 2 GB the run begins with what fits, and never runs out."""
    assert torch.cuda.is_available()
    whole = train(gpu_run, make_inputs(gpu_run), Ranks(device="cuda"), tmp_path / "whole")
    assert whole.computed["accumulated"] == 1
    with fraction(2 * 2**30):
        parts = train(gpu_run, make_inputs(gpu_run), Ranks(device="cuda"), tmp_path / "parts")
    assert parts.status == "finished" and parts.computed["out_of_memory"] == []
    assert 2 <= parts.computed["micro_batch"] < 256
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.gpu
def test_a_gpu_runs_out_and_the_run_goes_on(
    gpu_run: Run, make_inputs: MakeInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real allocation that fails, since the whole batch is insisted on."""
    assert torch.cuda.is_available()
    said: list[str] = []
    means = Means(micro_batch=256)
    with fraction(2 * 2**30):
        found = train(
            gpu_run, make_inputs(gpu_run), Ranks(device="cuda"), tmp_path, Hooks(warn=said.append),
            means,
        )  # fmt: skip
    assert found.status == "finished"
    assert found.computed["out_of_memory"][0] == 256 > found.computed["micro_batch"]
    assert "out of memory" in said[0]
    assert all(torch.isfinite(torch.tensor(losses(found))))
