"""How must initial weights and learning rates follow the size of a model? A rule per role.

Under the standard parametrisation the best learning rate falls as models grow. Under muP (Yang et
al. 2022) and CompleteP (Dey et al. 2025) it stays where a small model of the base width and depth
has it, so that one search serves a whole ladder of sizes. At the base all three are the same model
to the bit. With m = width / base width and r = depth / base depth:

    role        what it is                        init       rate    epsilon   decay
    embedding   tokens or positions in            1          1       1/m       1
    hidden      matrices from width to width      1/sqrt m   1/m     1/(m r)   m
    residual    those that write to the stream    see below  1/(m r) 1/m       m r
    head        from width to a fixed number      1          1       1         1
    vector      norms, biases, scalars            1          1       1/(m r)   1
    shift       those that write to the stream    1          1/r     1/m       1

for AdamW, whose decay is multiplied by the rate. Logits are multiplied by 1/m, and attention by
1/sqrt of how much larger the heads are than the base's (`isoflop.run.Run.resolve` writes both into
the model). CompleteP multiplies what a residual branch writes by 1/r; with Adam that is the same as
starting the matrix at 1/r and letting it move at 1/r, which costs no operation. Models draw those
matrices with a deviation of 1/sqrt(depth) already, so that 1/sqrt(m r) is left to do here. In muP,
r is 1 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from isoflop.run import AdamW, Parametrisation
from models.interface import Config, Model, Role


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """What one role's values of the base are multiplied by."""

    init: float = 1.0
    rate: float = 1.0
    epsilon: float = 1.0
    decay: float = 1.0


def multipliers(role: Role, rule: Parametrisation, config: Config) -> Multipliers:
    """See the table above. Raises ValueError where the model has no width or depth."""
    if rule.kind == "standard":
        return Multipliers()
    m, r = rule.ratios(config)
    table = {
        "embedding": Multipliers(epsilon=1 / m),
        "hidden": Multipliers(init=m**-0.5, rate=1 / m, epsilon=1 / (m * r), decay=m),
        "residual": Multipliers(init=(m * r) ** -0.5, rate=1 / (m * r), epsilon=1 / m, decay=m * r),
        "head": Multipliers(),
        "vector": Multipliers(epsilon=1 / (m * r)),
        "shift": Multipliers(rate=1 / r, epsilon=1 / m),
    }
    return table[role]


@torch.no_grad()
def initialise(model: Model, rule: Parametrisation) -> None:
    """Rescales freshly drawn weights; under the standard parametrisation, touches none."""
    if rule.kind == "standard":
        return
    for name, role in model.roles().items():
        factor = multipliers(role, rule, model.config).init
        if factor != 1:
            model.get_parameter(name).mul_(factor)


def groups(model: nn.Module, config: AdamW, rule: Parametrisation) -> Iterator[dict[str, Any]]:
    """Parameter groups for AdamW, each with the `factor` of its learning rate.

    Matrices with weight decay come first, then everything else (norms, biases) without.
    """
    parts: dict[tuple[bool, Multipliers], list[nn.Parameter]] = {}
    roles = model.roles() if isinstance(model, Model) and rule.kind != "standard" else {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = Multipliers()
            if isinstance(model, Model) and roles:
                own = multipliers(roles[name], rule, model.config)
            parts.setdefault((parameter.ndim < 2, own), []).append(parameter)
    for (bare, own), members in sorted(parts.items(), key=lambda part: part[0][0]):
        yield {
            "params": members,
            "lr": config.lr * own.rate,
            "factor": own.rate,
            "eps": config.epsilon * own.epsilon,
            "weight_decay": 0.0 if bare else config.weight_decay * own.decay,
        }
