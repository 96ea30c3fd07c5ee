"""How well does a trained model predict a text? `isoflop evaluate`: perplexity and bits per byte.

The whole text is scored, in windows of the model's context that do not overlap, by the objective
that the model was trained with. The options are light; the model is loaded only when they have been
read.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROWS = 16  # windows at a time


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a text costs a model."""

    text: str
    bound: bool  # an upper bound of the loss, as that of masked diffusion
    documents: int
    tokens: int  # of the text, the ends of documents included
    windows: int
    loss: float  # nats per token
    perplexity: float
    bits_per_byte: float


def add(text: argparse.ArgumentParser) -> None:
    """The options of `isoflop evaluate`."""
    text.add_argument("folder", type=Path, help="a checkpoint, or the folder of a run")
    text.add_argument("text", help="a file, a folder, or whatever else a study reads")
    text.add_argument("--json", action="store_true", help="print one JSON object instead")
    text.set_defaults(act=show)


def show(options: argparse.Namespace) -> int:
    """Print what was found."""
    found = score(options.folder, options.text)
    if options.json:
        print(json.dumps(asdict(found)))
        return 0
    print(
        f"{found.text}: {found.documents:,} documents, {found.tokens:,} tokens, "
        f"{found.windows:,} windows\n"
        f"loss           {found.loss:.4f} nats per token{', at most' if found.bound else ''}\n"
        f"perplexity     {found.perplexity:.2f} per token\n"
        f"bits per byte  {found.bits_per_byte:.4f}"
    )
    return 0


def score(folder: Path, text: str) -> Result:
    """The text under the model in a folder, with the tokenizer that lies beside it.

    Raises ValueError for a folder that holds no whole checkpoint, for a text that cannot be read,
    and for one that is shorter than a window.
    """
    import torch

    from isoflop import objectives
    from isoflop.data import sources
    from isoflop.data.encode import ids_of
    from isoflop.data.loader import windows
    from isoflop.data.shards import dtype_for, write
    from isoflop.exchange.checkpoint import load_checkpoint
    from isoflop.targets import MaskedDiffusion
    from isoflop.training.distributed import Ranks
    from isoflop.training.evaluate import HeldOut, evaluate

    loaded = load_checkpoint(folder)
    run, tokenizer = loaded.run, loaded.tokenizer
    with tempfile.TemporaryDirectory() as place:
        file = write(
            Path(place),
            "text",
            (ids_of(document.text, tokenizer) for document in sources.documents(text)),
            dtype_for(tokenizer.vocab_size).type,
        )
        context = run.model.context
        try:
            rows = windows(file, context, max(1, len(file) // context), run.data.rows)
        except ValueError:
            raise ValueError(
                f"{text} has {len(file)} tokens, and one window of the model takes {context} + 1"
            ) from None
        held = HeldOut(rows, torch.from_numpy(tokenizer.token_bytes()))
        objective = objectives.build(run.objective, run.model)
        found = evaluate(loaded.model, held, objective, Ranks(), ROWS)
        return Result(
            text=text,
            bound=isinstance(run.objective, MaskedDiffusion),
            documents=file.documents,
            tokens=len(file),
            windows=len(rows),
            loss=found.loss,
            perplexity=math.exp(min(found.loss, 700.0)),
            bits_per_byte=found.bits_per_byte,
        )
