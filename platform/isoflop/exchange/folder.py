"""Which files does a model of the Hugging Face hub consist of? Read safely, written whole.

Only JSON and safetensors are read: a .bin or .pt file is a pickle, which can run anything.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.exchange.shapes import config_of, described, head_factor
from isoflop.exchange.weights import from_theirs, to_theirs

if TYPE_CHECKING:
    from torch import Tensor

    from models.interface import Model

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def load_model(folder: Path) -> Model:
    """The model in a local folder, in float32, in evaluation mode.

    Raises ValueError that names what is missing, unknown, or beyond what our models can express.
    """
    theirs = _json(folder / CONFIG)
    config = config_of(theirs)
    tensors = _tensors(folder)
    model = config.build()
    ours = from_theirs(config, tensors)
    if (factor := head_factor(theirs)) != 1:
        ours["unembedding.weight"] = ours["unembedding.weight"] * factor
    expected = model.state_dict()
    for name, tensor in ours.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in {folder}, but its {CONFIG} says "
                f"{tuple(expected[name].shape)}"
            )
    model.load_state_dict(ours)
    return model.eval()


def save_model(model: Model, folder: Path) -> None:
    """Writes `folder`, which must not exist yet; it appears whole or not at all.

    Raises ValueError for a model that the other side has no words for. The tokenizer is not part of
    it: token ids mean what the run's own tokenizer says.
    """
    import torch
    from safetensors.torch import save_file

    if folder.exists():
        raise ValueError(f"{folder} exists already; name a folder that does not")
    description = described(model.config)
    weights = to_theirs(model.config, {k: v.detach() for k, v in model.state_dict().items()})
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        (partial / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
        whole = {k: v.to("cpu", torch.float32).contiguous() for k, v in weights.items()}
        save_file(whole, partial / WEIGHTS, metadata={"format": "pt"})
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a table of fields")
    return values


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder, by their names, in float32."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for name in _files(folder):
        for key, tensor in load_file(folder / name).items():
            found[key] = tensor.float()
    return found


def _files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if not (folder / INDEX).exists():
        raise ValueError(
            f"{folder} holds neither {WEIGHTS} nor {INDEX}; pickled weights (.bin, .pt) are not "
            f"read, since they can run code: save them as safetensors first"
        )
    shards = _json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{folder / INDEX} has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{folder / INDEX} names {name!r}, which is no file of that folder")
    return names
