"""How does this machine compute a run? Settings that change no more than the rounding.

None of them is part of a run: the same run may be computed by other means elsewhere, or go on by
other means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a user may settle; what is left out follows from the model's size and the device."""

    micro_batch: int | None = None  # rows that go through the model at once, on each worker
    gpu: float = 1.0  # of a GPU's memory, where several points share it; settled by whoever places
    compile: Literal["auto", "on", "off"] = "auto"  # see `compiling`
    shard: Literal["auto", "on", "off"] = "auto"  # see `sharding`
    attention: Literal["sdpa", "flex", "flash"] = "sdpa"  # see `attending`
    together: int | None = None  # small runs of one shape that train as one, at most

    def __post_init__(self) -> None:
        if self.together is not None and self.together < 1:
            raise ValueError(f"--together is {self.together}; it must be at least 1 run")
        rows = self.micro_batch
        if rows is not None and rows < 1:
            raise ValueError(f"--micro-batch is {rows}; it must be at least 1 row")
        for name in ("compile", "shard"):
            value = getattr(self, name)
            if value not in ("auto", "on", "off"):
                raise ValueError(f"--{name} is {value!r}; it must be auto, on or off")
        if self.attention not in ("sdpa", "flex", "flash"):
            raise ValueError(f"--attention is {self.attention!r}; it must be sdpa, flex or flash")


USUAL = Means()
