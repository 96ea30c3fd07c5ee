"""How is one step of decoding computed? As it stands, or recorded once and played again.

A step of a small model on a GPU is hundreds of kernels, each shorter than it takes to launch it.
Recorded as a CUDA graph they are launched together. That needs a cache of fixed shapes
(`models.cache.FixedCache`), and a new record whenever rows are dropped.

Letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.cache import Cache, CacheKind, FixedCache, KeyValueCache
from models.interface import Model

Head = Callable[[Tensor], Tensor]  # final states (..., D) to logits (..., V)
WARM = 2  # passes before the record: libraries choose their kernels, and take their memory


class Steps:
    """Each call reads one token per row, and gives the logits of the next."""

    cache_kind: CacheKind = "static"

    def __init__(self, model: Model, head: Head) -> None:
        self.model, self.head, self.vocab = model, head, model.config.text_vocab

    def __call__(self, token: Tensor, cache: Cache) -> Tensor:
        """Tokens (R,) behind what the cache holds to logits (R, V).

        A step of a small model waits for the calls of torch, which are shorter in inference mode.
        """
        with torch.inference_mode():
            hidden = self.model.hidden(token.unsqueeze(1), cache)
            return self.head(hidden[:, -1])[:, : self.vocab]


class RecordedSteps(Steps):
    """The same numbers. The logits stand in one place, and are gone with the next call. On a CPU
    nothing is recorded: the step of fixed shapes is computed each time."""

    cache_kind = "fixed"

    def __init__(self, model: Model, head: Head) -> None:
        super().__init__(model, head)
        self.cache: FixedCache | None = None  # that the record writes to

    def __call__(self, token: Tensor, cache: Cache) -> Tensor:
        assert isinstance(cache, FixedCache), "a recorded step needs fixed shapes"
        if not token.is_cuda:
            return super().__call__(token, cache)
        if self.cache is not cache:
            self._record(token, cache)
        self.token.copy_(token)
        self.graph.replay()
        KeyValueCache.advance(cache, 1)  # on the host; the record counts on the device
        return self.logits

    def _record(self, token: Tensor, cache: FixedCache) -> None:
        """Afterwards the cache is as it was, but for places that are not held."""
        self.token, self.cache, length = token.clone(), cache, cache.length
        current = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                super().__call__(self.token, cache)
                cache.rewind(length)
        current.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = super().__call__(self.token, cache)
        cache.rewind(length)
