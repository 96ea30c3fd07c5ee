"""Which documents had a run read by a step, and did a passage that it writes stand in one of them?

A pure function of the run, so that any step of it can be asked, long after it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from isoflop.data import feed
from isoflop.data.mixture import Mixed, parts
from isoflop.data.prepared import Prepared

if TYPE_CHECKING:
    from isoflop.data.loader import Seen
    from isoflop.run import Run  # its module imports torch, which text does not need

_AROUND = 60  # characters that are shown on either side of a passage


def lines(
    run: Run, prepared: Prepared | Mixed, step: int | None = None, passage: str = ""
) -> Iterator[str]:
    """What was seen before a step (default: the last), of each source; and, where a passage is
    asked for, every training document that holds it, whether it was seen yet or not.

    A document counts as seen when any of its tokens was. Raises ValueError for a step that the run
    does not have.
    """
    step = run.steps if step is None else step
    if not 0 <= step <= run.steps:
        raise ValueError(f"step is {step}; it must be from 0 to {run.steps}, the run's last")
    reads = feed.batches(run, prepared)
    documents, counts = reads.documents_seen(step), reads.seen(step)
    yield f"before step {step:,} of {run.steps:,}"
    for name, seen in documents.items():
        of = f"/{name}" if name else ""
        yield (
            f"{name or 'the text':16} {int(seen.sum()):9,} of {len(seen):,} documents, "
            f"{counts[f'data/tokens{of}']:,.0f} tokens, {counts[f'data/epochs{of}']:.3g} epochs"
        )
    if passage:
        for name, part in parts(prepared).items():
            yield from _holding(part, name, documents[name], passage)


def _holding(prepared: Prepared, name: str, seen: Seen, passage: str) -> Iterator[str]:
    """A line for each training document with the passage, or one that there is none."""
    file, tokenizer = prepared.train(), prepared.tokenizer()
    found = 0
    for number, end in enumerate(file.document_ends.tolist()):
        start = int(file.document_ends[number - 1]) if number else 0
        text = tokenizer.decode(file.read(start, end - 1).tolist())
        place = text.find(passage)
        if place < 0:
            continue
        found += 1
        shown = text[max(0, place - _AROUND) : place + len(passage) + _AROUND]
        yield f"{_of(name)}document {number} ({'seen' if seen[number] else 'not yet'}): {shown!r}"
    yield f"{_of(name)}{found:,} of {file.documents:,} training documents hold {passage!r}"


def _of(name: str) -> str:
    return f"{name}, " if name else ""
