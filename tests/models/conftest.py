"""What do the tests of the models share?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def compiler() -> Iterator[None]:
    """A compiler that has seen nothing: all models share one `forward`, and its limit of
    recompilations is that of a process."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
