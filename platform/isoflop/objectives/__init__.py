"""What is predicted? Each objective turns a batch and a model into a loss in nats per token.

The mapping from a run's configuration to the code that computes it is the one below; a new
objective is a configuration in `run`, a file here, and a line in the mapping.
"""

from isoflop.objectives.autoregressive import NextToken
from isoflop.objectives.interface import Objective
from isoflop.run import Autoregressive

OBJECTIVES: dict[type[Autoregressive], type[Objective]] = {Autoregressive: NextToken}


def build(config: Autoregressive) -> Objective:
    """The objective that a run's configuration names."""
    return OBJECTIVES[type(config)]()


__all__ = ["OBJECTIVES", "Objective", "build"]
