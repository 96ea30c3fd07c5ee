"""Does the cache hold what was appended, and nothing else?"""

import pytest
import torch
from torch import Tensor

from models.cache import FixedCache, GrowingCache, KeyValueCache, QuantisedCache, SlidingCache

LAYERS, BATCH, HEADS, CAPACITY, SIZE = 2, 3, 2, 7, 4


def empty(batch: int = BATCH, capacity: int = CAPACITY) -> KeyValueCache:
    return KeyValueCache.allocate(
        layers=LAYERS, batch=batch, heads=HEADS, capacity=capacity, size=SIZE, like=torch.zeros(())
    )


def new_tokens(count: int, seed: int, batch: int = BATCH) -> Tensor:
    """(2, L, B, H, T, K): keys and values of every layer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, LAYERS, batch, HEADS, count, SIZE, generator=generator)


def fill(cache: KeyValueCache, tokens: Tensor) -> Tensor:
    """Appends to every layer and advances; what the layers were given back, stacked."""
    keys, values = tokens
    seen = [cache.append(layer, keys[layer], values[layer]) for layer in range(LAYERS)]
    cache.advance(tokens.shape[4])
    return torch.stack([torch.stack([pair[part] for pair in seen]) for part in (0, 1)])


def test_layers_get_back_all_tokens_in_order() -> None:
    cache, first, second = empty(), new_tokens(4, 0), new_tokens(3, 1)
    assert torch.equal(fill(cache, first), first)
    assert cache.length == 4
    assert torch.equal(fill(cache, second), torch.cat((first, second), dim=4))
    assert cache.length == CAPACITY


def test_tokens_count_only_once_advanced() -> None:
    cache, tokens = empty(), new_tokens(2, 0)
    cache.append(0, tokens[0, 0], tokens[1, 0])
    assert cache.length == 0
    again = new_tokens(2, 1)
    assert torch.equal(fill(cache, again), again)


def test_append_returns_views_and_copies_nothing() -> None:
    cache, tokens = empty(), new_tokens(2, 0)
    keys, values = cache.append(1, tokens[0, 1], tokens[1, 1])
    assert keys.untyped_storage().data_ptr() == cache.keys.untyped_storage().data_ptr()
    assert values.untyped_storage().data_ptr() == cache.values.untyped_storage().data_ptr()


def test_expanded_rows_stand_side_by_side_and_grow_apart() -> None:
    cache, first = empty(), new_tokens(3, 0)
    fill(cache, first)
    wide, second = cache.expand(2), new_tokens(2, 1, batch=2 * BATCH)
    assert (wide.batch, wide.length, wide.capacity) == (2 * BATCH, 3, CAPACITY)
    expected = torch.cat((first.repeat_interleave(2, dim=2), second), dim=4)
    assert torch.equal(fill(wide, second), expected)
    third = new_tokens(1, 2)
    assert torch.equal(fill(cache, third), torch.cat((first, third), dim=4)), "the old is untouched"


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_kept_rows_go_on_in_the_order_asked_for(rows: Tensor) -> None:
    cache, first, second = empty(), new_tokens(3, 0), new_tokens(1, 1, batch=2)
    fill(cache, first)
    kept = cache.keep(rows)
    assert (kept.batch, kept.length, kept.capacity) == (2, 3, CAPACITY)
    assert torch.equal(fill(kept, second), torch.cat((first[:, :, rows], second), dim=4))


def test_no_row_may_be_kept_at_the_end() -> None:
    cache = empty()
    fill(cache, new_tokens(3, 0))
    assert cache.keep(torch.zeros(BATCH, dtype=torch.bool)).batch == 0


def test_an_unknown_row_is_an_error() -> None:
    cache = empty()
    fill(cache, new_tokens(1, 0))
    with pytest.raises(IndexError):
        cache.keep(torch.tensor([BATCH]))


def test_too_many_tokens_are_refused() -> None:
    cache = empty()
    fill(cache, new_tokens(5, 0))
    keys, values = new_tokens(3, 1)
    with pytest.raises(ValueError, match="room for 7 tokens and holds 5; 3 more do not fit"):
        cache.append(0, keys[0], values[0])


def test_another_number_of_rows_is_refused() -> None:
    keys, values = new_tokens(1, 0, batch=1)  # would be copied into all rows unseen
    with pytest.raises(ValueError, match="3 rows, but the tokens have 1"):
        empty().append(0, keys[0], values[0])


def test_gradients_are_refused() -> None:
    keys, values = new_tokens(1, 0).requires_grad_()
    cache = empty()
    with pytest.raises(ValueError, match="no_grad"):
        cache.append(0, keys[0], values[0])
    with torch.no_grad():
        cache.append(0, keys[0], values[0])
    with pytest.raises(ValueError, match="no_grad"):  # a step of the same shape, once more
        cache.append(0, keys[0], values[0])


@pytest.mark.parametrize(("batch", "capacity"), [(0, 4), (2, 0)])
def test_an_empty_shape_is_refused(batch: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="is 0; it must be at least 1"):
        empty(batch, capacity)


def test_repeating_rows_zero_times_is_refused() -> None:
    with pytest.raises(ValueError, match="not 0 times"):
        empty().expand(0)


def test_a_cache_lives_on_the_device_and_in_the_dtype_it_is_asked_for() -> None:
    like = torch.zeros((), dtype=torch.bfloat16, device="meta")
    cache = KeyValueCache.allocate(layers=1, batch=1, heads=1, capacity=1, size=1, like=like)
    assert cache.keys.dtype == torch.bfloat16
    assert cache.values.device.type == "meta"


def test_a_growing_cache_takes_memory_as_it_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrowingCache, "FIRST", 2)
    cache = GrowingCache.allocate(
        layers=LAYERS, batch=BATCH, heads=HEADS, capacity=CAPACITY, size=SIZE, like=torch.zeros(())
    )
    parts = [new_tokens(count, count) for count in (1, 2, 3)]
    for number, part in enumerate(parts):
        assert torch.equal(fill(cache, part), torch.cat(parts[: number + 1], dim=4))
    assert (cache.keys.shape[3], cache.capacity) == (CAPACITY, CAPACITY)
    assert cache.keep(torch.tensor([0])).capacity == CAPACITY
    keys, values = new_tokens(2, 9)
    with pytest.raises(ValueError, match="room for 7 tokens and holds 6; 2 more"):
        cache.append(0, keys[0], values[0])


def test_a_fixed_cache_counts_on_the_device_and_can_be_rewound() -> None:
    like, shape = torch.zeros(1), {"layers": 1, "batch": 2, "heads": 1, "capacity": 6, "size": 4}
    cache = FixedCache.allocate(**shape, like=like)
    first, second = (torch.randn(2, 1, 3, 4) for _ in range(2))
    for part in (first, second):
        keys, values = cache.append(0, part, 2 * part)
        cache.advance(3)
    assert keys.shape == values.shape == (2, 1, 6, 4), "all the room, whatever is held"
    assert torch.equal(keys, torch.cat((first, second), dim=2)) and torch.equal(values, 2 * keys)
    cache.rewind(2)
    assert (cache.length, cache.held.tolist(), cache.places(2).tolist()) == (2, [2], [2, 3])
    kept = cache.keep(torch.tensor([1]))
    assert (kept.length, kept.held.tolist()) == (2, [2])
    assert torch.equal(kept.keys[0, :, :, :2], first[1:, :, :2]) and not kept.keys[..., 2:, :].any()
    with pytest.raises(ValueError, match="room for 6 tokens and holds 2; 5 more"):
        cache.append(0, torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 5, 4))


def test_a_sliding_cache_holds_what_a_window_reaches() -> None:
    cache = SlidingCache.allocate(
        windows=(3, None), batch=1, heads=HEADS, capacity=CAPACITY, size=SIZE, like=torch.zeros(())
    )
    parts = [new_tokens(count, count, batch=1) for count in (4, 1, 2)]
    whole = torch.cat(parts, dim=4)
    end = 0
    for part in parts:
        count = part.shape[4]
        for layer, reach in enumerate((2, CAPACITY)):  # a window of 3 is a token and two before it
            seen = torch.stack(cache.append(layer, part[0, layer], part[1, layer]))
            first = max(0, end - reach)
            assert torch.equal(seen, whole[:, layer, :, :, first : end + count])
        cache.advance(count)
        end += count
    assert [held.shape[2] for held in cache.keys] == [2, CAPACITY]


def test_a_quantised_number_is_off_by_half_a_step_at_most() -> None:
    cache = QuantisedCache.allocate(
        layers=LAYERS, batch=BATCH, heads=HEADS, capacity=CAPACITY, size=SIZE, like=torch.zeros(())
    )
    first, second = new_tokens(3, 0), new_tokens(2, 1)
    first[:, :, 0, :, 1] = 0
    fill(cache, first)
    cache = cache.keep(torch.tensor([0, 2, 1]))
    both = torch.cat((first[:, :, [0, 2, 1]], second), dim=4)
    error = (fill(cache, second) - both).abs()
    assert (error <= both.abs().amax(dim=-1, keepdim=True) / 254 * 1.001).all()
    assert error.max() > 0
    assert cache.keys.dtype == cache.values.dtype == torch.int8
