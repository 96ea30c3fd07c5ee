"""What has a model read so far? Its past tokens, in the form that no token is read twice.

    Cache            what every cache promises to whoever generates: rows that grow together
    KeyValues        adds what attention layers ask: `append` keys and values, get all of them back
    KeyValueCache    "static": room for all tokens, allocated once; the fastest
    GrowingCache     "growing": room for what is there, doubled when full
    SlidingCache     "sliding": a layer with a window keeps no more than its window; exact
    FixedCache       "fixed": static, with steps of one shape each, which can be recorded
    QuantisedCache   "quantised": 8 bits a number and a scale per head and token; not exact
    StateCache       a recurrent network's hidden state, of one size however much was read

The cache belongs to whoever generates. A model's layers write to it while they run, and the model
calls `advance` once after the last of them: no layer needs to know whether it is the last. A cache
holds values and no gradients: it is for use under `torch.no_grad()` or inference mode.

Letters: L layers, B batch rows, H key/value heads, S capacity in tokens, T new tokens, K head size,
D width of a state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Self

import torch
from torch import Tensor

CacheKind = Literal["static", "growing", "sliding", "quantised", "fixed"]
CACHE_KINDS: tuple[CacheKind, ...] = ("static", "growing", "sliding", "quantised", "fixed")
LEVELS = 127  # of a sign and seven bits


class Cache(ABC):
    """At most `capacity` tokens of each row; all rows hold equally many."""

    capacity: int
    length: int  # tokens that each row holds

    def __init__(self, capacity: int, length: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"a cache's length is {capacity}; it must be at least 1")
        assert 0 <= length <= capacity, "a cache cannot hold more than its capacity"
        self.capacity, self.length = capacity, length

    @property
    @abstractmethod
    def batch(self) -> int:
        """B: the rows."""

    @abstractmethod
    def _pick(self, rows: Tensor) -> Self:
        """A new cache of the rows with these numbers (R,)."""

    def advance(self, tokens: int) -> None:
        """Counts `tokens` tokens as held, once every layer has written them."""
        assert 0 <= tokens <= self.capacity - self.length, "advance follows append"
        self.length += tokens

    def expand(self, times: int) -> Self:
        """A new cache with every row `times` times, copies side by side (r0 r0 r1 r1 ...).

        One prefill per prompt serves all its samples. Raises ValueError if `times` is below 1.
        """
        if times < 1:
            raise ValueError(f"each row can be repeated 1 time or more, not {times} times")
        return self.keep(torch.arange(self.batch).repeat_interleave(times))

    def keep(self, rows: Tensor) -> Self:
        """A new cache of only these rows, in this order: (R,) row numbers, or a mask (B,).

        Finished rows are dropped this way. Raises IndexError for a row that is not there.
        """
        return self._pick(rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows)

    def _admit(self, rows: int, tokens: int, *written: Tensor) -> int:
        """The length with these tokens. Raises ValueError if they do not fit."""
        end = self.length + tokens
        if end > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} tokens and holds {self.length}; "
                f"{tokens} more do not fit"
            )
        if rows != self.batch:
            raise ValueError(f"the cache has {self.batch} rows, but the tokens have {rows}")
        if torch.is_grad_enabled() and any(part.requires_grad for part in written):
            raise ValueError("a cache keeps no gradients; use it under torch.no_grad()")
        return end


class KeyValues(Cache):
    """What attention layers read their past from."""

    @abstractmethod
    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one layer's new keys and values (B, H, T, K) behind what is held.

        Returns the layer's keys and values (B, H, S, K) that the new tokens may read, the new ones
        last. They count as held once `advance` is called. Raises ValueError if they do not fit.
        """


