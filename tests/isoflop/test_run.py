"""Is a run what it says? Its identity, its JSON, its resolving, and its overrides."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.run import (
    AdamW,
    Alarm,
    Checkpoints,
    Evaluation,
    Part,
    Rollouts,
    Run,
    Schedule,
    Spec,
    Text,
    override,
    short,
)
from models import ZOO, GPT2Config, LlamaConfig

ROOT = Path(__file__).resolve().parents[2]
GPT2 = GPT2Config(context=32, width=16, depth=2, heads=2)
LLAMA = LlamaConfig(context=32, width=16, depth=2, heads=2, kv_heads=1, tied=True)


def make(model: Any = GPT2, **changes: Any) -> Run:
    values: dict[str, Any] = {"optimizer": AdamW(lr=1e-2), "batch_tokens": 128}
    if not changes.keys() & {"tokens", "flops"}:
        values["tokens"] = 1280
    return Run(model=model, **{**values, **changes})


def resolved(model: Any = GPT2, **changes: Any) -> Run:
    return make(model, **changes).resolve(vocab=257, fingerprint="abc")


# --- identity ------------------------------------------------------------------------------------

# Another value for every field that numbers depend on; the test below fails for one without.
OTHER: dict[str, Any] = {
    "model.vocab": 300,
    "model.context": 64,
    "model.width": 32,
    "model.depth": 3,
    "model.heads": 4,
    "model.kv_heads": 2,
    "model.ffn": 40,
    "model.rope_theta": 5e5,
    "model.tied": False,
    "model.norm_epsilon": 1e-6,
    "model.rope_scaling.kind": "ntk",
    "model.rope_scaling.factor": 2.0,
    "model.rope_scaling.original": 16,
    "model.rope_scaling.fast": 16.0,
    "model.rope_scaling.slow": 2.0,
    "model.scales.logits": 0.5,
    "model.scales.attention": 0.5,
    "optimizer.lr": 2e-2,
    "optimizer.betas": (0.9, 0.99),
    "optimizer.epsilon": 1e-6,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip": 0.5,
    "objective.smoothing": 0.1,
    "objective.z_loss": 1e-4,
    "objective.contrast": 0.5,
    "objective.temperature": 0.2,
    "objective.stretches": 3,
    "batch_tokens": 256,
    "tokens": 2560,
    "data.tokenizer": "gpt2",
    "data.validation": 0.2,
    "data.fingerprint": "def",
    "data.rows": "packed",
    "data.stride": 16,
    "data.held_out": "best-fit",
    "data.mixture": (Part(source="a", weight=2.0), Part(source="b")),
    "data.mixing": "equal",
    "data.temperature": 2.0,
    "schedule.decay": "linear",
    "schedule.warmup": 0.2,
    "schedule.final": 0.0,
    "schedule.cooldown": 0.5,
    "schedule.warmup_steps": 7,
    "parametrisation.kind": "mup",
    "parametrisation.width": 64,
    "parametrisation.depth": 8,
    "parametrisation.head": 16,
    "ema": 0.99,
    "precision": "float32",
    "seed": 1,
    "evaluation.tokens": 2**14,
    "evaluation.times": 2,
    "evaluation.noise_scale": True,
    "rollouts.prompts": ("a",),
    "rollouts.seeds": 5,
    "rollouts.temperature": 0.5,
    "rollouts.new_tokens": 16,
    "rollouts.captures": 3,
    "rollouts.budget": 0.5,
    "rollouts.every": 10,
    "rollouts.specs": (Spec(name="code", source="code"),),
    "rollouts.novelty": True,
    "rollouts.rubric": "python",
    "rollouts.rewards": "a rubric's text",
    "rollouts.alarms": (Alarm(metric="loop", high=0.5),),
}
# Markers follow from the objective; the others change no number.
NOT_SCIENCE = {
    "data.source": "elsewhere", "data.most_epochs": 4.0, "checkpoints.seconds": 1.0,
    "model.markers": 1, "rollouts.beyond": "now",
}  # fmt: skip


def leaves(value: Any, path: str = "") -> Iterator[str]:
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from leaves(inner, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}"


def changed(value: Any, path: str, new: Any) -> Any:
    name, _, rest = path.partition(".")
    return replace(value, **{name: changed(getattr(value, name), rest, new) if rest else new})


@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_every_field_that_numbers_depend_on_changes_the_identity(model: Any) -> None:
    run = resolved(model)
    # A resolved run has no flops; averaged weights are judged where there are some (below).
    paths = set(leaves(run)) - set(NOT_SCIENCE) - {"flops", "evaluation.weights"}
    assert paths <= set(OTHER)
    identities = {path: changed(run, path, OTHER[path]).identity for path in paths}
    assert len({run.identity, *identities.values()}) == 1 + len(paths)


def test_which_weights_are_judged_changes_the_identity() -> None:
    run = replace(resolved(), ema=0.99)
    assert changed(run, "evaluation.weights", "ema").identity != run.identity


@pytest.mark.parametrize(("path", "value"), NOT_SCIENCE.items())
def test_where_the_text_lies_and_how_often_it_is_saved_do_not(path: str, value: Any) -> None:
    run = resolved()
    assert changed(run, path, value) != run
    assert changed(run, path, value).identity == run.identity


def test_two_architectures_of_one_shape_are_two_runs() -> None:
    class Other(GPT2Config):
        name = "other"

    shape = {"context": 32, "width": 16, "depth": 2, "heads": 2}
    assert resolved(Other(**shape)).identity != resolved(GPT2Config(**shape)).identity


def test_flops_and_tokens_that_mean_the_same_length_are_the_same_run() -> None:
    run = resolved()
    assert resolved(flops=float(run.training_flops)).identity == run.identity


def test_options_that_came_later_leave_finished_runs_finished() -> None:
    """Written down: a default may not change what the same run was called before it had one."""
    assert resolved().identity == "4ea5f334ff2e8b03"


def test_where_the_sources_of_a_mixture_lie_is_no_science() -> None:
    def mixed(*parts: Part, **changes: Any) -> str:
        return resolved(data=Text(mixture=parts, **changes)).identity

    one = mixed(Part(source="/here/a", weight=2.0), Part(source="b"))
    assert one == mixed(Part(source="/there/a", weight=2.0, name="x"), Part(source="b"))
    assert one != mixed(Part(source="/here/a", weight=3.0), Part(source="b"))
    equal = mixed(Part(source="a", weight=2.0), Part(source="b"), mixing="equal")
    assert equal == mixed(Part(source="a"), Part(source="b"), mixing="equal") != one


def test_identity_is_the_same_in_another_process() -> None:
    run = resolved(LLAMA, rollouts=Rollouts(prompts=("", "ü\n")))
    code = (
        "import json, sys; from isoflop.run import Run; from models import ZOO; "
        "print(Run.from_json(json.load(sys.stdin), ZOO).identity)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "PYTHONHASHSEED": "12345",
    }
    shown = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(run.as_json()),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == run.identity


def test_identity_is_16_hex_digits_and_needs_a_resolved_run() -> None:
    assert len(resolved().identity) == 16
    int(resolved().identity, 16)
    with pytest.raises(AssertionError, match="resolved"):
        _ = make().identity


def test_equal_numbers_are_one_run_however_they_are_written() -> None:
    """A study may write 1 where it means 1.0."""
    one = resolved(optimizer=AdamW(lr=1), rollouts=Rollouts(temperature=0))
    same = resolved(optimizer=AdamW(lr=1.0), rollouts=Rollouts(temperature=0.0))
    assert one == same
    assert one.identity == same.identity


@pytest.mark.parametrize(("value", "said"), [
    (3e11, "3e11"), (1e-5, "1e-5"), (123456.0, "1.23e5"), (0.001, "0.001"), (1e100, "1e100"),
    (2.5e-10, "2.5e-10"), (0.0, "0"), (7, "7"), (10**5, "100000"), ("gpt2", "gpt2"), (True, "True"),
])  # fmt: skip
def test_short(value: Any, said: str) -> None:
    assert short(value) == said


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [
    make(), make(LLAMA), resolved(), resolved(LLAMA), make(flops=1e12),
    make(rollouts=Rollouts(prompts=("", "a\n", "\u2028")), schedule=Schedule(decay="constant")),
], ids=["gpt2", "llama", "gpt2-resolved", "llama-resolved", "flops", "prompts"])  # fmt: skip
def test_json_gives_the_run_back(run: Run) -> None:
    again = Run.from_json(json.loads(json.dumps(run.as_json())), ZOO)
    assert again == run
    assert hash(again) == hash(run)
    assert type(again.model) is type(run.model)
    if run.resolved:
        assert again.identity == run.identity


@settings(max_examples=50, deadline=None)
@given(
    lr=st.floats(1e-12, 1e3),
    tokens=st.integers(1, 10**15),
    prompts=st.lists(st.text(), unique=True, max_size=3),
    seed=st.integers(0, 2**64 - 1),
    betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
)
def test_json_gives_any_run_back(
    lr: float, tokens: int, prompts: list[str], seed: int, betas: tuple[float, float]
) -> None:
    run = make(
        tokens=tokens,
        seed=seed,
        optimizer=AdamW(lr=lr, betas=betas),
        rollouts=Rollouts(prompts=tuple(prompts)),
    )
    assert Run.from_json(json.loads(json.dumps(run.as_json())), ZOO) == run


@pytest.mark.parametrize(("path", "said"), [
    ("surprise", "run.surprise is unknown"),
    ("optimizer.surprise", "run.optimizer.surprise is unknown"),
    ("model.surprise", "model.surprise is unknown"),
    ("data.surprise", "run.data.surprise is unknown"),
])  # fmt: skip
def test_unknown_keys_are_refused_by_name(path: str, said: str) -> None:
    values = make().as_json()
    *outer, name = path.split(".")
    inner = values
    for key in outer:
        inner = inner[key]
    inner[name] = 1
    with pytest.raises(ValueError, match=said):
        Run.from_json(values, ZOO)


def test_an_unknown_model_is_refused_with_what_there_is() -> None:
    values = make().as_json()
    values["model"]["kind"] = "mamba"
    with pytest.raises(ValueError, match=r"model.kind is 'mamba'; known models: .*gpt2, .*llama"):
        Run.from_json(values, ZOO)


def test_from_json_leaves_its_argument_alone() -> None:
    values = make().as_json()
    before = json.dumps(values)
    Run.from_json(values, ZOO)
    assert json.dumps(values) == before


def test_runs_travel_to_workers() -> None:
    run = resolved(LLAMA)
    assert pickle.loads(pickle.dumps(run)) == run


def test_runs_are_frozen() -> None:
    run = make()
    for value, name in ((run, "seed"), (run.model, "width"), (run.data, "source")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 3)


# --- resolving -----------------------------------------------------------------------------------


def test_resolving_fills_in_what_the_text_tells() -> None:
    run = resolved()
    assert (run.model.vocab, run.data.fingerprint, run.flops) == (257, "abc", None)
    assert run.resolved and not make().resolved
    assert run.resolve(vocab=257, fingerprint="abc") == run, "a second time changes nothing"


@pytest.mark.parametrize("tokens", [1, 63, 65, 128, 1280, 1343, 1345, 10**9])
def test_tokens_are_rounded_to_whole_steps(tokens: int) -> None:
    run = resolved(tokens=tokens)
    assert run.tokens is not None and run.tokens % 128 == 0
    assert run.steps >= 1 and run.tokens == run.steps * 128
    if tokens >= 64:
        assert abs(run.tokens - tokens) <= 64


@settings(max_examples=50, deadline=None)
@given(flops=st.floats(1e9, 1e18), model=st.sampled_from([GPT2, LLAMA]))
def test_flops_buy_tokens_to_within_half_a_step(flops: float, model: Any) -> None:
    run = resolved(model, flops=flops)
    of_one_step = run.batch_tokens * run.model.flops_per_token().training
    assert abs(run.training_flops - flops) <= of_one_step * (0.5 + 1e-9)


def test_the_vocabulary_counts_in_the_flops() -> None:
    run = make(flops=1e12)
    small = run.resolve(vocab=257, fingerprint="a").tokens
    large = run.resolve(vocab=50_000, fingerprint="a").tokens
    assert small is not None and large is not None and large < small


def test_a_text_that_changed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'python-stdlib' has changed: .* abc, .* is xyz"):
        resolved().resolve(vocab=257, fingerprint="xyz")


def test_a_vocabulary_that_does_not_fit_is_refused() -> None:
    model = replace(GPT2, vocab=1000)
    with pytest.raises(ValueError, match=r"model.vocab is 1000, but .*'bpe-2048' has 257 tokens"):
        resolved(model)


def test_steps_need_a_length() -> None:
    with pytest.raises(AssertionError, match="resolved"):
        _ = make(flops=1e12).steps


# --- what is refused -----------------------------------------------------------------------------

BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: make(tokens=1, flops=1.0), "either tokens or flops"),
    (lambda: make(tokens=None), "either tokens or flops"),
    (lambda: make(tokens=0), "tokens or flops is 0; it must be above 0"),
    (lambda: make(flops=-1e9), "tokens or flops is -1"),
    (lambda: make(flops=float("nan")), "tokens or flops is nan"),
    (lambda: make(flops=float("inf")), "tokens or flops is inf"),
    (lambda: make(batch_tokens=100), r"batch_tokens is 100; .* multiple of the context \(32"),
    (lambda: make(batch_tokens=0), "batch_tokens is 0"),
    (lambda: make(precision="fp8"), "precision is 'fp8'"),
    (lambda: make(seed=-1), "seed is -1; it must be at least 0"),
    (lambda: make(seed=2**64), "seed is 18446744073709551616; .* below 2"),
    (lambda: Text(source=""), "data.source is ''"),
    (lambda: Text(validation=0.0), "data.validation is 0.0; it must be between 0 and 1"),
    (lambda: Text(validation=1.0), "data.validation is 1.0"),
    (lambda: Text(rows="heap"), "data.rows is 'heap'; .*stream, packed, best-fit"),  # type: ignore[arg-type]
    (lambda: Text(held_out="heap"), "data.held_out is 'heap'; .* one of same, stream"),  # type: ignore[arg-type]
    (lambda: Text(mixing="all"), "data.mixing is 'all'; .*given, equal"),  # type: ignore[arg-type]
    (lambda: Text(stride=-1), "data.stride is -1"),
    (lambda: Text(temperature=0.0), "data.temperature is 0.0"),
    (lambda: Text(most_epochs=-1.0), "data.most_epochs is -1.0"),
    (lambda: Part(source=""), "data.mixture.source is ''"),
    (lambda: Part(source="a", weight=0.0), "data.mixture.weight is 0.0"),
    (lambda: Part(source="a", weight=float("nan")), "data.mixture.weight is nan"),
    (lambda: Part(source="a", name="a/b"), "data.mixture.name is 'a/b'"),
    (
        lambda: Text(mixture=(Part(source="x/a.txt"), Part(source="y/a.md"))),
        "data.mixture is .*'a'",
    ),
    (lambda: Text(source="a", mixture=(Part(source="b"),)), "data.source is 'a'; .* left out"),
    (lambda: AdamW(lr=0.0), "optimizer.lr is 0.0; it must be above 0"),
    (lambda: AdamW(lr=float("nan")), "optimizer.lr is nan"),
    (lambda: AdamW(lr=1.0, betas=(0.9, 1.0)), r"optimizer.betas is \(0.9, 1.0\)"),
    (lambda: AdamW(lr=1.0, clip=-1.0), "optimizer.clip is -1.0"),
    (lambda: AdamW(lr=1.0, weight_decay=-0.1), "optimizer.weight_decay is -0.1"),
    (lambda: AdamW(lr=1.0, epsilon=-1.0), "optimizer.epsilon is -1.0"),
    (lambda: Schedule(decay="step"), "schedule.decay is 'step'"),  # type: ignore[arg-type]
    (lambda: Schedule(warmup=1.0), "schedule.warmup is 1.0"),
    (lambda: Schedule(final=1.5), "schedule.final is 1.5"),
    (lambda: Evaluation(tokens=0), "evaluation.tokens is 0"),
    (lambda: Evaluation(times=0), "evaluation.times is 0"),
    (lambda: Rollouts(seeds=0), "rollouts.seeds is 0"),
    (lambda: Rollouts(temperature=-1.0), "rollouts.temperature is -1.0"),
    (lambda: Rollouts(new_tokens=0), "rollouts.new_tokens is 0"),
    (lambda: Rollouts(captures=1), "rollouts.captures is 1; it must be at least 2"),
    (lambda: Rollouts(budget=-0.1), "rollouts.budget is -0.1"),
    (lambda: Checkpoints(seconds=-1.0), "checkpoints.seconds is -1.0"),
]


@pytest.mark.parametrize(("build", "said"), BAD, ids=[said[:32] for _, said in BAD])
def test_impossible_values_are_refused_by_name(build: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()


# --- overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "text", "value"), [
    ("optimizer.lr", "1e-3", 1e-3),
    ("optimizer.betas", "[0.8, 0.9]", (0.8, 0.9)),
    ("seed", "7", 7),
    ("model.depth", "5", 5),
    ("batch_tokens", "256", 256),
    ("schedule.decay", "linear", "linear"),
    ("precision", "bfloat16", "bfloat16"),
    ("data.tokenizer", "bytes", "bytes"),
    ("data.source", "/tmp/[old] texts", "/tmp/[old] texts"),
    ("data.source", "[texts]", "[texts]"),
    ("data.source", "12", "12"),
    ("rollouts.prompts", '["a, b", ""]', ("a, b", "")),
    ("rollouts.prompts", "[]", ()),
    ("rollouts.budget", "0", 0.0),
    ("checkpoints.seconds", "0", 0.0),
])  # fmt: skip
def test_overrides_reach_nested_fields(path: str, text: str, value: Any) -> None:
    run = override(make(), path, text)
    found: Any = run
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)
    assert changed(make(), path, value) == run, "and nothing else"


@pytest.mark.parametrize(("path", "text", "full"), [
    ("data", "/some/where", "data.source"),
    ("optimizer", "0.5", "optimizer.lr"),
    ("schedule", "constant", "schedule.decay"),
    ("evaluation", "64", "evaluation.tokens"),
    ("rollouts", "3", "rollouts.captures"),
    ("checkpoints", "9", "checkpoints.seconds"),
])  # fmt: skip
def test_parts_have_a_shorthand(path: str, text: str, full: str) -> None:
    assert override(make(), path, text) == override(make(), full, text) != make()


@pytest.mark.parametrize(("path", "text", "data"), [
    ("data.rows", "best-fit", Text(rows="best-fit")),
    ("data.stride", "16", Text(stride=16)),
    ("data.held_out", "slide-in", Text(held_out="slide-in")),
    ("data.mixing", "temperature", Text(mixing="temperature")),
    ("data.temperature", "3", Text(temperature=3.0)),
    ("data.most_epochs", "4", Text(most_epochs=4.0)),
    (
        "data.mixture",
        '[{"source": "a", "weight": 3}, {"source": "/x/b.txt"}]',
        Text(mixture=(Part(source="a", weight=3.0), Part(source="/x/b.txt"))),
    ),
])  # fmt: skip
def test_rows_and_mixtures_can_be_set(path: str, text: str, data: Text) -> None:
    run = override(make(), path, text)
    assert run.data == data
    assert Run.from_json(json.loads(json.dumps(run.as_json())), ZOO) == run


def test_models_options_and_booleans() -> None:
    run = make(LLAMA)
    assert override(run, "model.tied", "false").model == replace(LLAMA, tied=False)
    assert override(run, "model.kv_heads", "2").model == replace(LLAMA, kv_heads=2)


def test_tokens_and_flops_replace_each_other() -> None:
    by_flops = override(make(), "flops", "1e12")
    assert (by_flops.tokens, by_flops.flops) == (None, 1e12)
    by_tokens = override(by_flops, "tokens", "999")
    assert (by_tokens.tokens, by_tokens.flops) == (999, None)


@pytest.mark.parametrize(("path", "text", "said"), [
    ("speed", "1", r"--set speed: Run has no field 'speed'; it has .*batch_tokens.*tokens"),
    ("optimizer.speed", "1", r"--set optimizer.speed: AdamW has no field 'speed'; it has .*lr"),
    ("model.tied", "true", r"--set model.tied: GPT2Config has no field 'tied'.*width"),
    ("model", "llama", r"--set model: name one of its fields: model.vocab, .*model.width"),
    ("objective", "x", r"--set objective is 'x'; known objectives: autoregressive, span_den"),
    ("objective", "masked_diffusion", r"'masked_diffusion' is for .* denoiser, and 'gpt2' is"),
    ("objective.rate", "1", r"--set objective.rate: Autoregressive has no field 'rate'"),
    ("seed.deeper", "1", r"--set seed.deeper: 'seed' is a plain value"),
    ("seed", "one", r"--set seed: 'one' does not fit: .*integer"),
    ("seed", "1.5", r"--set seed: '1.5' does not fit: .*integer"),
    ("seed", "", r"--set seed: '' does not fit: .*integer"),
    ("optimizer.lr", "fast", r"--set optimizer.lr: 'fast' does not fit: .*number"),
    ("optimizer.betas", "0.9", r"--set optimizer.betas: '0.9' does not fit"),
    ("optimizer.betas", "[0.9]", r"--set optimizer.betas: '\[0.9\]' does not fit"),
    ("optimizer.betas", "[0.9,", r"--set optimizer.betas: '\[0.9,' does not fit: .*JSON"),
    ("schedule.decay", "steps", r"--set schedule.decay: 'steps' does not fit: .*cosine"),
    ("data.rows", "heap", r"--set data.rows: 'heap' does not fit: .*'best-fit'"),
    ("data.mixture", '[{"weight": 1}]', r"--set data.mixture: .* does not fit"),
    ("data.mixture", '[{"source": "a", "weight": -1}]', r"data.mixture.weight is -1.0"),
    ("precision", "fp8", r"--set precision: 'fp8' does not fit: .*float32"),
    ("optimizer.lr", "-1", r"optimizer.lr is -1.0; it must be above 0"),
    ("model.context", "100", r"batch_tokens is 128; .*context \(100 tokens\)"),
    ("model.width", "17", r"width.*17"),
    ("data", "", r"data.source is ''"),
    ("", "1", r"--set : Run has no field ''"),
    ("optimizer.", "1", r"--set optimizer.: AdamW has no field ''"),
    ("SHORTHAND", "1", r"--set SHORTHAND: Run has no field 'SHORTHAND'"),
])  # fmt: skip
def test_a_wrong_override_says_what_and_where(path: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        override(make(), path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "run.model is None; it must be a table of fields"),
        ({"objective": {"kind": "guessing"}}, "objective.kind is 'guessing'"),
        ({"optimizer": {}}, "run.optimizer cannot be built: .*'lr'"),
        ({"optimizer": {"lr": "fast"}}, "run.optimizer cannot be built"),
        ({"batch_tokens": None}, "run cannot be built"),
        ({"data": {"mixture": ["a"]}}, "run.data.mixture holds 'a'; it must hold tables"),
        ({"data": {"mixture": [{"weight": 1}]}}, "run.data.mixture cannot be built: .*'source'"),
    ],
)
def test_a_run_from_elsewhere_that_cannot_be_built(change: dict[str, object], said: str) -> None:
    values = {
        "model": {"kind": "gpt2", "width": 8, "depth": 1, "heads": 1, "context": 32},
        "objective": {"kind": "autoregressive"},
        "optimizer": {"lr": 0.01},
        "batch_tokens": 32,
        "tokens": 64,
    }
    assert Run.from_json(values, ZOO).steps == 2
    with pytest.raises(ValueError, match=said):
        Run.from_json({**values, **change}, ZOO)
