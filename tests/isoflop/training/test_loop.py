"""Does a run depend on what it is alone? To the bit: on no interruption, no look, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.data.rows import Rows
from isoflop.orchestration.job import Job, execute
from isoflop.rollouts.capture import read
from isoflop.run import AdamW, Checkpoints, Evaluation, Rollouts, Run, Schedule
from isoflop.training.checkpoint import Progress
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Hooks, Inputs, Outcome, Record, log_every, train
from models import ZOO, MoEConfig
from models.cache import CacheKind, KeyValueCache
from models.interface import Config, FlopCount, Model, ParameterCount
from models.moe import Routing

CLOCKS = {"seconds", "tokens_per_second", "data/waited", "utilisation"}
MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]
MakeJob = Callable[..., Job]


@dataclass(frozen=True, kw_only=True)
class DropoutConfig(Config):
    """A model that draws random numbers in every training step: each token from the one before."""

    name = "dropout"
    width: int = 16
    poison: float = 0.0  # added to all logits

    def build(self) -> Model:
        return Dropout(self)

    def parameters(self) -> ParameterCount:
        table = self.vocab * self.width
        return ParameterCount(all=table, without_input_embedding=table, without_embeddings=0)

    def flops_per_token(self, context: int | None = None) -> FlopCount:
        return FlopCount(body=0, attention=0, head=2 * self.width * self.vocab)


class Dropout(Model):
    def __init__(self, config: DropoutConfig) -> None:
        super().__init__()
        self.config: DropoutConfig = config
        self.embedding = nn.Embedding(config.vocab, config.width)

    def hidden(
        self, tokens: Tensor, cache: KeyValueCache | None = None, **places: Tensor | None
    ) -> Tensor:
        if cache is not None:
            cache.advance(tokens.shape[1])
        return F.dropout(self.embedding(tokens), 0.3, self.training)

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight) + self.config.poison

    def new_cache(self, batch: int, length: int, kind: CacheKind = "static") -> KeyValueCache:
        return KeyValueCache.allocate(
            layers=0, batch=batch, heads=1, capacity=length, size=1, like=self.embedding.weight
        )


NAMED = ["gpt2", "llama", "diffusion", "t5"]
ALL: list[str | Config] = [*NAMED, DropoutConfig(context=32)]
models = pytest.mark.parametrize("model", ALL, ids=[*NAMED, "dropout"])


def same(history: list[Record]) -> list[Record]:
    """Without what the clock and the machine say."""
    return [
        {k: v for k, v in record.items() if k not in CLOCKS and not k.startswith("system/")}
        for record in history
    ]


def losses(outcome: Outcome) -> list[float]:
    return [r["train/loss"] for r in outcome.progress.history if "train/loss" in r]


def assert_equal_weights(one: Model, other: Model) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def assert_same(one: Outcome, other: Outcome) -> None:
    """To the bit: every number of every record, and every weight."""
    assert same(one.progress.history) == same(other.progress.history)
    assert_equal_weights(one.model, other.model)


def stop_after(calls: int) -> Callable[[], bool]:
    """A stop file that appears after a number of looks at it."""
    asked = iter(range(calls))
    return lambda: next(asked, None) is None


# --- the seed is all that counts -----------------------------------------------------------------


@models
def test_the_same_run_gives_the_same_numbers(
    model: str | Config, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run(model)
    first = train(run, make_inputs(run), Ranks(), tmp_path / "a")
    torch.manual_seed(12345)  # whatever happened before in the process
    torch.rand(7)
    second = train(run, make_inputs(run), Ranks(), tmp_path / "b")
    assert first.status == "finished"
    assert len(losses(first)) == 20
    assert_same(first, second)


@models
def test_another_seed_gives_others(
    model: str | Config, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    first, second = (
        train(run, make_inputs(run), Ranks(), tmp_path / str(run.seed))
        for run in (make_run(model, seed=0), make_run(model, seed=1))
    )
    assert all(a != b for a, b in zip(losses(first), losses(second), strict=True))


def test_dropout_draws_anew_each_step_and_for_each_seed(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """The test model's random numbers matter, or the proofs above and below prove nothing."""
    run = make_run(DropoutConfig(context=32), tokens=128 * 3)
    inputs = make_inputs(run)

    class Same:
        def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows:
            return inputs.batches.batch(0)

    still = replace(run, optimizer=AdamW(lr=1e-30, weight_decay=0.0))
    found = losses(train(still, replace(inputs, batches=Same()), Ranks(), tmp_path))
    assert len(set(found)) == 3


