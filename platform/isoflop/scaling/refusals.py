"""Why can a law not be laid through these runs, and which runs would let it?"""

from __future__ import annotations

import numpy as np

from isoflop.scaling import cures
from isoflop.scaling.forms import Points
from isoflop.scaling.interval import Refusal


def refuse(points: Points, free: int) -> Refusal | None:
    """Why a law with `free` parameters cannot be laid through these runs; `points` not centred."""
    size, tokens, where = np.exp(points.x), np.exp(points.y), (points.x, points.y, points.c)
    if len(size) < free + 1:
        why = f"{len(size)} run{'s' * (len(size) != 1)} cannot fix a law of {free} parameters"
        missing = cures.apart(*where, free + 1 - len(size)) if len(size) else ()
        return Refusal("too few points", why, f"finish at least {free + 1} runs", missing)
    if len(np.unique(size)) < 2:
        why = f"all runs have {size[0]:.4g} parameters"
        return Refusal("one size only", why, "add runs of another size", cures.other_sizes(*where))
    if len(np.unique(tokens)) < 2:
        why, cure = f"all runs read {tokens[0]:.4g} tokens", "add runs of another length"
        return Refusal("one token count only", why, cure, cures.other_lengths(*where))
    logs = np.column_stack([points.x, points.y])
    spread = np.linalg.svd(logs - logs.mean(axis=0), compute_uv=False)
    if spread[1] < 0.02 * spread[0]:
        why = "sizes and tokens lie on one line, so their effects cannot be told apart"
        cure = "add runs of a second budget"
        return Refusal("one line only", why, cure, cures.off_the_line(*where))
    return None
