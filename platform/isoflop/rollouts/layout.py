"""How do a model's matrices lie in memory while it writes? By columns, on a CPU.

A step of decoding multiplies each matrix with one vector per row, so its time is that of reading
the matrices. torch keeps the matrix of a linear layer (outputs, inputs) by rows, where the sum of
each output is a chain of additions along the inputs; by columns, the sums of many outputs grow side
by side. With MKL on one AVX2 core all products of a step take 1.6 times as long by rows as by
columns for 1 row of text, 1.3 times for 8, 1.15 times for 32. The numbers differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.interface import Model

PAYS = 16  # steps from which on the copies are repaid: they cost as much as about 6 steps save


@contextmanager
def by_columns(model: Model, steps: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, the linear layers hold copies of their matrices by columns; then their own again.

    Gives what takes final states (..., D) to logits (..., V), `model.head` or the same product. For
    so few `steps` that it would not pay, and away from a CPU, nothing is changed. No gradient can
    be taken inside, and the matrices must not be changed: the copies are dropped. They take as much
    memory as the matrices. Meanwhile the layers call the product itself: looking up the matrix anew
    takes some microseconds of each.
    """
    if steps < PAYS:
        yield model.head
        return
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    changed = {id(w): w for w in linear if _suits(w) and id(w) not in tables}
    kept = [(weight, weight.data) for weight in changed.values()]
    layers = [m for m in model.modules() if type(m) is nn.Linear and id(m.weight) in changed]
    try:
        for weight, rows in kept:
            weight.data = _columns(rows)
        for layer in layers:
            vars(layer)["forward"] = partial(F.linear, weight=layer.weight, bias=layer.bias)
        yield _head(model, tables)
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
        for weight, rows in kept:
            weight.data = rows


def _suits(weight: Tensor) -> bool:
    """A parameter of its own, not one computed from others, in a precision that CPUs have."""
    exact = weight.dtype in (torch.float32, torch.float64)
    return isinstance(weight, nn.Parameter) and exact and weight.device.type == "cpu"


def _columns(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous().t()


def _head(model: Model, tables: set[int]) -> Callable[[Tensor], Tensor]:
    """A head that is the input embedding too gets a copy beside it: tokens are looked up by row."""
    matrix = model.matrix()
    if matrix is None or id(matrix) not in tables or not _suits(matrix):
        return model.head
    columns = _columns(matrix.data)
    return lambda states: F.linear(states, columns)
