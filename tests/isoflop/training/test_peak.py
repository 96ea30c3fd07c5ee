"""Is a device's peak known by its name, and measured where it is not?"""

from __future__ import annotations

import pytest
import torch

from isoflop.training.peak import listed, peak


@pytest.mark.parametrize(("name", "tera"), [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("H100", 989), ("h200", 989),
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121), ("NVIDIA L40S", 362),
    ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA RTX 6000 Ada Generation", 364),
])  # fmt: skip
def test_a_gpu_is_known_by_the_name_that_its_driver_gives(name: str, tera: int) -> None:
    assert listed(name) == tera * 1e12


def test_an_unknown_one_is_not_taken_for_its_neighbour() -> None:
    assert listed("NVIDIA L400") is None and listed("Quadro T1000") is None


def test_a_processor_is_measured_once_and_draws_nothing_of_the_runs() -> None:
    peak.cache_clear()
    torch.manual_seed(3)
    first = torch.rand(4)
    torch.manual_seed(3)
    found = peak("cpu", "auto")
    assert torch.equal(torch.rand(4), first)
    assert 1e8 < found < 1e13, "between a toy and a cluster"
    assert peak("cpu", "auto") == found
