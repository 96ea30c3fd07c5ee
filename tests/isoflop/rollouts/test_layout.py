"""Matrices by columns while a model writes: the same function, and nothing is left behind."""

import pytest
import torch
from torch import nn

from isoflop.rollouts.layout import PAYS, by_columns
from models import GPT2Config, LlamaConfig, ModernConfig
from models.interface import Config, Model

SIZES = {"vocab": 40, "context": 16, "width": 16, "depth": 2, "heads": 2}
CONFIGS = [
    GPT2Config(**SIZES),
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, tied=True),
    ModernConfig(**SIZES, cap=15.0),
]


def built(config: Config) -> Model:
    torch.manual_seed(0)
    return config.build().eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}")
def test_a_model_by_columns_is_the_same_function(config: Config) -> None:
    model, tokens = built(config), torch.arange(12).view(2, 6)
    with torch.no_grad():
        expected = model(tokens)
        with by_columns(model, PAYS) as head:
            linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
            assert linear, "these models are made of linear layers"
            assert all(weight.stride() == (1, weight.shape[0]) for weight in linear)
            torch.testing.assert_close(head(model.hidden(tokens)), expected)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}")
def test_afterwards_every_weight_is_where_it_was(config: Config) -> None:
    model = built(config)
    before = {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()}
    with pytest.raises(KeyError), by_columns(model, PAYS):
        raise KeyError("whatever happens inside")
    assert before == {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()}
    assert not any("forward" in vars(module) for module in model.modules())


def test_tokens_are_still_looked_up_by_row() -> None:
    model = built(LlamaConfig(**SIZES, tied=True))
    table = model.matrix()
    assert table is not None
    with by_columns(model, PAYS):
        assert table.is_contiguous()


def test_few_steps_do_not_repay_the_copies() -> None:
    model = built(LlamaConfig(**SIZES))
    with by_columns(model, PAYS - 1):
        assert all(p.is_contiguous() for p in model.parameters())