class KeyValueCache(KeyValues):
    """Room for S tokens in each of B rows, allocated once."""

    def __init__(self, keys: Tensor, values: Tensor, length: int = 0) -> None:
        """Around two tensors (L, B, H, S, K) whose first `length` tokens are filled."""
        assert keys.shape[:-1] == values.shape[:-1], "every key needs a value"
        super().__init__(keys.shape[3], length)
        self.keys, self.values = keys, values
        self._step: tuple[int, int, int, bool] | None = None
        self._views: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @classmethod
    def allocate(
        cls, *, layers: int, batch: int, heads: int, capacity: int, size: int, like: Tensor
    ) -> Self:
        """An empty cache of heads of `size` numbers, with the device and dtype of `like`."""
        check_sizes(batch, capacity)
        shape = (layers, batch, heads, capacity, size)
        return cls(like.new_empty(shape), like.new_empty(shape))

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns views of what is held; see `KeyValues.append`."""
        rows, _, new, _ = k.shape
        step = (self.length, rows, new, torch.is_grad_enabled())
        if step != self._step:
            self._begin(self._admit(rows, new, k, v))
            self._step = step
        new_keys, new_values, keys, values = self._views[layer]
        new_keys.copy_(k)
        new_values.copy_(v)
        return keys, values

    def _begin(self, end: int) -> None:
        """Views of what is written next and of what is then held, for all layers at once: in a
        step of one token, they would cost a layer more than its copies."""
        both = (self.keys, self.values)
        written = (part.narrow(3, self.length, end - self.length).unbind() for part in both)
        held = (part.narrow(3, 0, end).unbind() for part in both)
        self._views = list(zip(*written, *held, strict=True))

    def _pick(self, rows: Tensor) -> Self:
        return type(self)(
            _rows_of(self.keys, rows, self.length),
            _rows_of(self.values, rows, self.length),
            self.length,
        )


class FixedCache(KeyValueCache):
    """Layers are given all the room there is, and a mask hides what is not written yet.

    How much is held stands on the device too, and no step depends on a number of the host: a step
    of as many tokens is the same work each time, and can be recorded and played again (a CUDA
    graph). It pays where launching kernels takes longer than their work.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int = 0) -> None:
        super().__init__(keys, values, length)
        self.held = keys.new_full((1,), length, dtype=torch.long)
        for part in (keys, values):
            part[:, :, :, length:].zero_()  # what is hidden is multiplied too, by 0

    def places(self, tokens: int) -> Tensor:
        """The positions (T,) of the next `tokens` tokens."""
        return self.held + torch.arange(tokens, device=self.held.device)

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        self.held += tokens

    def rewind(self, length: int) -> None:
        """Forget the tokens behind the first `length`."""
        assert 0 <= length <= self.length, "what has not been read cannot be kept"
        self.length = length
        self.held.fill_(length)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns all the room (B, H, S, K), whatever is held."""
        self._admit(k.shape[0], k.shape[2], k, v)
        places = self.places(k.shape[2])
        self.keys[layer].index_copy_(2, places, k)
        self.values[layer].index_copy_(2, places, v)
        return self.keys[layer], self.values[layer]


class GrowingCache(KeyValueCache):
    """Memory for what is held, doubled when it is full: for lengths that nobody can foresee."""

    FIRST = 64  # tokens of room to begin with

    def __init__(
        self, keys: Tensor, values: Tensor, length: int = 0, capacity: int | None = None
    ) -> None:
        super().__init__(keys, values, length)
        self.capacity = self.capacity if capacity is None else capacity

    @classmethod
    def allocate(
        cls, *, layers: int, batch: int, heads: int, capacity: int, size: int, like: Tensor
    ) -> Self:
        """Empty, and never longer than `capacity` tokens; see `KeyValueCache.allocate`."""
        check_sizes(batch, capacity)
        shape = (layers, batch, heads, min(capacity, cls.FIRST), size)
        return cls(like.new_empty(shape), like.new_empty(shape), 0, capacity)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self._admit(k.shape[0], k.shape[2], k, v)
        if end > self.keys.shape[3]:
            room = min(self.capacity, max(end, 2 * self.keys.shape[3]))
            self.keys, self.values = self._wider(self.keys, room), self._wider(self.values, room)
        return super().append(layer, k, v)

    def _wider(self, held: Tensor, room: int) -> Tensor:
        """Whatever is written is kept, also by the layers that have appended already."""
        wider = held.new_empty(*held.shape[:3], room, held.shape[4])
        wider[:, :, :, : held.shape[3]] = held
        return wider

    def _pick(self, rows: Tensor) -> Self:
        kept = super()._pick(rows)
        kept.capacity = self.capacity
        return kept


class SlidingCache(KeyValues):
    """Each layer keeps what its window can still reach, and no more: exact, and small."""

    def __init__(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        windows: tuple[int | None, ...],
        capacity: int,
        length: int = 0,
    ) -> None:
        """Per layer, keys and values (B, H, held, K), and the window (None: all tokens)."""
        assert len(keys) == len(values) == len(windows), "one of each per layer"
        super().__init__(capacity, length)
        self.keys, self.values, self.windows = keys, values, windows

    @classmethod
    def allocate(
        cls,
        *,
        windows: tuple[int | None, ...],
        batch: int,
        heads: int,
        capacity: int,
        size: int,
        like: Tensor,
    ) -> Self:
        """An empty cache, with the device and dtype of `like`."""
        check_sizes(batch, capacity)
        empty = [like.new_empty(batch, heads, 0, size) for _ in windows]
        return cls(empty, list(empty), windows, capacity)

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._admit(k.shape[0], k.shape[2], k, v)
        window = self.windows[layer] or self.capacity + 1
        seen = torch.cat((self.keys[layer], k), dim=2), torch.cat((self.values[layer], v), dim=2)
        oldest = max(0, seen[0].shape[2] - window + 1)  # the next token reads window - 1 before it
        self.keys[layer], self.values[layer] = (part[:, :, oldest:] for part in seen)
        return seen

    def _pick(self, rows: Tensor) -> Self:
        chosen = rows.to(self.keys[0].device)
        return type(self)(
            [held[chosen] for held in self.keys],
            [held[chosen] for held in self.values],
            self.windows,
            self.capacity,
            self.length,
        )


class QuantisedCache(KeyValueCache):
    """8 bits a number: a quarter of the memory of float32, about half of bfloat16.

    Every head of every token is scaled by its largest absolute number, so that a number is off by
    at most 1/254 of that (Dettmers et al. 2022, section 2.1: absmax quantisation, per vector).
    """

    def __init__(
        self, keys: Tensor, values: Tensor, length: int = 0, scales: Tensor | None = None
    ) -> None:
        """Around int8 keys and values (L, B, H, S, K) and their scales (2, L, B, H, S, 1)."""
        super().__init__(keys, values, length)
        assert scales is not None and scales.shape[4] == keys.shape[3], "every head has a scale"
        self.scales = scales

    @classmethod
    def allocate(
        cls, *, layers: int, batch: int, heads: int, capacity: int, size: int, like: Tensor
    ) -> Self:
        """Returns numbers of the dtype of `like`; see `KeyValueCache.allocate`."""
        check_sizes(batch, capacity)
        shape = (layers, batch, heads, capacity, size)
        keys, values = (like.new_empty(shape, dtype=torch.int8) for _ in range(2))
        return cls(keys, values, 0, like.new_empty(2, *shape[:-1], 1))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the 8 bits say, also of the new tokens: chunks do not change the result."""
        self._admit(k.shape[0], k.shape[2], k, v)
        scales = torch.stack([part.abs().amax(dim=-1, keepdim=True) / LEVELS for part in (k, v)])
        now = slice(self.length, self.length + k.shape[2])
        self.scales[:, layer, :, :, now] = scales
        steps = scales.clamp(min=torch.finfo(scales.dtype).tiny)  # a head of zeros stays zeros
        held = super().append(layer, (k / steps[0]).round(), (v / steps[1]).round())
        key_scale, value_scale = self.scales[:, layer, :, :, : now.stop]
        return held[0] * key_scale, held[1] * value_scale

    def _pick(self, rows: Tensor) -> Self:
        keys, values = (_rows_of(held, rows, self.length) for held in (self.keys, self.values))
        both = [_rows_of(part, rows, self.length) for part in self.scales]
        return type(self)(keys, values, self.length, torch.stack(both))


