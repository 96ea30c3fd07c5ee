"""In which order are the rows of an epoch visited? In a random one of its own, held in little room.

A row's place is a function of (seed, epoch, how many rows came before), so any step of a run can be
asked for by itself. Up to 2**24 rows the order is that of sorted random numbers, 4 bytes a row;
from there on it is computed for the rows that are asked for, and an epoch takes no memory at all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

SORTED_BELOW = 2**24  # rows of an epoch; another limit would change the order of finished runs
ROUNDS = 8  # half-rounds of the Feistel network; 7 are enough (Patarin 2003)


class Order:
    """The epochs over `count` rows. Keeps the order of the last epoch asked for, and no position.

    An epoch also draws an offset from 0 to `room` - 1, for rows that may begin anywhere.
    """

    def __init__(self, *, count: int, room: int, seed: int) -> None:
        assert count > 0 and room > 0
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; it must be from 0 to 2**64 - 1")
        self.count = count
        self.room = room
        self.seed = seed
        self._last: tuple[int, int, npt.NDArray[np.uint32] | None] = (-1, 0, None)

    def visits(self, entries: Places) -> tuple[Places, Places]:
        """Which rows (N,) the given entries of the endless sequence of epochs are, and the offsets
        (N,) of their epochs.
        """
        epochs, places = np.divmod(entries, self.count)
        rows, offsets = np.empty_like(entries), np.empty_like(entries)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            offset, order = self._epoch(int(epoch))
            offsets[inside] = offset
            asked = places[inside]
            rows[inside] = self._computed(asked, int(epoch)) if order is None else order[asked]
        return rows, offsets

    def _epoch(self, epoch: int) -> tuple[int, npt.NDArray[np.uint32] | None]:
        """Order comes from sorting the generator's raw output, whose stream numpy keeps stable
        between releases; that of `permutation` and `integers` it does not promise.
        """
        last = self._last  # read and replaced whole: another thread may ask for another epoch
        if last[0] != epoch:
            sort = self.count < SORTED_BELOW
            draws = self._draws(epoch, 1 + self.count if sort else 1)
            order = np.argsort(draws[1:], kind="stable").astype(np.uint32) if sort else None
            self._last = last = epoch, int(draws[0] % np.uint64(self.room)), order
        return last[1:]

    def _computed(self, places: Places, epoch: int) -> Places:
        keys = self._draws(epoch, 1 + ROUNDS)[1:]
        return permuted(places, self.count, keys)

    def _draws(self, epoch: int, count: int) -> Words:
        key = np.array([self.seed, epoch], dtype=np.uint64)
        return np.random.Philox(key=key).random_raw(count)


def permuted(places: Places, count: int, keys: Words) -> Places:
    """Where a permutation of 0 .. count - 1, chosen by the keys, takes the places (N,).

    A Feistel network over the bits that `count` needs: its two halves in turn are hidden by a hash
    of the other, which can be undone and so takes no two places to one. What lands beyond `count`
    walks on until it does not (Black & Rogaway 2002).
    """
    bits = max(2, (count - 1).bit_length())
    found = _feistel(places.astype(np.uint64), bits, keys)
    while (beyond := np.flatnonzero(found >= np.uint64(count))).size:
        found[beyond] = _feistel(found[beyond], bits, keys)
    return found.astype(np.int64)


def _feistel(values: Words, bits: int, keys: Words) -> Words:
    low = np.uint64(bits // 2)
    high_mask, low_mask = np.uint64(2 ** (bits - bits // 2) - 1), np.uint64(2 ** (bits // 2) - 1)
    high, right = values >> low, values & low_mask
    for index, key in enumerate(keys):
        if index % 2:
            high = high ^ (mix(right ^ key) & high_mask)
        else:
            right = right ^ (mix(high ^ key) & low_mask)
    return (high << low) | right


def mix(z: Words) -> Words:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): every bit depends on all the others.

    Written out, so that it is the same in every release of numpy.
    """
    z = z + np.uint64(0x9E3779B97F4A7C15)  # arrays of unsigned numbers wrap without a warning
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
