"""Does a rollout say what the model says, whatever it is decoded with?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoflop.rollouts.generate import Ending, Rollout, Sampling, generate
from models import CharRNNConfig, Config, GPT2Config, LlamaConfig
from models.interface import Model

SHAPES: tuple[Config, ...] = (
    GPT2Config(vocab=97, context=40, width=16, depth=2, heads=2),
    LlamaConfig(vocab=97, context=40, width=16, depth=2, heads=2),
)


def build(config: Config, sharpness: float = 6.0) -> Model:
    """Random weights, enlarged so that the distributions are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(sharpness)
    return model


@pytest.fixture(params=SHAPES, ids=lambda config: config.name)
def model(request: pytest.FixtureRequest) -> Model:
    return build(request.param)


def ids(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def distributions(model: Model, row: Rollout) -> torch.Tensor:
    """Log probabilities (N, V) before each written token, from one pass without a cache."""
    sequence = np.concatenate([row.prompt_ids, row.completion_ids]).astype(np.int64)
    with torch.no_grad():
        logits = model(torch.from_numpy(sequence).unsqueeze(0))[0]
    found: torch.Tensor = logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1)
    return found


def tokens(rows: Sequence[Rollout]) -> list[list[int]]:
    return [row.completion_ids.tolist() for row in rows]


RAGGED = [ids(5), ids(1, 2, 3), ids(9, 8, 7, 6, 5, 4), ids(*range(20)), ids(3, 2, 1)]
NEVER = Sampling(1.0, 12, ())


def test_greedy_equals_argmax_without_a_cache(model: Model) -> None:
    for row in generate(model, RAGGED, [[0]] * 5, Sampling(0.0, 12, ())):
        sequence = RAGGED[row.prompt_index].tolist()
        for _ in range(12):
            with torch.no_grad():
                logits = model(torch.tensor([sequence]))
            sequence.append(int(logits[0, -1].argmax()))
        assert row.completion_ids.tolist() == sequence[-12:]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_and_entropies_are_those_of_a_full_pass(model: Model, temperature: float) -> None:
    sampling = Sampling(temperature, 12, ())
    for row in generate(model, RAGGED, [[1, 2], [3, 4], [5], [6, 7], [8]], sampling):
        full = distributions(model, row).numpy()
        own = full[np.arange(12), row.completion_ids]
        np.testing.assert_allclose(row.logprobs, own, atol=1e-4)
        np.testing.assert_allclose(row.entropies, -(np.exp(full) * full).sum(1), atol=1e-4)


def test_rows_come_by_prompt_and_sample(model: Model) -> None:
    rows = generate(model, RAGGED, [[1, 2], [], [3], [4, 5], [6]], NEVER)
    order = [(row.prompt_index, row.sample) for row in rows]
    assert order == [(0, 0), (0, 1), (2, 0), (3, 0), (3, 1), (4, 0)]
    for row in rows:
        np.testing.assert_array_equal(row.prompt_ids, RAGGED[row.prompt_index])


def test_a_row_does_not_depend_on_its_batch_mates(model: Model) -> None:
    seeds = [[10, 11], [12, 13], [14, 15], [16, 17], [18, 19]]
    together = generate(model, RAGGED, seeds, NEVER)
    alone = [
        generate(model, [p], [[s]], NEVER)[0]
        for p, two in zip(RAGGED, seeds, strict=True)
        for s in two
    ]
    backwards = generate(model, RAGGED[::-1], seeds[::-1], NEVER)
    narrow = generate(model, RAGGED, seeds, NEVER, batch=1)
    assert tokens(together) == tokens(alone) == tokens(narrow)
    mirrored = {
        (4 - row.prompt_index, row.sample): row.completion_ids.tolist() for row in backwards
    }
    assert tokens(together) == [mirrored[row.prompt_index, row.sample] for row in together]


def test_seeds_differ_and_repeat(model: Model) -> None:
    first, second, again = generate(model, [ids(1, 2)], [[7, 8, 7]], NEVER)
    assert first.completion_ids.tolist() == again.completion_ids.tolist()
    assert first.completion_ids.tolist() != second.completion_ids.tolist()


def test_a_stop_ends_the_row_and_nothing_else_changes(model: Model) -> None:
    """Rows are dropped on the way: with and without, the common part is the same."""
    seeds = [list(range(8))] * 5
    stops = tuple(range(0, 97, 12))
    full = generate(model, RAGGED, seeds, Sampling(1.0, 20, ()))
    cut = generate(model, RAGGED, seeds, Sampling(1.0, 20, stops))
    ended = 0
    for whole, part in zip(full, cut, strict=True):
        written = whole.completion_ids.tolist()
        hits = [place for place, token in enumerate(written) if token in stops]
        expected = written[: hits[0] + 1] if hits else written
        assert part.completion_ids.tolist() == expected
        assert part.stop == ("stop" if hits else "length")
        assert len(part.logprobs) == len(part.entropies) == len(expected)
        np.testing.assert_allclose(part.logprobs, whole.logprobs[: len(expected)], atol=1e-4)
        ended += bool(hits)
    assert 20 < ended < 40, "the test needs both kinds, and enough to drop"