class StateCache(Cache):
    """The state of a recurrent network: it has read everything and keeps no token."""

    def __init__(self, state: tuple[Tensor, ...], capacity: int, length: int = 0) -> None:
        """Around the parts of a state, each (L, B, D): one of a GRU, two of an LSTM."""
        super().__init__(capacity, length)
        self.state = state

    @property
    def batch(self) -> int:
        return self.state[0].shape[1]

    def write(self, state: tuple[Tensor, ...], rows: int, tokens: int) -> None:
        """The state after `tokens` more tokens of `rows` rows, and counts them as held.

        Raises ValueError if they do not fit.
        """
        self._admit(rows, tokens, *state)
        self.state = state
        self.advance(tokens)

    def _pick(self, rows: Tensor) -> Self:
        chosen = rows.to(self.state[0].device)
        return type(self)(tuple(p[:, chosen] for p in self.state), self.capacity, self.length)


def check_sizes(batch: int, capacity: int) -> None:
    """Raises ValueError unless a cache of these sizes could hold anything."""
    for name, value in (("batch", batch), ("length", capacity)):
        if value < 1:
            raise ValueError(f"a cache's {name} is {value}; it must be at least 1")


def _rows_of(held: Tensor, rows: Tensor, length: int) -> Tensor:
    """(L, R, H, S, K) of (L, B, H, S, K); the empty part of each row is left as it is."""
    layers, _, heads, capacity, size = held.shape
    chosen = held.new_empty(layers, len(rows), heads, capacity, size)
    chosen[:, :, :, :length] = held[:, rows.to(held.device), :, :length]
    return chosen
