"""What is in a checkpoint folder, without the study that wrote it? The model, and all about it.

A final checkpoint holds `model.safetensors`, `state.json` (the resolved run: with it the model's
configuration and the fingerprint of its text) and the tokenizer's `encoding.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.data import tokenizers
from isoflop.run import Run
from models import ZOO

if TYPE_CHECKING:
    from torch import Tensor

    from isoflop.data.tokenizers import Tokenizer
    from models.interface import Model

STATE, WEIGHTS = "state.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model as a run left it after `step` optimizer steps, in evaluation mode."""

    folder: Path
    run: Run
    step: int
    model: Model
    tokenizer: Tokenizer


def load_checkpoint(folder: Path) -> Loaded:
    """What lies in a checkpoint, or in the newest one of a run's folder.

    Raises ValueError that names the file, and what in it is missing, unknown or does not fit.
    """
    folder = _newest(folder)
    state = _state(folder / STATE)
    try:
        run = Run.from_json(state["run"], ZOO)
        step, identity = int(state["progress"]["step"]), state["identity"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / STATE} is not of a checkpoint ({error!r})") from error
    if not run.resolved or run.identity != identity:
        raise ValueError(f"{folder / STATE} describes another run than {identity}, which wrote it")
    tokenizer = tokenizers.load(folder)
    if tokenizer.vocab_size != run.model.text_vocab:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} ids, where the model was "
            f"trained on {run.model.text_vocab}"
        )
    model = run.model.build()
    _fill(model, folder / WEIGHTS)
    return Loaded(folder=folder, run=run, step=step, model=model.eval(), tokenizer=tokenizer)


def _newest(folder: Path) -> Path:
    """The checkpoint that is meant: the folder itself, or the newest of a run's."""
    if (folder / STATE).is_file():
        return folder
    found = sorted(folder.glob("checkpoints/step-*")) or sorted(folder.glob("step-*"))
    if not found:
        raise ValueError(f"{folder} holds no {STATE}, and no checkpoints/step-N that would")
    return found[-1]


def _state(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a table of fields")
    return values


def _fill(model: Model, path: Path) -> None:
    """Raises ValueError where names or shapes of the weights are not those of the model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    expected = dict(model.state_dict(keep_vars=True))
    if unknown := sorted(found.keys() - expected.keys()):
        raise ValueError(f"{path} holds {unknown[0]!r}, which {model.config.name} has no place for")
    _present(expected, found, path)
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in {path}, but the run's model says "
                f"{tuple(expected[name].shape)}"
            )
    model.load_state_dict(found, strict=False)


def _present(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Tied weights are one tensor under two names, and stored under one of them."""
    stored = {expected[name].data_ptr() for name in found}
    for name, tensor in expected.items():
        if name not in found and tensor.data_ptr() not in stored:
            raise ValueError(f"{path} lacks {name!r}")
