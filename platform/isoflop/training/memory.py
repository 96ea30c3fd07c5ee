"""How many bytes does training a model take on one device? Counted, not measured.

Exact are the weights, gradients and AdamW's two moments (four bytes each, whatever the precision of
the products), and what one step's forward pass keeps for its backward pass: the pass is carried out
on tensors without data, and every storage that autograd saves is counted once. Two gradients as
large as the logits, of the log-softmax and through it, come on top. What allocators waste and
kernels borrow is not known before: `MARGIN`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

from isoflop import objectives
from isoflop.data.rows import sample
from isoflop.run import Run
from isoflop.targets import Objective
from isoflop.training.precision import autocast
from models.interface import Config

MARGIN = 1.25  # over what is counted
STATE = 16  # bytes per parameter: weight, gradient, two moments, as of AdamW
AVERAGE = 4  # and a further weight, where their average is kept


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, without the margin."""

    state: int  # weights, gradients, moments
    activations: int  # kept from the forward for the backward pass, and the logits' gradients

    @property
    def needed(self) -> int:
        """With the margin."""
        return round(MARGIN * (self.state + self.activations))


def memory(run: Run, workers: int = 1) -> Memory:
    """Of a run whose model knows its vocabulary, its batch shared equally by `workers`.

    Activations grow linearly with the rows, so they are counted for one and for two.
    """
    rows = -(-run.rows // workers)
    one, two = (_saved(run.model, run.objective, run.precision, count) for count in (1, 2))
    logits = 2 * 4 * rows * run.model.context * run.model.vocab
    return Memory(
        state=state(run),
        activations=one + (rows - 1) * (two - one) + logits,
    )


def state(run: Run) -> int:
    """Bytes that a run keeps from step to step, whole."""
    return (STATE + (AVERAGE if run.ema else 0)) * run.model.parameters().all


@cache
def _saved(config: Config, target: Objective, precision: str, rows: int) -> int:
    """Bytes that autograd keeps of a forward pass over `rows`, parameters apart."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), tensor)  # held: a freed place is used again
        return tensor

    objective = objectives.build(target, config)
    real = objective.batch(sample(rows, config.context, config.text_vocab))
    with FakeTensorMode() as fake, torch.random.fork_rng(devices=[]):
        model = config.build()
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        batch = objectives.Batch(
            inputs={name: fake.from_tensor(value) for name, value in real.inputs.items()},
            targets=fake.from_tensor(real.targets),
            weights=None if real.weights is None else fake.from_tensor(real.weights),
            tokens=None if real.tokens is None else fake.from_tensor(real.tokens),
        )
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, autocast(precision, "cpu"), _grouped():
            loss = objective.loss(model, batch)
        assert loss.requires_grad
    return sum(size for place, (size, _) in kept.items() if place not in own)


def _grouped() -> AbstractContextManager[object]:
    """Where tensors have no data, torch knows the product of stacked matrices in bfloat16 only. One
    matrix for all rows keeps as much for the backward pass."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Single(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is torch._grouped_mm:
                return args[0] @ args[1][0]
            return function(*args, **(kwargs or {}))

    return Single()
