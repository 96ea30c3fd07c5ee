"""Does a model behave alike at every width and depth under muP and CompleteP, and only there?"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.run import AdamW, Parametrisation, Run
from isoflop.training import optimizer, parametrisation
from models import (
    CharRNNConfig,
    Config,
    GPT2Config,
    LformerConfig,
    LlamaConfig,
    ModernConfig,
    MoEConfig,
)
from models.interface import Scales
from models.moe import Routing

VOCAB, WIDTH, DEPTH = 64, 32, 2
SHAPE: dict[str, Any] = {
    "vocab": VOCAB, "context": 16, "width": WIDTH, "depth": DEPTH, "heads": 2,
}  # fmt: skip
BASES: dict[str, Config] = {
    "gpt2": GPT2Config(**SHAPE),
    "llama": LlamaConfig(**SHAPE),
    "lformer": LformerConfig(**SHAPE),
    "modern": ModernConfig(**SHAPE),
    "moe": MoEConfig(**SHAPE, routing=Routing(experts=4, noise=0.0)),
}
RULE = Parametrisation(kind="completep", width=WIDTH, depth=DEPTH, head=WIDTH // 2)
bases = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def tokens() -> Tensor:
    return torch.randint(VOCAB, (4, 17), generator=torch.Generator().manual_seed(1))


def changes(config: Config, rule: Parametrisation) -> dict[str, float]:
    """How far the last block's output and the logits move in six steps, root mean square."""
    torch.manual_seed(0)
    model = rule.applied(config).build()
    parametrisation.initialise(model, rule)
    optim = optimizer.build(model, AdamW(lr=1e-2, weight_decay=0.0), rule)
    seen: dict[str, Tensor] = {}
    model.blocks[-1].register_forward_hook(  # type: ignore[operator, union-attr]
        lambda module, inputs, output: seen.update(stream=output.detach())
    )
    ids = tokens()

    def look() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"logits": model(ids[:, :-1]), **seen}

    before = look()
    for _ in range(6):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optim.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optim.step()
    after = look()
    return {name: (after[name] - before[name]).square().mean().sqrt().item() for name in before}


def slope(sizes: list[int], values: list[float]) -> float:
    """The exponent of a power law through them."""
    x, y = torch.tensor(sizes).log(), torch.tensor(values).log()
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


# --- coordinate checks (Yang et al. 2022, appendix D.1) ------------------------------------------


@bases
def test_what_a_step_changes_is_flat_in_width_under_mup_only(base: Config) -> None:
    sizes = [32, 64, 128]
    exponents = {}
    for kind in ("standard", "mup"):
        rule = replace(RULE, kind=kind)
        found = [changes(replace(base, width=width), rule) for width in sizes]  # type: ignore[call-arg]
        for name in ("logits", "stream"):
            exponents[kind, name] = slope(sizes, [row[name] for row in found])
    assert abs(exponents["mup", "logits"]) < 0.25
    assert abs(exponents["mup", "stream"]) < 0.25
    assert exponents["standard", "logits"] > 0.5
    assert exponents["standard", "stream"] > 0.5


@bases
def test_what_a_step_changes_is_flat_in_depth_under_completep(base: Config) -> None:
    depths = [2, 4, 8, 16]
    found = [changes(replace(base, depth=depth), RULE) for depth in depths]  # type: ignore[call-arg]
    assert abs(slope(depths, [row["stream"] for row in found])) < 0.15
    assert abs(slope(depths, [row["logits"] for row in found])) < 0.15


def test_the_stream_grows_with_depth_under_mup_alone() -> None:
    depths = [2, 8, 16]
    rule = replace(RULE, kind="mup")
    found = [changes(replace(BASES["gpt2"], depth=depth), rule) for depth in depths]  # type: ignore[call-arg]
    assert slope(depths, [row["stream"] for row in found]) > 0.5


# --- the rules -----------------------------------------------------------------------------------


@bases
@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_at_the_base_nothing_differs(base: Config, kind: Any) -> None:
    rule = replace(RULE, kind=kind)
    assert rule.applied(base) == base
    assert changes(base, rule) == changes(base, Parametrisation())


@bases
def test_every_parameter_has_a_role_and_a_place_in_the_optimizer(base: Config) -> None:
    model = replace(base, width=64, depth=4).build()  # type: ignore[call-arg]
    assert model.roles().keys() == dict(model.named_parameters()).keys()
    optim = optimizer.build(model, AdamW(lr=0.1, weight_decay=0.5), RULE)
    rows = {id(p): group for group in optim.param_groups for p in group["params"]}
    assert len(rows) == len(model.roles())
    for name, role in model.roles().items():
        parameter = model.get_parameter(name)
        expected = parametrisation.multipliers(role, RULE, model.config)
        group = rows[id(parameter)]
        assert group["lr"] == pytest.approx(0.1 * expected.rate), name
        assert group["eps"] == pytest.approx(1e-8 * expected.epsilon), name
        decay = 0.5 * expected.decay if parameter.ndim >= 2 else 0
        assert group["weight_decay"] == pytest.approx(decay), name
        if parameter.ndim >= 2:  # what a step takes from a weight is a share that never changes
            assert expected.rate * expected.decay == pytest.approx(1), name


