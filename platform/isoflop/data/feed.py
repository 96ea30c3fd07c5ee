"""What does a run read? Its training batches and its held-out rows, of each source it mixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.data.frames import FRAMES
from isoflop.data.loader import Batches, windows
from isoflop.data.mixture import Mixed, parts
from isoflop.data.prepare import Prepared
from isoflop.data.rows import Rows

if TYPE_CHECKING:
    from isoflop.run import Run  # its module imports torch, which text does not need


def batches(run: Run, prepared: Prepared | Mixed) -> Batches:
    """What a resolved run trains on."""
    sources, text = parts(prepared), run.data
    weights = text.weights([part.train_tokens for part in sources.values()])
    return Batches(
        {name: part.train() for name, part in sources.items()},
        context=run.model.context,
        rows=run.rows,
        seed=run.seed,
        framing=text.rows,
        stride=text.stride,
        weights=weights if text.mixture else (),
    )


def held_out(run: Run, prepared: Prepared | Mixed) -> dict[str, Rows]:
    """What a resolved run is evaluated on: as many windows of each source."""
    sources, text = parts(prepared), run.data
    framing = text.rows if text.held_out == "same" else text.held_out
    stride = text.stride if FRAMES[framing].strides and text.held_out == "same" else 0
    count = max(1, run.evaluation.tokens // run.model.context // len(sources))
    return {
        name: windows(part.validation(), run.model.context, count, framing, stride)
        for name, part in sources.items()
    }


def check(run: Run, prepared: Prepared | Mixed) -> None:
    """Raise ValueError for a text that the run's rows cannot be cut from, and for a source that it
    would read more often than `data.most_epochs` allows.
    """
    reads = batches(run, prepared)
    held_out(run, prepared)
    limit = run.data.most_epochs
    if not limit:
        return
    seen = reads.seen(run.steps)
    for name in reads.frames:
        epochs = seen[f"data/epochs/{name}" if name else "data/epochs"]
        if epochs > limit:
            whose = f"the source {name!r}" if name else "the text"
            raise ValueError(
                f"the run's {run.tokens} tokens would read {whose} {epochs:.2f} times, and "
                f"data.most_epochs is {limit:g}; shorten the run, or give more text"
            )


def described(run: Run, reads: Batches) -> dict[str, float]:
    """What a run that has ended read: different tokens, and how often it predicted them on average.

    Of a mixture, of each source too, with its share of the rows.
    """
    seen = {name.removeprefix("data/"): epochs for name, epochs in reads.seen(run.steps).items()}
    each: dict[str, float] = {}
    if "" not in reads.frames:
        for (name, cuts), share in zip(reads.frames.items(), reads.turns.shares, strict=True):
            each[f"share/{name}"] = share
            each[f"unique_tokens/{name}"] = cuts.targets()[1]
    return {"unique_tokens": reads.unique_tokens, **seen, **each}
