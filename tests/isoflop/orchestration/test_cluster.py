"""Is a cluster that is not there said at once, and is a standing one used?"""

import os
import socket
import time

import pytest

from isoflop.orchestration.cluster import Resources, cluster


def test_nothing_at_the_address_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with (
        pytest.raises(ValueError, match=rf"no Ray cluster answers at '127.0.0.1:{port}'"),
        cluster(f"127.0.0.1:{port}"),
    ):
        raise AssertionError("there is no cluster to work on")
    assert time.monotonic() - began < 10


def test_a_cluster_that_this_process_has_is_used_and_left_standing(ray_cluster: Resources) -> None:
    import ray

    with cluster(None) as found:
        assert found == ray_cluster
    assert ray.is_initialized()


def test_trials_are_as_important_as_their_driver(ray_cluster: Resources) -> None:
    """Ray's own default gives way to everything else on the machine."""
    import ray

    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