def test_the_largest_seed_trains(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run(seed=2**64 - 1, tokens=256)
    assert train(run, make_inputs(run), Ranks(), tmp_path).status == "finished"


# --- interrupted = uninterrupted -----------------------------------------------------------------


@models
@pytest.mark.parametrize("looks", [0, 6, 18])
def test_a_stopped_run_goes_on_as_if_it_had_not(
    model: str | Config, looks: int, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run(model)
    whole = train(run, make_inputs(run), Ranks(), tmp_path / "whole")
    reports: list[Record] = []
    stopping = Hooks(stop=stop_after(looks), report=reports.extend)
    stopped = train(run, make_inputs(run), Ranks(), tmp_path / "parts", stopping)
    assert (stopped.status, stopped.progress.step) == ("stopped", looks + 1)
    torch.manual_seed(99)
    torch.rand(3)
    hooks = Hooks(report=reports.extend)
    resumed = train(run, make_inputs(run), Ranks(), tmp_path / "parts", hooks)
    assert resumed.status == "finished"
    assert_same(resumed, whole)
    assert same(reports) == same(whole.progress.history), "and nothing is reported twice"


def test_many_stops_and_records_of_several_steps(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """A record is the mean over the steps since the one before, evaluations between included."""
    run = make_run(
        DropoutConfig(context=32), tokens=310 * 128, evaluation=Evaluation(tokens=64, times=5)
    )
    assert log_every(run.steps) == 3
    whole = train(run, make_inputs(run), Ranks(), tmp_path / "whole")
    found = None
    for _ in range(30):
        hooks = Hooks(stop=stop_after(7))
        found = train(run, make_inputs(run), Ranks(), tmp_path / "parts", hooks)
        if found.status == "finished":
            break
    assert found is not None and found.status == "finished"
    assert_same(found, whole)


def test_a_stop_at_the_end_is_the_end(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run()
    outcome = train(run, make_inputs(run), Ranks(), tmp_path, Hooks(stop=stop_after(19)))
    assert outcome.status == "finished"


class Died(Exception):
    """What stands for the death of a process."""


class Broken:
    """Batches that end the process's luck at one step."""

    def __init__(self, inner: Any, step: int) -> None:
        self.inner, self.step = inner, step

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows:
        if step == self.step:
            raise Died
        rows: Rows = self.inner.batch(step, rank, world)
        return rows


@models
def test_a_crash_loses_only_the_steps_since_the_last_checkpoint(
    model: str | Config, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run(model, checkpoints=Checkpoints(seconds=0))
    whole = train(run, make_inputs(run), Ranks(), tmp_path / "whole")
    inputs = make_inputs(run)
    broken = replace(inputs, batches=Broken(inputs.batches, 13))
    with pytest.raises(Died):
        train(run, broken, Ranks(), tmp_path / "parts")
    steps: list[int] = []

    class Counted(Broken):
        def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows:
            steps.append(step)
            return super().batch(step, rank, world)

    counted = replace(inputs, batches=Counted(inputs.batches, -1))
    resumed = train(run, counted, Ranks(), tmp_path / "parts")
    assert steps == list(range(13, 20))
    assert_same(resumed, whole)


def test_a_finished_run_is_not_trained_again(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """Killed after its last checkpoint and before its result: there is nothing left to repeat."""
    run = make_run()
    inputs = make_inputs(run)
    whole = train(run, inputs, Ranks(), tmp_path)
    warnings: list[str] = []
    broken = replace(inputs, batches=Broken(inputs.batches, 0))
    again = train(run, broken, Ranks(), tmp_path, Hooks(warn=warnings.append))
    assert again.status == "finished" and warnings == []
    assert_same(again, whole)


def test_checkpoints_are_written_by_the_clock(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    def saved_before_each_step(seconds: float, folder: Path) -> list[list[str]]:
        run = make_run(checkpoints=Checkpoints(seconds=seconds))
        inputs = make_inputs(run)
        seen = []

        class Watching(Broken):
            def batch(self, step: int, rank: int = 0, world: int = 1) -> Rows:
                seen.append(sorted(path.name for path in folder.glob("step-*")))
                return super().batch(step, rank, world)

        train(run, replace(inputs, batches=Watching(inputs.batches, -1)), Ranks(), folder)
        return seen

    always = saved_before_each_step(0.0, tmp_path / "always")
    assert always[0] == []
    assert [names[-1] for names in always[1:]] == [f"step-{step:08d}" for step in range(1, 20)]
    assert saved_before_each_step(1e9, tmp_path / "never") == [[]] * 20
    assert [path.name for path in (tmp_path / "never").iterdir()] == ["step-00000020"]


# --- looking changes nothing ---------------------------------------------------------------------


def tiny(kind: type[Config]) -> Config:
    """One of a kind, as small as it goes; not every model has heads."""
    shape = {"context": 32, "width": 16, "depth": 1, "heads": 2}
    known = {part.name for part in fields(kind)}
    return kind(**{name: value for name, value in shape.items() if name in known})


@pytest.mark.parametrize(
    "model",
    [*(tiny(kind) for kind in ZOO.values()), DropoutConfig(context=32)],
    ids=[*ZOO, "dropout"],
)
def test_capture_changes_no_bit(model: str | Config, make_run: MakeRun, make_job: MakeJob) -> None:
    asked = Rollouts(prompts=("", "def ", "x = "), seeds=2, new_tokens=12, captures=6, budget=1e6)
    reported: dict[str, list[Record]] = {"with": [], "without": []}
    weights = {}
    for name, rollouts in (("with", asked), ("without", Rollouts())):
        job = make_job(make_run(model, rollouts=rollouts), folder=name)
        values = execute(job, Ranks(), reported[name].extend)
        assert values["status"] == "finished", values.get("traceback")
        path = job.folder / "checkpoints" / "step-00000020" / "model.safetensors"
        weights[name] = path.read_bytes()
    assert weights["with"] == weights["without"]

    def plain(history: list[Record]) -> list[Record]:
        return [
            {k: v for k, v in r.items() if "rollout" not in k and "capture" not in k}
            for r in same(history)
        ]

    assert plain(reported["with"]) == plain(reported["without"])
    captured = [r["step"] for r in reported["with"] if any("rollout/" in k for k in r)]
    assert captured == [0, 2, 3, 6, 11, 20]


@models
def test_evaluation_changes_no_bit(
    model: str | Config, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    often = make_run(model, evaluation=Evaluation(tokens=1024, times=5))
    once = make_run(model, evaluation=Evaluation(tokens=32, times=1))
    first = train(often, make_inputs(often), Ranks(), tmp_path / "often")
    second = train(once, make_inputs(once), Ranks(), tmp_path / "once")
    assert losses(first) == losses(second)
    assert_equal_weights(first.model, second.model)
    evaluated = [
        [r["step"] for r in outcome.progress.history if "val/loss" in r]
        for outcome in (first, second)
    ]
    assert evaluated == [[0, 1, 2, 5, 10, 20], [0, 20]]


def test_a_capture_is_asked_at_its_steps_with_the_model_of_that_step(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("gpt2")
    seen: dict[int, Tensor] = {}

    class Capture:
        steps = (0, 7, 20)

        def __call__(
            self, model: Model, *, step: int, progress: Progress, averaged: Model | None
        ) -> Record:
            assert step == progress.step
            seen[step] = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
            return {"rollout/x": float(step)}

    outcome = train(run, make_inputs(run), Ranks(), tmp_path, Hooks(capture=Capture()))
    assert list(seen) == [0, 7, 20]
    torch.manual_seed(run.seed)
    fresh = run.model.build()
    assert torch.equal(seen[0], nn.utils.parameters_to_vector(fresh.parameters()))
    assert torch.equal(seen[20], nn.utils.parameters_to_vector(outcome.model.parameters()))
    assert not torch.equal(seen[7], seen[20])
    found = {r["step"]: r["rollout/x"] for r in outcome.progress.history if "rollout/x" in r}
    assert found == {0: 0.0, 7: 7.0, 20: 20.0}


def test_a_capture_beyond_the_budget_is_skipped_and_said(
    make_run: MakeRun, make_job: MakeJob
) -> None:
    """What passes is left out, what is kept is put off."""
    asked = Rollouts(prompts=("a", "b"), seeds=8, new_tokens=24, captures=6, budget=0.0)
    job = make_job(make_run(rollouts=asked))
    history: list[Record] = []
    execute(job, Ranks(), history.extend)
    assert [r["step"] for r in history if "capture/skipped" in r] == [2, 3, 6, 11]
    assert [r["step"] for r in history if "capture/later" in r] == [0, 20]
    assert not len(read(job.folder / "rollouts"))


# --- what a record says --------------------------------------------------------------------------


def test_what_a_model_says_of_itself_is_in_every_record(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """A mixture's router: how evenly experts are used, how sure it is, how many picks it drops."""
    routing = Routing(experts=4, top=2, capacity=1.0)
    run = make_run(MoEConfig(context=32, width=16, depth=2, heads=2, routing=routing))
    history = train(run, make_inputs(run), Ranks(), tmp_path).progress.history
    for record in history[1:]:
        assert 1 / 4 <= record["router/utilisation"] <= 1
        assert 0 < record["router/entropy"] <= math.log(4) + 1e-6
        assert 0 <= record["router/dropped"] < 1
    assert any(record["router/dropped"] > 0 for record in history[1:])


@models
def test_records_say_where_they_are(
    model: str | Config, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run(model, schedule=Schedule(decay="linear", warmup=0.1, final=0.0))
    history = train(run, make_inputs(run), Ranks(), tmp_path).progress.history
    assert [r["step"] for r in history] == list(range(21))
    per_token = run.model.flops_per_token().training
    for record in history:
        assert record["tokens"] == record["step"] * 128
        assert record["flops"] == record["tokens"] * per_token
    assert "train/loss" not in history[0] and history[0]["seconds"] == 0
    assert history[-1]["flops"] == run.training_flops
    assert history[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-12)
    assert max(r["learning_rate"] for r in history[1:]) == pytest.approx(run.optimizer.lr)
    seconds = [r["seconds"] for r in history]
    assert seconds == sorted(seconds) and seconds[-1] > 0
    assert all(r["gradient_norm"] > 0 and r["tokens_per_second"] > 0 for r in history[1:])
    assert all(0 < r["data/waited"] < 1 for r in history[1:])


def test_the_first_loss_is_that_of_the_initial_weights(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("llama")
    inputs = make_inputs(run)
    history = train(run, inputs, Ranks(), tmp_path).progress.history
    torch.manual_seed(run.seed)
    model = run.model.build()
    ids = torch.from_numpy(inputs.batches.batch(0).ids)
    ids, targets = ids[:, :-1], ids[:, 1:]
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()).item()
    assert history[1]["train/loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("steps", "every"), [
    (1, 1), (99, 1), (199, 1), (200, 2), (5_000, 50), (10**6, 50)
])  # fmt: skip
def test_log_every(steps: int, every: int) -> None:
    assert log_every(steps) == every


# --- how a run ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["poisoned", "learning rate"])
def test_a_diverged_run_says_so_at_once(way: str, make_run: MakeRun, make_job: MakeJob) -> None:
    if way == "poisoned":
        run = make_run(DropoutConfig(context=32, poison=float("inf")))
    else:
        run = make_run("gpt2", optimizer=AdamW(lr=1e30, clip=0.0))
    job = make_job(run)
    history: list[Record] = []
    values = execute(job, Ranks(), history.extend)
    assert values["status"] == "diverged"
    assert values["error"] == f"loss not finite at step {values['step']}"
    assert 1 <= values["step"] < 20
    assert values["loss"] is None and values["bits_per_byte"] is None
    last = history[-1]
    assert not math.isfinite(last["train/loss"])
    assert (last["step"], last["tokens"]) == (values["step"], values["step"] * 128)
    assert all("step" in record for record in history), "trackers and tables go by it"


def test_an_error_in_the_model_is_the_callers(
    make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run()
    inputs = make_inputs(run)
    with pytest.raises(Died):
        train(run, replace(inputs, batches=Broken(inputs.batches, 3)), Ranks(), tmp_path)
    assert not tmp_path.joinpath("step-00000003").exists()
