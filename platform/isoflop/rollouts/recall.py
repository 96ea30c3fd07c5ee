"""Does the model go on with a text as the text itself does? Word for word, and how far?

Asked of beginnings of training rows it is memorisation (Carlini et al. 2022), of held-out ones the
control: what can be guessed. Greedy rollouts are what is compared as a rule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoflop.rollouts.measured import Missing, Sample


def recalled(sample: Sample) -> float | Missing:
    """The share of the tokens, from the first on, that are the text's own until one is not."""
    truth = _known(sample)
    if isinstance(truth, Missing):
        return truth
    n = min(len(truth), len(sample.ids))
    differs = np.flatnonzero(sample.ids[:n] != truth[:n])
    return float((differs[0] if len(differs) else n) / len(truth))


def recalled_exactly(sample: Sample) -> float | Missing:
    """1 if all of it is."""
    share = recalled(sample)
    return share if isinstance(share, Missing) else float(share == 1)


def _known(sample: Sample) -> NDArray[np.integer] | Missing:
    if isinstance(sample.truth, Missing):
        return sample.truth
    return sample.truth if len(sample.truth) else Missing("the text ends with the prompt")
