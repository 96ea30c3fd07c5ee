"""By which backend is a run's attention computed? By sdpa, unless another is asked for and can be.

`models.attention` has three, which agree to rounding. flash and flex leave out what a window or the
borders of documents hide, where sdpa multiplies it by 0; without either, sdpa has as fast a kernel.
Text is written by sdpa always (`rollouts.sampling.evaluating`).
"""

from __future__ import annotations

import importlib.util

from isoflop.run import Run
from isoflop.training.compiling import has_compiler
from isoflop.training.means import Means
from isoflop.training.precision import DTYPES, has
from models.interface import Model


def prepare(model: Model, run: Run, device: str, means: Means) -> None:
    """Let the model compute its attention as asked. Raises ValueError where it cannot."""
    if why := refusal(run, device, means):
        raise ValueError(why)
    model.backend = means.attention


def refusal(run: Run, device: str, means: Means) -> str | None:
    """Why a run's attention cannot be computed as asked on a device; None where it can be."""
    if means.attention == "sdpa":
        return None
    why = _of_any(run, device)
    if why is None:
        why = _of_flash(run, device) if means.attention == "flash" else _of_flex(means)
    return why and f"--attention is {means.attention!r}, {why}; leave it at sdpa"


def _of_any(run: Run, device: str) -> str | None:
    if run.model.family == "encoder-decoder":
        return f"but {run.model.name} adds a bias to its scores, which sdpa alone is given"
    if not device.startswith("cuda"):
        return f"which needs a CUDA device for training; this one is {device!r}"
    return None


def _of_flash(run: Run, device: str) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "which needs the flash-attn package (pip install 'isoflop[flash]')"
    half = run.precision in DTYPES or (run.precision == "auto" and has("bfloat16", device))
    return None if half else f"which is for half precision, but precision is {run.precision!r}"


def _of_flex(means: Means) -> str | None:
    if means.compile == "off" or not has_compiler(gpu=True):
        return "which needs a compiled model (--compile, and triton)"
    return None
