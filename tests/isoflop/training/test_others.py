"""Do Lion and Muon move the weights as their papers say, learn, and go on after a stop?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from isoflop.run import AdamW, Lion, Muon, Parametrisation, Run
from isoflop.training import others
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Hooks, Inputs, train
from isoflop.training.optimizer import build, set_learning_rate
from models import ZOO, GPT2Config, MoEConfig

MakeRun = Callable[..., Run]
MakeInputs = Callable[[Run], Inputs]
ALL = [AdamW(lr=1e-2), Lion(lr=2e-3), Muon(lr=1e-2)]
NAMES = [config.name for config in ALL]


def test_lion_is_the_papers_rule() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3))
    optimizer = others.Lion([{"params": [weight], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.99))
    expected, momentum = weight.detach().clone(), torch.zeros(5, 3)
    for _ in range(4):
        grad = torch.randn(5, 3)
        weight.grad = grad.clone()
        optimizer.step()
        move = (0.9 * momentum + 0.1 * grad).sign()
        expected = expected - 0.01 * (move + 0.1 * expected)
        momentum = 0.99 * momentum + 0.01 * grad
        torch.testing.assert_close(weight.detach(), expected)


def test_muon_has_the_matrices_inside_and_adamw_the_rest() -> None:
    model = GPT2Config(vocab=32, context=16, width=16, depth=2, heads=2).build()
    optimizer = build(model, Muon(lr=0.1, weight_decay=0.0, clip=0.0))
    assert isinstance(optimizer, others.Joined)
    muon, adamw = optimizer.parts
    inner = [p for group in muon.param_groups for p in group["params"]]
    rest = [p for group in adamw.param_groups for p in group["params"]]
    assert {id(p) for p in [*inner, *rest]} == {id(p) for p in model.parameters()}
    assert len(inner) + len(rest) == len(list(model.parameters()))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    assert tables <= {id(p) for p in rest}
    before = [p.detach().clone() for p in inner]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    for old, new in zip(before, inner, strict=True):
        values = torch.linalg.svdvals((old - new).float())
        assert values.max() / values.min() < 4, "orthogonalised: singular values are alike"
    set_learning_rate(optimizer, 0.05)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.05}


def test_stacks_of_experts_are_left_to_adamw() -> None:
    model = MoEConfig(vocab=32, context=16, width=16, depth=2, heads=2).build()
    optimizer = build(model, Muon(lr=0.1))
    assert isinstance(optimizer, others.Joined)
    stacked = {id(p) for p in model.parameters() if p.ndim > 2}
    assert stacked
    assert stacked <= {id(p) for group in optimizer.parts[1].param_groups for p in group["params"]}


@pytest.mark.parametrize("optimizer", ALL, ids=NAMES)
def test_the_loss_falls_and_a_stopped_run_goes_on_to_the_bit(
    optimizer: AdamW, make_run: MakeRun, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    run = make_run("llama", optimizer=optimizer, tokens=60 * 128)
    whole = train(run, make_inputs(run), Ranks(), tmp_path / "whole")
    losses = [r["val/loss"] for r in whole.progress.history if "val/loss" in r]
    assert losses[-1] < losses[0] - 1.0
    looks = iter(range(100))
    hooks = Hooks(stop=lambda: next(looks) == 20)
    stopped = train(run, make_inputs(run), Ranks(), tmp_path / "parts", hooks)
    assert stopped.status == "stopped" and 0 < stopped.progress.step < 60
    resumed = train(run, make_inputs(run), Ranks(), tmp_path / "parts")

    def vector(model: nn.Module) -> Tensor:
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(vector(resumed.model), vector(whole.model))


@pytest.mark.parametrize("optimizer", ALL, ids=NAMES)
def test_it_is_part_of_the_run(optimizer: AdamW, make_run: MakeRun) -> None:
    run = make_run("gpt2", optimizer=optimizer)
    again = Run.from_json(json.loads(json.dumps(run.as_json())), ZOO)
    assert again == run and again.identity == run.identity
    assert type(again.optimizer) is type(optimizer)


def test_equal_settings_of_two_optimizers_are_two_runs(make_run: MakeRun) -> None:
    runs = [make_run("gpt2", optimizer=kind(lr=1e-3, betas=(0.9, 0.99))) for kind in (AdamW, Lion)]
    assert runs[0].identity != runs[1].identity


def test_what_is_unknown_is_named(make_run: MakeRun) -> None:
    values = make_run("gpt2").as_json()
    with pytest.raises(ValueError, match=r"optimizer.kind is 'sgd'; it must be one of adamw, lion"):
        Run.from_json({**values, "optimizer": {"kind": "sgd", "lr": 0.1}}, ZOO)
    with pytest.raises(ValueError, match="must be a table"):
        Run.from_json({**values, "optimizer": 0.1}, ZOO)
    with pytest.raises(ValueError, match=r"optimizer.momentum is 1"):
        Muon(lr=0.1, momentum=1.0)
    with pytest.raises(ValueError, match="whose rules are AdamW's"):
        make_run("gpt2", optimizer=Muon(lr=0.1), parametrisation=Parametrisation(kind="mup"))