def test_the_schedule_moves_all_groups_in_proportion() -> None:
    model = replace(BASES["gpt2"], width=64).build()  # type: ignore[call-arg]
    optim = optimizer.build(model, AdamW(lr=0.1), RULE)
    before = [group["lr"] for group in optim.param_groups]
    assert len(set(before)) == 2
    optimizer.set_learning_rate(optim, 0.05)
    assert [group["lr"] for group in optim.param_groups] == pytest.approx([r / 2 for r in before])


def test_the_table_for_twice_the_width_and_four_times_the_depth() -> None:
    config = replace(BASES["llama"], width=64, depth=8)  # type: ignore[call-arg]
    hidden = parametrisation.multipliers("hidden", RULE, config)
    assert (hidden.init, hidden.rate, hidden.decay) == (pytest.approx(0.5**0.5), 0.5, 2)
    residual = parametrisation.multipliers("residual", RULE, config)
    assert (residual.rate, residual.decay, residual.epsilon) == (1 / 8, 8, 0.5)
    wide = replace(RULE, kind="mup")
    assert parametrisation.multipliers("residual", wide, config).rate == 0.5


def test_a_branch_that_starts_and_moves_at_a_share_is_a_branch_times_that_share() -> None:
    """What spares CompleteP an operation per branch: Adam does not know the scale of a gradient."""
    r, x, target = 4.0, torch.randn(8, 3), torch.randn(8, 3)
    weight = torch.randn(3, 3)
    whole, part = weight.clone().requires_grad_(), (weight / r).requires_grad_()
    slow = torch.optim.AdamW([whole], lr=0.1, weight_decay=0.2, eps=1e-3)
    scaled = torch.optim.AdamW([part], lr=0.1 / r, weight_decay=0.2 * r, eps=1e-3 * r)
    for _ in range(5):
        for weights, factor, optim in ((whole, 1 / r, slow), (part, 1.0, scaled)):
            optim.zero_grad()
            (x @ weights * factor - target).square().mean().backward()
            optim.step()
    torch.testing.assert_close(whole / r, part)


# --- in a run ------------------------------------------------------------------------------------


def run(model: Config, rule: Parametrisation) -> Run:
    return Run(
        model=model, optimizer=AdamW(lr=0.1), batch_tokens=64, tokens=640, parametrisation=rule
    )


def test_a_resolved_run_holds_the_factors_of_the_forward_pass() -> None:
    config = replace(BASES["gpt2"], width=128, vocab=0)  # type: ignore[call-arg]
    resolved = run(config, RULE).resolve(vocab=VOCAB, fingerprint="abc")
    assert resolved.model.scales == Scales(logits=1 / 4, attention=1 / 2)
    again = resolved.resolve(vocab=VOCAB, fingerprint="abc")
    assert again == resolved
    plain = run(config, Parametrisation()).resolve(vocab=VOCAB, fingerprint="abc")
    assert plain.model.scales == Scales()
    assert plain.identity != resolved.identity


def test_the_factors_do_what_they_say() -> None:
    torch.manual_seed(0)
    usual = BASES["llama"].build()
    halved = replace(BASES["llama"], scales=Scales(logits=0.5)).build()
    cold = replace(BASES["llama"], scales=Scales(attention=0.5)).build()
    ids = tokens()
    for model in (halved, cold):
        model.load_state_dict(usual.state_dict())
    torch.testing.assert_close(halved(ids[:, :16]), usual(ids[:, :16]) / 2)
    with torch.no_grad():
        for block in usual.blocks:  # type: ignore[union-attr]
            block.attention.query_key_value.weight[:WIDTH] /= 2  # type: ignore[union-attr]
    torch.testing.assert_close(cold(ids[:, :16]), usual(ids[:, :16]), rtol=1e-5, atol=1e-6)


def test_factors_of_ones_own_are_refused_beside_a_rule() -> None:
    config = replace(BASES["gpt2"], scales=Scales(logits=math.pi))
    with pytest.raises(ValueError, match=r"model.scales is .* left out: completep"):
        run(config, RULE).resolve(vocab=VOCAB, fingerprint="abc")


def test_a_model_without_a_rule_is_refused_before_anything_runs() -> None:
    config = CharRNNConfig(width=64, depth=2, context=16)
    with pytest.raises(ValueError, match="no scaling rule is known for char_rnn"):
        run(config, RULE).resolve(vocab=VOCAB, fingerprint="abc")


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "ntk"), ("width", 0), ("depth", 0), ("head", -1)]
)
def test_impossible_rules_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"parametrisation.{field} is {value!r}"):
        replace(RULE, **{field: value})
