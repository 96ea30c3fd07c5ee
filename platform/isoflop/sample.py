"""What does a trained model write? `isoflop sample`: a checkpoint goes on from prompts.

The options are light; the model is loaded only when they have been read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add(text: argparse.ArgumentParser) -> None:
    """The options of `isoflop sample`."""
    text.add_argument("folder", type=Path, help="a checkpoint, or the folder of a run")
    text.add_argument(
        "--prompt", action="append", help="to go on from (default: the empty one); repeatable"
    )
    text.add_argument(
        "--tokens", type=int, metavar="N", help="at most (default: half of the model's context)"
    )
    text.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: 1)")
    text.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: 1, all")
    text.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    text.set_defaults(act=show)


def show(options: argparse.Namespace) -> int:
    """Print each prompt with what the model writes after it, an empty line between two."""
    asked = options.prompt or [""]
    texts = write(
        options.folder,
        asked,
        tokens=options.tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    print("\n\n".join(prompt + text for prompt, text in zip(asked, texts, strict=True)))
    return 0


def write(
    folder: Path,
    prompts: list[str],
    *,
    tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """What the model in a folder writes after each prompt; every prompt has the same seed.

    Raises ValueError for a folder that holds no whole checkpoint, and for settings out of bounds.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed}: it must be at least 0 and below 2**63")
    from isoflop.exchange.checkpoint import load_checkpoint
    from isoflop.rollouts.generate import Sampling, generate
    from isoflop.rollouts.prompts import prompt_ids

    loaded = load_checkpoint(folder)
    tokenizer, config = loaded.tokenizer, loaded.run.model
    sampling = Sampling(
        temperature=temperature,
        new_tokens=max(1, config.context // 2) if tokens is None else tokens,
        stop_ids=(tokenizer.end_of_text,),
        top_p=top_p,
    )
    ids = prompt_ids(prompts, tokenizer)
    framing = loaded.run.objective.framing(config.text_vocab)
    rows = generate(loaded.model, ids, [[seed]] * len(ids), sampling, framing)
    return [tokenizer.decode(_shown(row.completion_ids, tokenizer.end_of_text)) for row in rows]


def _shown(ids: NDArray[np.integer], end: int) -> list[int]:
    return [int(token) for token in ids if token != end]
