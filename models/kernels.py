"""How do elementwise layers run fast on a CPU? The same functions, with fewer passes.

On a CPU these layers wait for memory and for `tanh`, not for products. Each class below is one
function with its gradient written by hand for float32 and float64; elsewhere (a GPU, bfloat16, a
compiled model; the norm also where no gradient is asked for) torch's own fused kernels are faster
or more exact, and `models/layers.py` calls those. None of them can be differentiated twice, and
asking for it is an error.

Letters: D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

EXACT = (torch.float32, torch.float64)
PLAIN = (Tensor, Parameter)

PIECE = 2**17  # numbers


def by_hand(x: Tensor, weight: Tensor | None = None) -> bool:
    """Is x where the functions of this file are the better ones? A compiler fuses better still.

    They take a `weight` that stands for itself only: the weights of several models in one tensor
    have a say of their own in torch's functions (`__torch_function__`), and are left to those.
    """
    exact = x.dtype in EXACT
    plain = weight is None or type(weight) in PLAIN or silent(type(weight))
    return exact and plain and x.is_cpu and not torch.compiler.is_compiling()


def silent(kind: type) -> bool:
    """Does this kind of tensor leave torch's functions as they are? Parameters do."""
    return getattr(kind, "__torch_function__", None) is torch._C._disabled_torch_function_impl


def pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Views of a contiguous tensor that a core's own cache holds a few of."""
    return torch.split(x.view(-1), PIECE)


class TanhGELU(Function):
    """x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as GPT-2 has it.

    Hendrycks & Gimpel 2016, section 2. Since (1 + tanh u) / 2 = sigmoid(2u), and torch's sigmoid
    costs a third of its tanh, it is computed as x s with s = sigmoid(v), v = a x + b x^3. The
    derivative, s + s (1 - s) (3 v - 2 a x), is taken while v is at hand, and kept instead of x (in
    its place, if x is `spent`): piece by piece, so that no more than a piece goes to memory and
    back between two passes.
    """

    a = 2 * math.sqrt(2 / math.pi)
    b = 0.044715 * a

    @staticmethod
    def forward(ctx: Any, x: Tensor, spent: bool = False) -> Tensor:
        """Any shape to the same shape."""
        if not ctx.needs_input_grad[0]:
            return TanhGELU.inner(x).sigmoid_().mul_(x)
        y, derivative = torch.empty_like(x), x if spent else torch.empty_like(x)
        for part, s, d in zip(pieces(x), pieces(y), pieces(derivative), strict=True):
            d.copy_(TanhGELU.both(part, s))
        ctx.save_for_backward(derivative)
        return y

    @staticmethod
    def both(x: Tensor, y: Tensor) -> Tensor:
        """Of a piece x, the function into y, and the derivative, a tensor of its own."""
        v = TanhGELU.inner(x)
        torch.sigmoid(v, out=y)
        v.sub_(x, alpha=2 * TanhGELU.a / 3)
        torch.ops.aten.sigmoid_backward(v, y, grad_input=v)
        torch.add(y, v, alpha=3, out=v)
        y.mul_(x)
        return v

    @staticmethod
    def inner(x: Tensor) -> Tensor:
        """v, a tensor of its own."""
        return torch.mul(x, x).mul_(TanhGELU.b).add_(TanhGELU.a).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return gradient * derivative, None


class GatedGELU(Function):
    """`TanhGELU` of a gate, times what goes through it (Shazeer 2020). The gate is spent: its
    memory is taken for the derivative."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Two of one shape to the same shape."""
        y, opened = torch.empty_like(gate), torch.empty_like(gate)
        for part, s, through, product in zip(*map(pieces, (gate, opened, up, y)), strict=True):
            derivative = TanhGELU.both(part, s)
            part.copy_(derivative.mul_(through))
            torch.mul(s, through, out=product)
        ctx.save_for_backward(gate, opened)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        of_gate, opened = ctx.saved_tensors
        return gradient * of_gate, gradient * opened


class SquaredReLU(Function):
    """max(x, 0)^2 (So et al. 2021): two passes and back, where torch's square takes six. What is
    kept lies in the place of x, if x is `spent`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spent: bool = False) -> Tensor:
        """Any shape to the same shape."""
        positive = x.clamp_min_(0) if spent else x.clamp_min(0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2), None


class SoftCap(Function):
    """y = c tanh(x / c) (Gemma 2, 2024, section 2), whose derivative is 1 - (y / c)^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        """Any shape to the same shape."""
        y = torch.empty_like(x)
        for part, capped in zip(pieces(x), pieces(y), strict=True):
            torch.div(part, limit, out=capped).tanh_().mul_(limit)
        ctx.limit = limit
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_x = torch.empty_like(gradient)
        for part, g, d in zip(pieces(y), pieces(gradient), pieces(of_x), strict=True):
            torch.mul(g, part, out=d).mul_(part).mul_(-(ctx.limit**-2)).add_(g)
        return of_x, None


class RootMeanSquare(Function):
    """n w with n = x / sqrt(mean(x^2) + epsilon) over the last axis (Zhang & Sennrich 2019, eq. 4).

    With r the reciprocal root, the gradient is r g w - x r^3 mean(g w x) for x, and for w the sum
    of r g x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """x (..., D), weight (D,) to (..., D)."""
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        r = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, r, weight)
        y: Tensor = (x * r).mul_(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, r, weight = ctx.saved_tensors
        products = (gradient * x).flatten(0, -2)
        of_weight = torch.mv(products.t(), r.flatten())
        share = (products @ weight).view_as(r).div_(-x.shape[-1]).mul_(r).mul_(r).mul_(r)
        of_x = (gradient * weight).mul_(r).addcmul_(x, share)
        return of_x, of_weight, None


def constants(width: int, epsilon: float) -> tuple[float, Tensor, Tensor]:
    """What `root_mean_square` takes: sqrt D, what epsilon adds to the norm of x, and 0."""
    least = torch.tensor(math.sqrt(width * epsilon), dtype=torch.float32, device="cpu")
    return math.sqrt(width), least, torch.zeros_like(least)


def root_mean_square(x: Tensor, weight: Tensor, root: float, least: Tensor, zero: Tensor) -> Tensor:
    """`RootMeanSquare` without a gradient, in few calls of torch: steps of writing wait for those.

    n w = x w sqrt(D) / sqrt(|x|^2 + D epsilon), where the last root is a hypotenuse.
    """
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(least)
    return torch.addcmul(zero, x, weight, value=root).div_(norms)
