from __future__ import annotations

import numpy as np
import pytest

from isoflop.benchmarks import peer
from isoflop.benchmarks.fit import world


@pytest.mark.parametrize("starts", [1, 32, 45, 243, 1000, 4500])
def test_a_part_of_the_grid_lies_inside_it(starts: int) -> None:
    axes = peer.part(starts)
    count = int(np.prod([len(values) for values in axes.values()]))
    assert 32 <= count <= 4500 and (count == 4500) == (starts == 4500)
    for name, values in axes.items():
        assert set(values) <= set(peer.AXES[name].tolist())
        if len(values) == 2:
            assert values[0] > peer.AXES[name][0] and values[1] < peer.AXES[name][-1]


@pytest.mark.skipif(not peer.installed(), reason="the package chinchilla is not installed")
def test_the_package_fits_a_law_to_the_same_runs() -> None:
    size, tokens, loss = world(60, 0)
    found = peer.search(size, tokens, loss, 32, 1e-3)
    assert found.starts == 32 and 1 < found.values["E"] < 2.5