def test_finished_rows_are_dropped() -> None:
    """Fewer rows go through the model once most have stopped, and none after the last has."""
    model = build(SHAPES[0])
    widths: list[int] = []
    inner = model.hidden

    def counted(tokens: torch.Tensor, cache: object = None) -> torch.Tensor:
        widths.append(len(tokens))
        return inner(tokens, cache)  # type: ignore[arg-type]

    model.hidden = counted  # type: ignore[method-assign, assignment]
    generate(model, [ids(1, 2)], [list(range(32))], Sampling(1.0, 30, tuple(range(0, 97, 4))))
    assert widths[:2] == [1, 32], "the prompt is read once, then once per seed"
    assert min(widths[1:]) < 24
    widths.clear()
    generate(model, [ids(1, 2)], [list(range(32))], Sampling(1.0, 30, tuple(range(97))))
    assert len(widths) == 8, "all have stopped by the first look"


def test_a_stop_within_the_prompt_does_not_end_the_row(model: Model) -> None:
    prompts = [ids(1), ids(1, 50, 50, 50)]  # the second is fed beside the first one's own tokens
    rows = generate(model, prompts, [[1], [2]], Sampling(1.0, 12, (50,)))
    free = generate(model, prompts, [[1], [2]], NEVER)
    for row, without in zip(rows, free, strict=True):
        written = without.completion_ids.tolist()
        length = written.index(50) + 1 if 50 in written else 12
        assert row.completion_ids.tolist() == written[:length]


def test_a_long_prompt_keeps_its_last_tokens(model: Model) -> None:
    (row,) = generate(model, [ids(*range(90))], [[1]], NEVER)
    assert row.prompt_ids.tolist() == list(range(62, 90))
    assert len(row.completion_ids) == 12


def test_random_state_and_modes_are_untouched(model: Model) -> None:
    torch.manual_seed(3)
    model.train()
    frozen = next(iter(model.children()))
    frozen.eval()
    before, modes = torch.get_rng_state(), [part.training for part in model.modules()]
    generate(model, RAGGED, [[1]] * 5, NEVER)
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    loss = model(torch.tensor([[1, 2, 3]])).square().mean()
    loss.backward()  # nothing was left behind that refuses gradients


def test_text_is_written_by_sdpa_whatever_trains(model: Model) -> None:
    expected = tokens(generate(model, RAGGED, [[1]] * 5, NEVER))
    model.backend = "flash"  # refuses float32, and a CPU
    assert tokens(generate(model, RAGGED, [[1]] * 5, NEVER)) == expected
    assert model.backend == "flash"


def test_modes_come_back_after_an_error(model: Model) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no head")

    model.head = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="no head"):
        generate(model, RAGGED, [[1]] * 5, NEVER)
    assert all(part.training for part in model.modules())


def test_surprise_is_entropy_at_temperature_one() -> None:
    """E[-log p] is the entropy if, and only if, tokens are drawn from p."""
    model = build(SHAPES[0])
    rows = generate(model, [ids(4)], [list(range(800))], Sampling(1.0, 16, ()), batch=800)
    gap = np.array([(-row.logprobs - row.entropies).mean() for row in rows])
    error = gap.std() / np.sqrt(len(gap))
    assert abs(gap.mean()) < 4 * error < 0.1
    cold = generate(model, [ids(4)], [list(range(200))], Sampling(0.5, 16, ()), batch=200)
    gap = np.array([(-row.logprobs - row.entropies).mean() for row in cold])
    assert gap.mean() < -10 * error, "a colder draw surprises the model less"


def test_first_tokens_follow_the_distribution(model: Model) -> None:
    """Chi-squared of 4,000 draws, at both temperatures; the seeds are fixed, so is the result."""
    for temperature in (1.0, 1.7):
        sampling = Sampling(temperature, 1, ())
        rows = generate(model, [ids(4, 5)], [list(range(4000))], sampling, batch=4000)
        with torch.no_grad():
            p = (model(torch.tensor([[4, 5]]))[0, -1] / temperature).softmax(-1).numpy()
        observed = np.bincount([row.completion_ids[0] for row in rows], minlength=97)
        common = p * 4000 > 5
        chi = ((observed - p * 4000) ** 2 / (p * 4000))[common].sum()
        freedom = int(common.sum())
        assert chi < freedom + 4 * np.sqrt(2 * freedom)


