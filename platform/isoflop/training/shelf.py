"""Where do the weights of several models stand so that one update moves them all? In rows.

    row n of (N, P):   | first group's parameters of model n | second group's | ...

Weights, gradients and AdamW's two moments are one such table each. Every parameter begins at a
multiple of `ALIGNED` numbers, as matrix products want it; between them stand zeros that stay. What
differs between the runs (rates, decay, betas) is a column (N, 1), what differs between groups of
parameters is a span of columns: an update is about ten kernels a span, however many models.

Letters: N models, P numbers in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ALIGNED = 128  # numbers


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one parameter stands in a row, and what one model's looks like."""

    name: str
    start: int
    shape: torch.Size

    def of(self, table: Tensor) -> Tensor:
        """That parameter of all models: a view (N, *shape) of a table (N, P)."""
        return table[:, self.start : self.start + self.shape.numel()].view(-1, *self.shape)


@dataclass(frozen=True, kw_only=True)
class Span:
    """The columns of one group of parameters, and what AdamW does with them."""

    columns: slice
    factor: float  # of the learning rate
    epsilon: float
    decay: Tensor  # (N, 1)


class Shelf:
    """The weights of N models and their optimizers' moments; both are read when it is built, and
    written back by `put_back`."""

    def __init__(self, models: Sequence[tuple[nn.Module, torch.optim.Optimizer]]) -> None:
        self._models = models
        places = [list(_places(*each)) for each in models]
        self.places, length = [place for place, _ in places[0]], _length(*models[0])
        device = next(models[0][0].parameters()).device
        table = torch.zeros(len(models), length, device=device)
        self.values, self.gradients = table, torch.zeros_like(table)
        self._first, self._second = torch.zeros_like(table), torch.zeros_like(table)
        self._parameters: list[list[Tensor]] = [[own for _, own in each] for each in places]
        self._steps = 0
        self._read()
        self.spans = list(self._spans())
        self._betas = torch.tensor(
            [optimizer.param_groups[0]["betas"] for _, optimizer in models],
            dtype=torch.float64,
            device=device,
        ).T.unsqueeze(-1)  # (2, N, 1)
        self.weights = {
            place.name: place.of(table).detach().requires_grad_() for place in self.places
        }

    def differentiate(self, losses: Tensor) -> None:
        """The gradients of losses (N,), each of its own model's weights."""
        found = torch.autograd.grad(losses.sum(), list(self.weights.values()))
        torch._foreach_copy_([place.of(self.gradients) for place in self.places], list(found))

    def clip(self, limit: float) -> Tensor:
        """The norm of each row's gradient (N,), which is then scaled to `limit` if it is above; 0:
        it stays. As `torch.nn.utils.clip_grad_norm_` has it."""
        norms: Tensor = torch.linalg.vector_norm(self.gradients, dim=1)
        if limit:
            self.gradients.mul_((limit / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1))
        return norms

    @torch.no_grad()
    def update(self, rates: Tensor) -> None:
        """A step of AdamW at learning rates (N,), Loshchilov & Hutter 2019, algorithm 2."""
        self._steps += 1
        rate = rates.unsqueeze(1)
        beta_1, beta_2 = self._betas.float()  # (N, 1) each
        first, second = (1 - self._betas**self._steps).float()
        for span in self.spans:
            own = (slice(None), span.columns)
            gradient, mean, square = self.gradients[own], self._first[own], self._second[own]
            mean.lerp_(gradient, (1 - beta_1).expand_as(gradient))
            square.mul_(beta_2).add_(gradient.square().mul_(1 - beta_2))
            size = square.sqrt().div_(second.sqrt()).add_(span.epsilon)
            weights = self.values[own]
            weights.mul_(1 - rate * span.factor * span.decay)
            weights.sub_((mean / size).mul_(rate * span.factor / first))

    @torch.no_grad()
    def put_back(self, row: int, moments: bool = True) -> None:
        """Into model `row`, and its optimizer's moments, which own their memory."""
        _, optimizer = self._models[row]
        parameters = self._parameters[row]
        torch._foreach_copy_(parameters, self._row(self.values, row))
        if not moments:
            return
        both = zip(self._row(self._first, row), self._row(self._second, row), strict=True)
        for parameter, (first, second) in zip(parameters, both, strict=True):
            optimizer.state[parameter] = {
                "step": torch.tensor(float(self._steps), device=parameter.device),
                "exp_avg": first.clone(),
                "exp_avg_sq": second.clone(),
            }

    @torch.no_grad()
    def _read(self) -> None:
        for row, (_, optimizer) in enumerate(self._models):
            parameters = self._parameters[row]
            torch._foreach_copy_(self._row(self.values, row), parameters)
            for place, parameter in zip(self.places, parameters, strict=True):
                if state := optimizer.state.get(parameter):
                    place.of(self._first)[row].copy_(state["exp_avg"])
                    place.of(self._second)[row].copy_(state["exp_avg_sq"])
                    self._steps = int(state["step"])

    def _row(self, table: Tensor, row: int) -> list[Tensor]:
        return [place.of(table)[row] for place in self.places]

    def _spans(self) -> Iterator[Span]:
        groups: list[list[dict[str, Any]]] = [o.param_groups for _, o in self._models]
        start = 0
        for number, group in enumerate(groups[0]):
            end = start + sum(_padded(parameter) for parameter in group["params"])
            decay = [[each[number]["weight_decay"]] for each in groups]
            yield Span(
                columns=slice(start, end),
                factor=group["factor"],
                epsilon=group["eps"],
                decay=torch.tensor(decay, device=self.values.device),
            )
            start = end


def _places(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[Place, nn.Parameter]]:
    """In the order of the optimizer's groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    start = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield Place(name=names[parameter], start=start, shape=parameter.shape), parameter
            start += _padded(parameter)


def _length(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    return sum(_padded(parameter) for g in optimizer.param_groups for parameter in g["params"])


def _padded(parameter: Tensor) -> int:
    return -(-parameter.numel() // ALIGNED) * ALIGNED
