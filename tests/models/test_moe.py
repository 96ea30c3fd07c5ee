"""Do the experts get their tokens, and does the router learn to share them out?"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import MoEConfig
from models.moe import Experts, MoE, Routing, grouped_product

ROUTING = Routing(experts=4, top=2, noise=0.0)
CONFIG = MoEConfig(vocab=61, context=24, width=32, depth=4, heads=4, routing=ROUTING)


def layer(routing: Routing, seed: int = 0, inner: int = 16) -> Experts:
    torch.manual_seed(seed)
    experts = Experts(8, inner, routing)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight)
    return experts


def by_hand(experts: Experts, x: Tensor) -> Tensor:
    """One token at a time, through each of its experts in turn."""
    result = torch.zeros_like(x)
    for n, token in enumerate(x):
        logits = experts.router.choose(token)
        best = logits.topk(experts.routing.top)
        probabilities = logits.softmax(dim=0)[best.indices]
        shares = best.values.softmax(dim=0) if experts.routing.top > 1 else probabilities
        for share, expert in zip(shares, best.indices, strict=True):
            gate, up = (token @ experts.gate_up[expert]).chunk(2)
            result[n] += share * ((F.silu(gate) * up) @ experts.output[expert])
    return result


@pytest.mark.parametrize("inner", [16, 15])  # 15: rows that torch's grouped kernel cannot take
@pytest.mark.parametrize("top", [1, 2, 4])
def test_equals_experts_by_hand(top: int, inner: int) -> None:
    experts = layer(replace(ROUTING, top=top), inner=inner).eval()
    x = torch.randn(3, 5, 8)
    expected = by_hand(experts, x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(experts(x), expected, rtol=1e-4, atol=1e-4)


def test_gradients_equal_those_by_hand() -> None:
    experts, x = layer(ROUTING), torch.randn(1, 6, 8)
    weights = torch.randn(1, 6, 8)
    parameters = list(experts.parameters())
    ours = torch.autograd.grad((experts(x) * weights).sum(), parameters)
    theirs = torch.autograd.grad((by_hand(experts, x[0]) * weights[0]).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_an_expert_may_stay_without_tokens() -> None:
    x, weights = torch.randn(5, 8), torch.randn(3, 8, 4)
    product = grouped_product(x, weights, torch.tensor([2, 0, 3]))
    expected = torch.cat((x[:2] @ weights[0], x[2:] @ weights[2]))
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)


def test_equal_use_of_all_experts_costs_the_weight_of_the_balance_loss() -> None:
    experts = layer(Routing(experts=4, top=1, noise=0.0, balance=0.5, z=0.1))
    with torch.no_grad():
        experts.router.choose.weight.copy_(torch.eye(4, 8) * 100)
    experts(torch.eye(4, 8).unsqueeze(0))  # each token to an expert of its own
    assert experts.losses["balance"].item() == pytest.approx(0.5)
    assert experts.losses["router_z"].item() == pytest.approx(0.1 * 100**2, rel=1e-3)
    assert experts.seen["utilisation"].item() == pytest.approx(1)
    assert experts.seen["entropy"].item() == pytest.approx(0, abs=1e-4)
    experts(torch.eye(4, 8)[:1].expand(4, 8).unsqueeze(0))  # all to one
    assert experts.losses["balance"].item() == pytest.approx(0.5 * 4)
    assert experts.seen["utilisation"].item() == pytest.approx(1 / 4)


def test_the_balance_loss_balances() -> None:
    experts = layer(replace(ROUTING, balance=1.0, noise=0.1), seed=3)
    x = torch.randn(16, 16, 8) + 2  # a common direction: one expert is the favourite of many
    optimizer = torch.optim.Adam(experts.router.parameters(), lr=3e-2)
    uses = []
    for _ in range(60):
        experts(x)
        uses.append(experts.seen["utilisation"].item())
        optimizer.zero_grad()
        experts.losses["balance"].backward()
        optimizer.step()
    assert uses[0] < 0.9 and uses[-1] > 0.95


def test_beyond_its_capacity_an_expert_takes_no_more_and_says_so() -> None:
    experts = layer(Routing(experts=4, top=1, noise=0.0, capacity=1.0))
    x = torch.randn(8).expand(1, 8, 8)  # eight equal tokens: room for two of them
    y = experts(x)
    assert (y[0, :2].abs().sum(dim=-1) > 0).all()
    assert (y[0, 2:] == 0).all(), "those that came later pass by"
    assert experts.seen["dropped"].item() == pytest.approx(6 / 8)
    experts.eval()
    assert (experts(x).abs().sum(dim=-1) > 0).all(), "only training drops"


def test_noise_and_dropout_are_training_only() -> None:
    experts = layer(Routing(experts=4, top=1, noise=20.0, dropout=0.5))
    x = torch.randn(2, 4, 8)
    assert not torch.equal(experts(x), experts(x))
    experts.eval()
    assert torch.equal(experts(x), experts(x))


def test_a_model_gives_its_losses_in_training_and_its_measures_always() -> None:
    torch.manual_seed(0)
    model = MoE(CONFIG)
    tokens = torch.randint(61, (2, 24))
    model(tokens)
    losses = model.auxiliary()
    assert set(losses) == {"balance", "router_z"}
    assert sum(losses.values()).requires_grad
    model.eval()
    model(tokens)
    assert model.auxiliary() == {}
    measures = model.measures()
    assert set(measures) == {"router/utilisation", "router/entropy", "router/dropped"}
    assert not any(value.requires_grad for value in measures.values())
    assert 1 / 4 <= measures["router/utilisation"] <= 1


def test_active_counts_leave_out_the_idle_experts() -> None:
    count, dense = CONFIG.parameters(), replace(CONFIG, routing=replace(ROUTING, every=5))
    expert = 3 * CONFIG.width * CONFIG.inner
    assert count.all - count.active == 2 * 2 * expert  # two of four layers, two of four experts
    more = 2 * (expert + CONFIG.width * 4)  # a second expert and the router
    assert count.active == dense.parameters().all + more
    assert dense.parameters().active == dense.parameters().all
    assert CONFIG.flops_per_token().body - dense.flops_per_token().body == 2 * more


@pytest.mark.parametrize(
    ("field", "value"),
    [("experts", 0), ("top", 0), ("top", 9), ("every", 0), ("dropout", 1.0), ("noise", -1.0)],
)
def test_impossible_routings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"routing\.{field} is {value}"):
        Routing(**{"experts": 4, field: value})  # type: ignore[arg-type]


def test_under_autocast_the_product_is_in_its_precision() -> None:
    """As other products are; torch's own kernel takes what it is given."""
    x, weights, counts = torch.randn(6, 16), torch.randn(3, 16, 8), torch.tensor([1, 0, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = grouped_product(x, weights, counts)
        with torch.autocast("cpu", enabled=False):
            exact = grouped_product(x, weights, counts)
    assert (low.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(low.float(), exact, rtol=2e-2, atol=5e-2)
