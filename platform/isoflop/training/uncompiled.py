"""How do torch's optimizers go without its compiler? Methods of theirs import it only to tell it
that it need not look: 0.8 s of CPU time in every process that trains, also where nothing is
compiled. Nothing here compiles an optimizer; models may be compiled beside these all the same.
"""

from __future__ import annotations

import inspect

import torch

# Of every optimizer; torch wraps them, and the wrapper asks the method for what to call instead.
WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


class AdamW(torch.optim.AdamW):
    """torch's own, to the bit. Its `step` is not told what to differentiate, since nobody does."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def unwrap() -> None:
    """Let the methods of all optimizers of this process be called as they are."""
    for name in WRAPPED:
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        if not hasattr(method, "__dynamo_disable"):  # nobody has called it with the compiler yet
            setattr(method, "__dynamo_disable", method)
