"""Does it pay to compile a model for its run? On a GPU, from a certain length on.

torch.compile takes some 20 to 90 seconds, and then spares a GPU the launches of many small kernels
and their trips through memory. On a processor the products are nearly all of a step, and a small
point is over before its compiler is.
"""

from __future__ import annotations

import importlib.util
import shutil
from typing import cast

import torch
from torch import nn

from isoflop.run import Run
from isoflop.training.distributed import Ranks, is_sharded
from isoflop.training.means import Means
from models.interface import Model

# FLOPs of a rank from which "auto" compiles: some minutes of an H100 at the speed that small models
# reach. `studies/throughput.py` measures what compiling gains.
PAYS = 1e16


def prepared(model: nn.Module, run: Run, ranks: Ranks, means: Means) -> nn.Module:
    """The module to call in training: the model itself, or compiled; their weights are the same.

    Raises ValueError where compiling is asked for and there is nothing to compile with, or the
    model has experts.
    """
    if is_sharded(model) or not wanted(run, ranks, means):
        return model
    if isinstance(model, Model) and type(model).auxiliary is not Model.auxiliary:
        # torch traces the product of stacked matrices in bfloat16 only.
        if means.compile == "on" or means.attention == "flex":
            asked = "--compile is 'on'" if means.compile == "on" else "--attention is 'flex'"
            raise ValueError(
                f"{asked}, but the experts of {model.config.name} cannot be compiled; leave it out"
            )
        return model
    torch.compiler.reset()  # a reused process has compiled others, and torch would give up at eight
    return cast(nn.Module, torch.compile(model))


def wanted(run: Run, ranks: Ranks, means: Means) -> bool:
    """Raises ValueError as `prepared` does."""
    gpu = ranks.device.startswith("cuda")
    if means.compile == "auto":
        pays = means.attention == "flex" or run.training_flops / ranks.world >= PAYS
        return gpu and has_compiler(gpu) and pays
    if means.compile == "on" and not has_compiler(gpu):
        needed = "triton" if gpu else "a C++ compiler (g++ or clang++)"
        raise ValueError(f"--compile is 'on', which needs {needed}; there is none here")
    return means.compile == "on"


def has_compiler(gpu: bool) -> bool:
    """Is there what torch.compile hands its code to?"""
    if gpu:
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in ("g++", "clang++"))
