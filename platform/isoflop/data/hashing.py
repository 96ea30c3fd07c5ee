"""Which number stands for this one? 64 bits mixed so that every bit counts everywhere.

Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators" (the finaliser of
SplitMix64). Not for secrets: for tables, samples and signatures.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
ODD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


def mix(values: Hashes) -> Hashes:
    """A permutation of the 64-bit numbers, element by element."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