def test_a_diverged_model_still_gives_rows(model: Model) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    rows = generate(model, RAGGED, [[1]] * 5, NEVER)
    assert all(len(row.completion_ids) == 12 for row in rows)
    assert all(np.isnan(row.logprobs).all() for row in rows)
    assert all(0 <= row.completion_ids.min() <= row.completion_ids.max() < 97 for row in rows)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_batch_of_any_prompts_writes_the_same(data: st.DataObject) -> None:
    model = build(SHAPES[1])
    token = st.integers(0, 96)
    prompts = data.draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=5))
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(prompts), max_size=len(prompts)))
    batch = data.draw(st.integers(1, 9))
    arrays = [np.array(prompt) for prompt in prompts]
    seeds = [list(range(10 * i, 10 * i + count)) for i, count in enumerate(counts)]
    sampling = Sampling(1.0, 10, (3, 50))
    rows = generate(model, arrays, seeds, sampling, batch=batch)
    alone = [
        generate(model, [p], [[s]], sampling)[0]
        for p, own in zip(arrays, seeds, strict=True)
        for s in own
    ]
    assert tokens(rows) == tokens(alone)


@pytest.mark.parametrize(
    ("prompts", "seeds", "sampling", "message"),
    [
        ([ids(1)], [[1], [2]], NEVER, "1 prompts need as many lists of seeds, not 2"),
        ([ids()], [[1]], NEVER, "prompt 0 is empty"),
        ([ids(1), ids(97)], [[1], [1]], NEVER, "prompt 1 holds ids outside the vocabulary of 97"),
        ([ids(1)], [[1]], Sampling(1.0, 40, ()), "new_tokens is 40, which leaves no room"),
    ],
)
def test_errors_name_the_value(
    prompts: list[NDArray[np.int64]], seeds: list[list[int]], sampling: Sampling, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(build(SHAPES[0]), prompts, seeds, sampling)


def test_sampling_is_checked() -> None:
    with pytest.raises(ValueError, match=r"temperature is -0\.5"):
        Sampling(-0.5, 1, ())
    with pytest.raises(ValueError, match="new_tokens is 0"):
        Sampling(1.0, 0, ())
    with pytest.raises(ValueError, match="stop_ids is"):
        Sampling(1.0, 1, (-1,))
    with pytest.raises(ValueError, match="batch is 0"):
        generate(build(SHAPES[0]), [ids(1)], [[1]], NEVER, batch=0)


def letters(values: list[int]) -> str:
    """A text in which tokens are one to three characters long."""
    return "".join("abc"[: 1 + value % 3] + str(value % 7) for value in values)


def test_a_string_ends_a_row_at_the_token_that_completes_it(model: Model) -> None:
    seeds = [[1, 2, 3, 4]] * len(RAGGED)
    free = generate(model, RAGGED, seeds, Sampling(1.0, 18, ()))
    ending = Ending(("c3a", "never"), letters)
    cut = generate(model, RAGGED, seeds, Sampling(1.0, 18, ()), ending=ending)
    ended = 0
    for row, whole in zip(cut, free, strict=True):
        count = len(row.completion_ids)
        assert row.completion_ids.tolist() == whole.completion_ids[:count].tolist()
        assert len(row.logprobs) == len(row.entropies) == count
        held = [any(s in letters(whole.completion_ids[:n].tolist()) for s in ending.strings)
                for n in range(19)]  # fmt: skip
        assert (row.stop == "stop") == any(held)
        assert count == (held.index(True) if any(held) else 18)
        ended += any(held)
    assert 3 < ended < len(cut), "or nothing is tested"


def test_a_watcher_is_given_every_token_once_and_in_order(model: Model) -> None:
    seeds = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    sampling = Sampling(1.0, 12, (3, 4))
    seen: dict[tuple[int, int], list[int]] = {}

    def watch(prompt: int, sample: int, new: list[int]) -> None:
        seen.setdefault((prompt, sample), []).extend(new)

    rows = generate(model, RAGGED, seeds, sampling, watch=watch)
    assert tokens(rows) == tokens(generate(model, RAGGED, seeds, sampling))
    for row in rows:
        assert seen[row.prompt_index, row.sample] == row.completion_ids.tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_of_fixed_shapes_write_the_same(model: Model, temperature: float) -> None:
    """As they are recorded on a GPU: with ragged prompts, and rows that are dropped."""
    seeds, sampling = [list(range(8))] * 5, Sampling(temperature, 20, tuple(range(0, 97, 12)))
    plain = generate(model, RAGGED, seeds, sampling)
    fixed = generate(model, RAGGED, seeds, sampling, recorded=True)
    assert tokens(fixed) == tokens(plain)
    for one, other in zip(plain, fixed, strict=True):
        np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)


def test_only_decoders_have_a_step_to_record() -> None:
    model = build(CharRNNConfig(vocab=97, context=40, width=16, depth=1))
    with pytest.raises(ValueError, match="kind is 'fixed'"):
        generate(model, RAGGED, [[0]] * 5, NEVER, recorded=True)
