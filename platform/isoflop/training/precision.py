"""In which precision are matrices multiplied, and what does half precision need? A scale.

Weights, sums and the loss are float32 always. In float16 a gradient below 6e-8 would be 0: the loss
is multiplied by a large number before the backward pass and the gradients divided by it after
(Micikevicius et al. 2018). A step whose gradients overflow is left out, and the number halved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isoflop.run import Run

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: str) -> torch.autocast:
    """The precision of the matrix products. "auto": bfloat16 on a GPU that has it, else float32; a
    processor emulates it up to 170 times slower unless the chip has it.
    """
    kind = device.split(":")[0]
    if precision == "auto":
        precision = "bfloat16" if kind == "cuda" and has("bfloat16", "cuda") else "float32"
    dtype = DTYPES.get(precision, torch.bfloat16)
    return torch.autocast(kind, dtype=dtype, enabled=precision in DTYPES)


def has(precision: str, device: str) -> bool:
    """Does this device multiply so in hardware?"""
    if precision not in DTYPES:
        return True
    if device.startswith("cuda"):
        return precision == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "float16":
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def refusal(precision: str, device: str) -> str | None:
    """Why a run should not be computed here in a precision; None where it can be."""
    if has(precision, device):
        return None
    here = torch.cuda.get_device_name(device) if device.startswith("cuda") else "this machine"
    return (
        f"precision is {precision!r}, which {here} only emulates, up to 170 times slower than "
        f"float32; leave it at 'auto'"
    )


@dataclass
class LossScale:
    """The number by which the loss is multiplied, and how many steps were left out for it."""

    scaler: torch.amp.GradScaler
    left_out: Tensor  # steps, counted where the gradients are

    @staticmethod
    def of(run: Run, device: str, state: dict[str, Any]) -> LossScale | None:
        """As a checkpoint has it, or new; None for precisions that need none."""
        if run.precision != "float16":
            return None
        made = LossScale(
            torch.amp.GradScaler(device.split(":")[0]),
            torch.tensor(int(state.get("left_out", 0)), device=device),
        )
        if "scaler" in state:
            made.scaler.load_state_dict(state["scaler"])
        return made

    def state(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"scaler": self.scaler.state_dict(), "left_out": int(self.left_out)}

    def step(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Let the optimizer, whose gradients are divided again, take its step if they are finite
        (`norm` is), and make the number larger or smaller."""
        self.left_out += ~torch.isfinite(norm)
        self.scaler.step(optimizer)
        self.scaler.update()
