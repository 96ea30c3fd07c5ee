"""What has a model read so far? Keys and values of past tokens, so that none is read twice.

The cache belongs to whoever generates. A model's layers `append` to it while they run, and the
model calls `advance` once after the last of them: no layer needs to know whether it is the last.

Letters: L layers, B batch rows, H key/value heads, S capacity in tokens, T new tokens, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Room for S tokens in each of B rows, allocated once; all rows hold equally many tokens.

    A cache holds values and no gradients: it is for use under `torch.no_grad()` or inference mode.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int = 0) -> None:
        """Around two tensors (L, B, H, S, K) whose first `length` tokens are filled."""
        assert keys.shape[:-1] == values.shape[:-1], "every key needs a value"
        assert 0 <= length <= keys.shape[3], "a cache cannot hold more than its capacity"
        self.keys = keys
        self.values = values
        self.length = length

    @classmethod
    def allocate(
        cls,
        *,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        size: int,
        like: Tensor,
    ) -> KeyValueCache:
        """An empty cache of heads of `size` numbers, with the device and dtype of `like`."""
        for name, value in (("batch", batch), ("length", capacity)):
            if value < 1:
                raise ValueError(f"a cache's {name} is {value}; it must be at least 1")
        shape = (layers, batch, heads, capacity, size)
        return cls(like.new_empty(shape), like.new_empty(shape))

    @property
    def capacity(self) -> int:
        """S: the tokens that fit into each row."""
        return self.keys.shape[3]

    @property
    def batch(self) -> int:
        """B: the rows."""
        return self.keys.shape[1]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one layer's new keys and values (B, H, T, K) behind what is held.

        Returns views of the layer's keys and values (B, H, length + T, K), the new ones included.
        They count as held once `advance` is called. Raises ValueError if they do not fit.
        """
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} tokens and holds {self.length}; "
                f"{k.shape[2]} more do not fit"
            )
        if k.shape[0] != self.batch:
            raise ValueError(f"the cache has {self.batch} rows, but the tokens have {k.shape[0]}")
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise ValueError("a cache keeps no gradients; use it under torch.no_grad()")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Counts `tokens` appended tokens as held, once every layer has appended them."""
        assert 0 <= tokens <= self.capacity - self.length, "advance follows append"
        self.length += tokens

    def expand(self, times: int) -> KeyValueCache:
        """A new cache with every row `times` times, copies side by side (r0 r0 r1 r1 ...).

        One prefill per prompt serves all its samples. Raises ValueError if `times` is below 1.
        """
        if times < 1:
            raise ValueError(f"each row can be repeated 1 time or more, not {times} times")
        rows = torch.arange(self.batch, device=self.keys.device)
        return self.keep(rows.repeat_interleave(times))

    def keep(self, rows: Tensor) -> KeyValueCache:
        """A new cache of only these rows, in this order: (R,) row numbers, or a mask (B,).

        Finished rows are dropped this way. Raises IndexError for a row that is not there.
        """
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1)
        return KeyValueCache(
            self._rows_of(self.keys, rows), self._rows_of(self.values, rows), self.length
        )

    def _rows_of(self, held: Tensor, rows: Tensor) -> Tensor:
        layers, _, heads, capacity, size = held.shape
        chosen = held.new_empty(layers, len(rows), heads, capacity, size)
        chosen[:, :, :, : self.length] = held[:, rows, :, : self.length]  # the empty part stays so
        return chosen
