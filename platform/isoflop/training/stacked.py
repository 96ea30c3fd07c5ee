"""How do several models of one shape compute as one? Their weights are stacked, the code stays.

A model's forward pass is called once, on the rows of all N models one below the other (N B, T),
with a `Stacked` tensor (N, *shape) in the place of each parameter. A stacked tensor looks like one
model's parameter; the few functions that meet parameters are told here what N of them mean:

    products          one batched product: (N, B T, in) times (N, in, out)
    tables            each row reads the table of its own model
    norms             without their weights, then those, each model's on its own rows
    sums, products    of vectors and scalars broadcast over their own model's rows

All else (attention, activations) knows nothing of parameters and sees a larger batch. What is not
in this list is refused by name: `Unstackable`.

Letters: N models, B rows of each, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F


class Unstackable(Exception):
    """This model does something with a parameter that cannot be done for several at once."""


class Stacked(Tensor):
    """The same parameter of N models, (N, *shape); whoever asks is told `shape`.

    `values` is the tensor itself, to which gradients flow.
    """

    values: Tensor  # type: ignore[assignment]  # hides a method of sparse tensors

    @staticmethod
    def of(values: Tensor) -> Stacked:
        made = values.as_subclass(Stacked)
        made.values = values
        return made

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        rule = RULES.get(function)
        if rule is None:
            name = getattr(function, "__name__", repr(function))
            raise Unstackable(f"it calls {name} on a parameter, which is not known for several")
        with torch._C.DisableTorchFunctionSubclass():
            return rule(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Stacked, bias: Stacked | None = None) -> Tensor:
    """x (N B, ..., in), weight (out, in), bias (out,) to (N B, ..., out)."""
    matrices = _values(weight).transpose(1, 2)
    N = len(matrices)
    flat = x.reshape(N, -1, x.shape[-1])
    if bias is None:
        y = torch.bmm(flat, matrices)
    else:
        y = torch.baddbmm(_values(bias).unsqueeze(1), flat, matrices)
    return y.view(*x.shape[:-1], -1)


def _embedding(ids: Tensor, weight: Stacked, *args: Any, **kwargs: Any) -> Tensor:
    """ids (N B, T), weight (V, D) to (N B, T, D); ids (T,) are the same for all rows."""
    if any(value not in (None, False, 2.0) for value in (*args, *kwargs.values())):
        raise Unstackable("its embedding has settings of its own")
    table = _values(weight)
    N, V, D = table.shape
    if ids.dim() == 1:
        raise Unstackable("its rows share positions that are given")
    first = torch.arange(N, device=ids.device).view(N, 1, 1) * V
    flat = (ids.view(N, -1, ids.shape[-1]) + first).view(ids.shape)
    return F.embedding(flat, table.reshape(N * V, D))


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Stacked | None = None,
    bias: Stacked | None = None,
    eps: float = 1e-5,
) -> Tensor:
    y = F.layer_norm(x, tuple(shape), eps=eps)
    if weight is None:
        return y
    scale = _lead(weight, y)
    parts = y.view(len(scale), -1, *y.shape[1:])
    if bias is None:
        return (parts * scale).view(y.shape)
    return torch.addcmul(_lead(bias, y), parts, scale).view(y.shape)


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Stacked | None = None, eps: float | None = None
) -> Tensor:
    y = F.rms_norm(x, tuple(shape), eps=eps)
    return y if weight is None else cast(Tensor, _elementwise(torch.mul)(y, weight))


def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Of two tensors or numbers, one at least stacked; of two stacked ones, stacked."""

    def combine(a: Any, b: Any) -> Any:
        if isinstance(a, Stacked) and isinstance(b, Stacked):
            rank = max(a.values.dim(), b.values.dim())
            return Stacked.of(function(_raised(a, rank), _raised(b, rank)))
        own, other = (a, b) if isinstance(a, Stacked) else (b, a)
        if not isinstance(other, Tensor):
            result = function(own.values, other) if own is a else function(other, own.values)
            return Stacked.of(result)
        if other.dim() < own.values.dim() or len(other) % len(own.values):
            raise Unstackable("it adds to a parameter what is no batch of rows")
        stack = _lead(own, other)
        rows = other.view(len(stack), -1, *other.shape[1:])
        result = function(stack, rows) if own is a else function(rows, stack)
        return result.view(other.shape)

    return combine


def _lead(own: Stacked, rows: Tensor) -> Tensor:
    """The values as (N, 1, ..., *shape), which broadcast over rows (N, B, *rows.shape[1:])."""
    return _raised(own, rows.dim() + 1)


def _raised(own: Stacked, rank: int) -> Tensor:
    values = own.values
    return values.view(len(values), *(1,) * (rank - values.dim()), *values.shape[1:])


def _slice(own: Stacked, index: Any) -> Stacked:
    places = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(place, slice | int) for place in places):
        raise Unstackable("it picks from a parameter by a tensor")
    return Stacked.of(own.values[(slice(None), *places)])


def _split(own: Stacked, sizes: list[int], dim: int = 0) -> tuple[Stacked, ...]:
    axis = dim if dim < 0 else dim + 1
    return tuple(Stacked.of(part) for part in torch.split(own.values, sizes, axis))


def _values(own: Any) -> Tensor:
    """Raises Unstackable for a plain tensor among stacked ones."""
    if not isinstance(own, Stacked):
        raise Unstackable("it mixes its parameters with other tensors")
    return own.values


RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    Tensor.__getitem__: _slice,
    Tensor.shape.__get__: lambda own: own.values.shape[1:],  # type: ignore[attr-defined]
    Tensor.dim: lambda own: own.values.dim() - 1,
    torch.split: _split,
    Tensor.unbind: lambda own: tuple(Stacked.of(part) for part in own.values.unbind(1)),
    **{
        each: _elementwise(function)
        for function, names in (
            (torch.mul, (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)),
            (torch.add, (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)),
        )
        for each in names
    },
}
