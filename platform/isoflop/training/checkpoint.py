"""What does a killed run need in order to go on as if nothing had happened?

A checkpoint is a folder, written under a temporary name and renamed when it is whole:

    model.safetensors       the weights
    optimizer.safetensors   the optimizer's tensors, named <parameter index>.<name>
    ema.safetensors         the averaged weights, where the run keeps them
    state.json              step, seconds, history, the resolved run, its identity, its tokenizer

The schedule and the order of the data are functions of (run, step), and every step seeds torch's
generator from (seed, step, rank): so the step is their whole state. Nothing in here is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model

from isoflop.run import Run
from isoflop.training.averaging import Average
from models.interface import Model

WEIGHTS, AVERAGED = "model.safetensors", "ema.safetensors"
KEPT = 2  # the newest, and one before it in case the newest cannot be read


@dataclass
class Progress:
    """How far a run has come. `history`: one record of metrics per logged step."""

    step: int = 0
    seconds: float = 0.0  # training only
    capture_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    shared_steps: int = 0  # of them, those of a trunk that another run trained
    shared_seconds: float = 0.0
    scale: dict[str, Any] = field(default_factory=dict)  # see `precision.LossScale`
    history: list[dict[str, float]] = field(default_factory=list)


def save(
    folder: Path,
    run: Run,
    progress: Progress,
    model: Model,
    optimizer: torch.optim.Optimizer | None,
    averaged: Model | None = None,
    *,
    identity: str | None = None,
    kept: int | None = KEPT,
) -> Path:
    """Write `folder/step-N`, atomically, and drop all but the newest `kept`. `identity`: of what
    it is, if not of the run. Without an optimizer
    it is a final checkpoint: enough to sample and evaluate, not to go on training.

    Raises OSError where it cannot be written, and leaves nothing of it behind: the disk may be
    full, and what the other runs need.
    """
    target = folder / _name(progress.step)
    partial = folder / f".{target.name}.{os.getpid()}"
    partial.mkdir(parents=True, exist_ok=True)
    try:
        _fill(partial, run, progress, model, optimizer, averaged, identity or run.identity)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError):  # its word for what the system would not write
            raise OSError(f"checkpoint {target} cannot be written: {error}") from error
        raise
    if target.exists():  # the same step again, after a resume: the same bits
        shutil.rmtree(target)
    partial.rename(target)
    for old in _newest_first(folder)[kept:] if kept else ():
        shutil.rmtree(old)
    return target


def _fill(
    partial: Path,
    run: Run,
    progress: Progress,
    model: Model,
    optimizer: torch.optim.Optimizer | None,
    averaged: Model | None,
    identity: str,
) -> None:
    save_model(model, str(partial / WEIGHTS))  # stores tied weights once
    if optimizer is not None:
        save_file(_flatten(optimizer), partial / "optimizer.safetensors")
    if averaged is not None:
        save_model(averaged, str(partial / AVERAGED))
    for file in partial.iterdir():
        _flush(file)
    state = {
        "progress": vars(progress),
        "identity": identity,
        "run": run.as_json(),
        "tokenizer": {"name": run.data.tokenizer, "fingerprint": run.data.fingerprint},
    }
    write_json(partial / "state.json", state)


def load(
    folder: Path,
    run: Run,
    model: Model,
    optimizer: torch.optim.Optimizer,
    warn: Callable[[str], None] = print,
    average: Average | None = None,
    *,
    identity: str | None = None,
    most: int | None = None,
) -> Progress:
    """Bring model and optimizer to the newest checkpoint that can be read; a fresh start if none
    is.

    `identity`: whose checkpoints they are, if not the run's; `most`: steps that they may have.
    A final checkpoint, which has no optimizer, is one too: nothing is left to train after it.
    Raises ValueError if a readable checkpoint belongs to another run.
    """
    for path in _newest_first(folder):
        if most is not None and path.name > _name(most):
            continue
        try:
            state = json.loads((path / "state.json").read_text())
            written, progress = state["identity"], Progress(**state["progress"])
            moments = {} if _ended(path, run) else load_file(path / "optimizer.safetensors")
            load_file(path / WEIGHTS)  # whole? before the model is touched
            if average is not None:
                load_file(path / AVERAGED)
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            warn(f"checkpoint {path} cannot be read ({error!r}); trying the one before it")
            continue
        if written != (identity or run.identity):
            raise ValueError(f"checkpoint {path} was written by run {written}")
        load_model(model, str(path / WEIGHTS))
        _unflatten(optimizer, moments)
        if average is not None:
            load_model(average.model, str(path / AVERAGED))
            average.goes_on(progress.step)
        return progress
    return Progress()


def write_json(path: Path, values: Any) -> None:
    """Atomically: a reader sees the old file or the new one, and a crash leaves one of them."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    values = optimizer.state_dict()
    values["state"] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        values["state"].setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(values)


def _ended(path: Path, run: Run) -> bool:
    return path.name == _name(run.steps) and not (path / "optimizer.safetensors").exists()


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)
