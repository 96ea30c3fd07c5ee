"""Is our GPT-2 the GPT-2 of the transformers library?"""

import pytest
import torch

from isoflop.exchange.weights import from_theirs
from models import GPT2Config
from models.gpt2 import GPT2

transformers = pytest.importorskip("transformers", reason="parity needs the dev extra")


@pytest.fixture(scope="module")
def pair() -> tuple[GPT2, torch.nn.Module]:
    """Ours and theirs with the same random weights, biases and norms included."""
    torch.manual_seed(0)
    config = GPT2Config(vocab=101, context=32, width=48, depth=3, heads=4)
    shape = transformers.GPT2Config(
        vocab_size=101,
        n_positions=32,
        n_embd=48,
        n_layer=3,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(shape).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    ours = GPT2(config)
    ours.load_state_dict(from_theirs(config, theirs.state_dict()))
    return ours, theirs


def test_logits_equal_transformers(pair: tuple[GPT2, torch.nn.Module]) -> None:
    ours, theirs = pair
    tokens = torch.randint(101, (3, 32))
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1, "logits that are all alike would prove nothing"


def test_gradients_equal_transformers(pair: tuple[GPT2, torch.nn.Module]) -> None:
    ours, theirs = pair
    tokens, weights = torch.randint(101, (2, 16)), torch.randn(2, 16, 101) / 100
    expected = torch.autograd.grad(
        (theirs(tokens).logits * weights).sum(), list(theirs.parameters())
    )
    named = dict(zip((name for name, _ in theirs.named_parameters()), expected, strict=True))
    ours.zero_grad()
    (ours(tokens) * weights).sum().backward()
    for name, gradient in from_theirs(ours.config, named).items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5)


def test_the_published_sizes_count_as_published() -> None:
    """124,439,808 parameters: the sum over the checkpoint that OpenAI published as GPT-2 small."""
    count = GPT2Config(vocab=50257, context=1024, width=768, depth=12, heads=12).parameters()
    assert count.all == 124_439_808
    assert count.all - count.without_input_embedding == 1024 * 768
