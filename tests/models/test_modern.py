"""Has the modern reference the parts that its file lists?"""

from dataclasses import replace

import pytest
import torch

from models import ModernConfig
from models.cache import SlidingCache
from models.modern import Modern

CONFIG = ModernConfig(vocab=61, context=24, width=32, depth=5, heads=4, window=4, global_every=2)


def built(config: ModernConfig) -> Modern:
    torch.manual_seed(0)
    return Modern(config)


def test_the_last_layer_and_each_nth_before_it_read_everything() -> None:
    assert CONFIG.windows == (None, 4, None, 4, None)
    assert replace(CONFIG, global_every=4).windows == (None, 4, 4, 4, None)
    assert replace(CONFIG, window=None).windows == (None,) * 5


def test_each_layer_starts_as_the_identity() -> None:
    model, tokens = built(CONFIG), torch.randint(61, (2, 9))
    x = model.embedding_norm(model.embedding(tokens))
    torch.testing.assert_close(model.hidden(tokens), model.norm(x))


def test_a_stack_of_local_layers_reads_no_farther_than_its_windows_together() -> None:
    model = built(replace(CONFIG, depth=4, global_every=9))  # the last is global: leave it out
    model.blocks = model.blocks[:3]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
        before = torch.randint(61, (1, 24))
        after = before.clone()
        after[:, 0] = (after[:, 0] + 1) % 61
        moved = (model(after) - model(before)).abs().amax(dim=-1)[0] > 1e-6
    reach = 3 * (4 - 1)
    assert moved[: reach + 1].all() and not moved[reach + 1 :].any()


def test_logits_stay_within_the_cap() -> None:
    model, tokens = built(replace(CONFIG, cap=2.0)), torch.randint(61, (2, 9))
    with torch.no_grad():
        model.unembedding.weight.mul_(1e3)
        capped = model(tokens)
        model.config = replace(CONFIG, cap=0.0)
        free = model(tokens)
    assert capped.abs().max() <= 2
    assert free.abs().max() > 100
    torch.testing.assert_close(capped, 2 * torch.tanh(free / 2))


def test_queries_and_keys_cannot_run_away() -> None:
    model, tokens = built(CONFIG), torch.randint(61, (2, 9))
    with torch.no_grad():
        for block in model.blocks:
            block.attention.output.weight.normal_(std=0.1)
        usual = model(tokens)
        for block in model.blocks:
            queries_and_keys = block.attention.query_key_value.weight[:64]
            queries_and_keys.mul_(50)
        torch.testing.assert_close(model(tokens), usual, rtol=1e-2, atol=1e-2)


def test_the_sliding_cache_is_smaller_where_layers_are_local() -> None:
    model = built(CONFIG)
    cache = model.new_cache(1, 24, "sliding")
    with torch.no_grad():
        model(torch.randint(61, (1, 20)), cache)
    assert isinstance(cache, SlidingCache)
    assert [held.shape[2] for held in cache.keys] == [20, 3, 20, 3, 20]


@pytest.mark.parametrize(("field", "value"), [("window", 0), ("global_every", 0), ("cap", -1.0)])
def test_impossible_shapes_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        replace(CONFIG, **{field: value})
