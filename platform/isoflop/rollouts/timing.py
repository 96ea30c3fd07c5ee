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


@dataclass(frozen=True)
class Budget:
    """Is there time for this capture? If with it, and with what must still come, captures stay
    within `share` of the training time that the whole run will need at its pace so far.

    A capture is taken whole or not at all. Fewer prompts or seeds would save little where it
    matters, in short runs of small models: 8 rollouts of 40 tokens instead of 32 take 0.6 of the
    time, since steps are one after another however few rows they have. And which rows a run has
    would tell of the speed of its machine. So what passes (the weights between) is left out and
    counted, and what does not (the weights of step 0 follow from the seed, those of the end are
    kept) waits until the study's runs are done: every run ends up with the same rows at both.
    """

    share: float

    def affords(
        self, *, spent: float, training: float, expected: float, done: float, captures: int = 1
    ) -> bool:
        """Seconds: `spent` on captures and `training` so far, `expected` for each of so many
        captures: this one, and those that must still fit behind it. `done`: the share of the run's
        steps that are taken, above 0."""
        return spent + captures * expected <= self.share * training / done
