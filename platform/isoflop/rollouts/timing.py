"""When is the model asked to write, and is there time for it?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def schedule(steps: int, captures: int, every: int = 0) -> tuple[int, ...]:
    """The optimizer steps after which to capture: 0, the end, and some between.

    They are every `every` steps; or, where that is 0, log-spaced, at most `captures` in all, and
    fewer where they would fall together. Sorted.
    """
    if steps < 1 or captures < 2:
        raise ValueError(
            f"steps is {steps} and captures is {captures}; they must be at least 1 and 2"
        )
    if every:
        return tuple(sorted({*range(0, steps, every), steps}))
    points = np.geomspace(1, steps, captures)[1:].round().astype(int)
    return tuple(sorted({0, steps, *points.tolist()}))


@dataclass
class Budget:
    """Is there time for this capture? Step 0 and the end are always taken, whatever they cost.

    One between is taken if, with it and with the one at the end, captures stay within `share` of
    the training time that the whole run will need at its pace so far. Those not taken are counted.
    """

    share: float
    skipped: int = 0

    def affords(
        self, *, spent: float, training: float, expected: float, done: float | None = None
    ) -> bool:
        """Seconds: `spent` on captures and `training` so far, `expected` for the next capture.

        `done`: the share of the run's steps that are taken. Without it only the training time so
        far counts, which rules out most captures early in a run.
        """
        if done in (0.0, 1.0):
            return True
        whole = training / done if done else training
        if spent + 2 * expected <= self.share * whole:
            return True
        self.skipped += 1
        return False
