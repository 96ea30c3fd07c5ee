"""Are the hand-written functions torch's own, gradients included, and products in parts as well?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import kernels
from models.layers import RMSNorm, gated_gelu, gelu, product, products, soft_cap, squared_relu


def theirs_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def our_cap(x: Tensor) -> Tensor:
    return soft_cap(x, 3.0)


PAIRS = {
    "gelu": (gelu, theirs_gelu),
    "squared relu": (squared_relu, lambda x: F.relu(x).square()),
    "cap": (our_cap, lambda x: 3.0 * torch.tanh(x / 3.0)),
}
Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return PAIRS[request.param]


def gradients(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, leaf, weights)[0]


def norms(width: int, dtype: torch.dtype = torch.float32) -> tuple[RMSNorm, torch.nn.RMSNorm]:
    """Ours and torch's with the same weights."""
    ours = RMSNorm(width, epsilon=1e-3).to(dtype)
    theirs = torch.nn.RMSNorm(width, eps=1e-3, dtype=dtype)
    with torch.no_grad():
        ours.weight.copy_(torch.rand(width) + 0.5)
        theirs.weight.copy_(ours.weight)
    return ours, theirs


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 10), (1, 1, 2)])
def test_values_and_gradients_equal_torchs(pair: Pair, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = 4 * torch.randn(shape)
    for ours, theirs in zip(*(gradients(function, x) for function in pair), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


def test_gradients_equal_finite_differences(pair: Pair) -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pair[0], x)


def test_large_inputs_stay_finite(pair: Pair) -> None:
    x = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 1e4])
    for ours, theirs in zip(*(gradients(function, x) for function in pair), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


def test_values_are_the_same_without_gradients(pair: Pair) -> None:
    x = torch.randn(3, 8)
    with torch.no_grad():
        quiet = pair[0](x)
    assert torch.equal(quiet, pair[0](x.requires_grad_()).detach())


@pytest.mark.parametrize("function", [gelu, squared_relu])
def test_a_spent_input_gives_the_same(function: Callable[..., Tensor]) -> None:
    x, weight = 4 * torch.randn(5, 8), torch.randn(6, 8, requires_grad=True)

    def found(spent: bool) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        y = function(F.linear(leaf, weight), spent=spent)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (leaf, weight))

    for ours, theirs in zip(found(True), found(False), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 10)])
def test_a_gate_opens_as_torchs_does(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate, up, weights = (2 * torch.randn(shape, dtype=torch.float64) for _ in range(3))

    def found(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
        y = function(1 * leaves[0], leaves[1])
        return y.detach(), *torch.autograd.grad(y, leaves, weights)

    theirs = found(lambda gate, up: theirs_gelu(gate) * up)
    for ours, other in zip(found(gated_gelu), theirs, strict=True):
        torch.testing.assert_close(ours, other)
    with torch.no_grad():
        torch.testing.assert_close(gated_gelu(gate.clone(), up), theirs[0])


def test_inputs_are_left_as_they_were(pair: Pair) -> None:
    x = torch.randn(3, 8)
    before = x.clone()
    gradients(pair[0], x)
    assert torch.equal(x, before)


def test_long_tensors_are_computed_piece_by_piece(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(5, 7)
    whole = gradients(pair[0], x)
    monkeypatch.setattr(kernels, "PIECE", 8)
    for cut, uncut in zip(gradients(pair[0], x), whole, strict=True):
        torch.testing.assert_close(cut, uncut)


def test_tensors_with_gaps_are_taken(pair: Pair) -> None:
    x = torch.randn(6, 4)
    gapped = torch.cat((x, x), dim=1)[:, :4]
    for ours, theirs in zip(gradients(pair[0], gapped), gradients(pair[0], x), strict=True):
        assert torch.equal(ours, theirs)
    leaf = x.clone().requires_grad_()
    pair[0](leaf).T.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None


def test_bfloat16_is_left_to_torch(pair: Pair) -> None:
    x = torch.randn(3, 8).bfloat16()
    assert torch.equal(pair[0](x), pair[1](x))


def test_a_second_derivative_is_refused_rather_than_wrong(pair: Pair) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    (first,) = torch.autograd.grad(pair[0](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 10), (1, 1, 2)])
def test_the_norm_equals_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weights = 3 * torch.randn(shape), torch.randn(shape)
    results = []
    for norm in norms(shape[-1]):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        results.append((y, *torch.autograd.grad(y, (leaf, norm.weight), weights)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-3, 3.0, 1e6])
def test_the_norm_without_a_gradient_equals_torchs(size: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = size * torch.randn(2, 3, 10, dtype=dtype)
    ours, theirs = norms(10, dtype)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_the_norms_gradients_equal_finite_differences() -> None:
    ours, _ = norms(6, torch.float64)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: ours(x), (x, ours.weight))


def test_the_norm_of_nothing_is_nothing() -> None:
    y = norms(4)[0](torch.zeros(2, 4))
    assert torch.equal(y, torch.zeros(2, 4))


def test_products_in_parts_equal_one_product() -> None:
    """With gradients, each part is a product of its own; without, one is cut or joined."""
    torch.manual_seed(0)
    into, out = torch.nn.Linear(6, 10, bias=False), torch.nn.Linear(10, 6, bias=False)
    x = torch.randn(2, 3, 6, requires_grad=True)
    parts = products(x, into, (4, 5, 1))
    y = product(out, *parts)
    with torch.no_grad():
        whole = products(x, into, (4, 5, 1))
        again = product(out, *whole)
    for ours, theirs in zip((*parts, y), (*whole, again), strict=True):
        torch.testing.assert_close(ours.detach(), theirs)
    inputs = (x, into.weight, out.weight)
    expected = torch.autograd.grad(out(into(x)).square().sum(), inputs)
    found = torch.autograd.grad(y.square().sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
