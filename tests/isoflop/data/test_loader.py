"""Is a batch a function of seed and step alone, and an epoch free of repeats?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data import shards
from isoflop.data.loader import Batches, windows
from isoflop.data.shards import TokenFile


def counting(folder: Path, count: int) -> TokenFile:
    """A file whose ids are their own positions."""
    return shards.write(folder, f"count-{count}", [np.arange(count)], "uint32")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return counting(tmp_path_factory.mktemp("tokens"), 1003)


def test_targets_are_inputs_one_token_on(file: TokenFile) -> None:
    inputs, targets = Batches(file, context=16, rows=4, seed=0).batch(0)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous() and targets.is_contiguous()
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(16))


def test_the_order_is_fixed_for_ever(file: TokenFile) -> None:
    """Written down, so that another release of numpy cannot change what a seed means."""
    inputs, _ = Batches(file, context=16, rows=4, seed=7).batch(20)
    assert inputs[:, 0].tolist() == [133, 197, 5, 85]


def test_a_batch_does_not_depend_on_what_was_asked_before(file: TokenFile) -> None:
    forward = Batches(file, context=16, rows=4, seed=3)
    batches = [forward.batch(step) for step in range(60)]  # four epochs
    backward = Batches(file, context=16, rows=4, seed=3)
    for step in reversed(range(60)):
        assert torch.equal(backward.batch(step)[0], batches[step][0])
    resumed = Batches(file, context=16, rows=4, seed=3)
    assert torch.equal(resumed.batch(37)[0], batches[37][0])


@pytest.mark.parametrize("world", [2, 3, 4, 6, 12])
def test_workers_together_see_the_batch_of_one(file: TokenFile, world: int) -> None:
    for step in range(12):  # two epochs; several batches straddle their ends
        whole = Batches(file, context=16, rows=12, seed=1).batch(step)
        parts = [
            Batches(file, context=16, rows=12, seed=1).batch(step, rank, world)
            for rank in range(world)
        ]
        for side in (0, 1):
            assert torch.equal(torch.cat([part[side] for part in parts]), whole[side])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 400),
    context=st.integers(1, 50),
    rows=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
)
def test_no_token_is_an_input_twice_within_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, count: int, context: int, rows: int, seed: int
) -> None:
    context = min(context, count - 1)
    file = counting(tmp_path_factory.mktemp("tokens"), count)
    batches = Batches(file, context=context, rows=rows, seed=seed)
    length = batches.windows_per_epoch
    steps = -(-3 * length // rows)
    seen = torch.cat([batches.batch(step)[0] for step in range(steps)])
    for epoch in range(3):
        tokens = seen[epoch * length : (epoch + 1) * length].flatten()
        assert len(tokens.unique()) == len(tokens)
        assert count - len(tokens) <= 2 * context  # nothing but the two ends is left out


def test_epochs_differ_in_offset_and_order(file: TokenFile) -> None:
    batches = Batches(file, context=16, rows=1, seed=0)
    length = batches.windows_per_epoch
    epochs = [
        [int(batches.batch(e * length + k)[0][0, 0]) for k in range(length)] for e in range(8)
    ]
    offsets = {epoch[0] % 16 for epoch in epochs}
    assert len(offsets) > 3 and all(start % 16 == e[0] % 16 for e in epochs for start in e)
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == 8
    assert all(epoch != sorted(epoch) for epoch in epochs)


def test_every_token_is_seen_over_some_epochs(file: TokenFile) -> None:
    """The ends that one epoch leaves out fall into others."""
    batches = Batches(file, context=16, rows=10, seed=0)
    steps = 60 * batches.windows_per_epoch // 10
    seen = torch.cat([torch.cat(batches.batch(step)).flatten() for step in range(steps)])
    assert len(seen.unique()) == 1003


def test_seeds_differ(file: TokenFile) -> None:
    starts = {
        tuple(Batches(file, context=16, rows=8, seed=seed).batch(0)[0][:, 0].tolist())
        for seed in range(10)
    }
    assert len(starts) == 10


def test_epochs_count_what_was_seen(file: TokenFile) -> None:
    batches = Batches(file, context=16, rows=4, seed=0)
    assert batches.epochs(0) == 0
    assert batches.epochs(batches.windows_per_epoch) == 4
    assert batches.epochs(1) * 1003 == pytest.approx(64, rel=0.03)


def test_a_batch_may_be_larger_than_the_file(tmp_path: Path) -> None:
    batches = Batches(counting(tmp_path, 9), context=8, rows=5, seed=0)
    assert batches.batch(3)[0].tolist() == [list(range(8))] * 5


def test_short_types_become_int64(tmp_path: Path) -> None:
    short = shards.write(tmp_path, "short", [np.full(40, 65_535)], "uint16")
    inputs, targets = Batches(short, context=8, rows=2, seed=0).batch(0)
    assert inputs.dtype == torch.int64 and int(inputs.min()) == 65_535
    assert int(targets.max()) == 65_535


class TestWindows:
    @settings(max_examples=60, deadline=None)
    @given(length=st.integers(2, 300), context=st.integers(1, 40), count=st.integers(1, 40))
    def test_they_are_spaced_and_do_not_overlap(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        length: int,
        context: int,
        count: int,
    ) -> None:
        context = min(context, length - 1)
        file = counting(tmp_path_factory.mktemp("tokens"), length)
        inputs, targets = windows(file, context, count)
        assert len(inputs) == min(count, (length - 1) // context)
        assert torch.equal(targets, inputs + 1)
        assert len(inputs.flatten().unique()) == inputs.numel()
        gaps = inputs[:, 0].diff()
        assert len(gaps) == 0 or int(gaps.max() - gaps.min()) <= 1

    def test_a_short_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="context of 9 tokens is longer than the count-9"):
            windows(counting(tmp_path, 9), 9, 4)

    def test_no_windows_are_an_error(self, file: TokenFile) -> None:
        with pytest.raises(ValueError, match="count is 0"):
            windows(file, 9, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 1003}, "a context of 1003 tokens is longer than the count-1003 shard"),
        ({"context": 0}, "context is 0"),
        ({"rows": 0}, "rows is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
    ],
)
def test_wrong_settings_are_named(file: TokenFile, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(file, **{"context": 16, "rows": 4, "seed": 0, **changes})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 0, 3), "4 rows cannot be shared equally by 3 workers"),
        ((0, 0, 0), "by 0 workers"),
        ((0, 2, 2), "rank is 2; it must be from 0 to 1"),
        ((-1, 0, 1), "step is -1"),
    ],
)
def test_wrong_places_are_named(file: TokenFile, place: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(file, context=16, rows=4, seed=0).batch(*place)
