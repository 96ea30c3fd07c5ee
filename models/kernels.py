"""How do two elementwise layers run fast on a CPU? The same functions, with fewer passes.

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


class TanhGELU(Function):
    """x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as GPT-2 has it.

    Hendrycks & Gimpel 2016, section 2. Since (1 + tanh u) / 2 = sigmoid(2u), and torch's sigmoid
    costs a third of its tanh, it is computed as x s with s = sigmoid(a x + b x^3). The derivative,
    s + s (1 - s) (a x + 3 b x^3), is taken while x is at hand, and kept instead of x.
    """

    a = 2 * math.sqrt(2 / math.pi)
    b = 0.044715 * a

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        a, b = x.new_full((), TanhGELU.a), TanhGELU.b
        s = torch.addcmul(a, x, x, value=b).mul_(x).sigmoid_()
        if ctx.needs_input_grad[0]:
            slope = torch.addcmul(a, x, x, value=3 * b).mul_(x)
            ctx.save_for_backward(torch.ops.aten.sigmoid_backward(slope, s).add_(s))
        return x * s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        result: Tensor = gradient * derivative
        return result


class RootMeanSquare(Function):
    """n w with n = x / sqrt(mean(x^2) + epsilon) over the last axis (Zhang & Sennrich 2019, eq. 4).

    With r the reciprocal root, the gradient is r (g w - n mean(g w n)) for x and sum(g n) for w.
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
        n = x * r
        products = gradient * n
        of_weight = products.flatten(0, -2).sum(0)
        mean = (products @ weight).div_(x.shape[-1]).unsqueeze(-1)
        of_x = torch.addcmul(gradient * weight, n, mean, value=-1).mul_(r)
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
