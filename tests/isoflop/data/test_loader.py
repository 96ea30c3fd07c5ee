"""Is a batch a function of seed and step alone, and an epoch free of repeats?"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data import loader, shards
from isoflop.data.frames import FRAMES
from isoflop.data.loader import windows as window_rows
from isoflop.data.rows import Rows, row_seeds
from isoflop.data.shards import TokenFile
from isoflop.objectives.autoregressive import NextToken


def pair(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T)."""
    ids = torch.from_numpy(rows.ids)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


class Batches(loader.Batches):
    def pair(self, *place: int) -> tuple[torch.Tensor, torch.Tensor]:
        return pair(self.batch(*place))


def windows(file: TokenFile, context: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return pair(window_rows(file, context, count))


def counting(folder: Path, count: int) -> TokenFile:
    """A file whose ids are their own positions."""
    return shards.write(folder, f"count-{count}", [np.arange(count)], "uint32")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return counting(tmp_path_factory.mktemp("tokens"), 1003)


def test_targets_are_inputs_one_token_on(file: TokenFile) -> None:
    inputs, targets = Batches(file, context=16, rows=4, seed=0).pair(0)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous() and targets.is_contiguous()
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(16))


def test_the_order_is_fixed_for_ever(file: TokenFile) -> None:
    """Written down, so that another release of numpy cannot change what a seed means."""
    inputs, _ = Batches(file, context=16, rows=4, seed=7).pair(20)
    assert inputs[:, 0].tolist() == [133, 197, 5, 85]


def test_a_batch_does_not_depend_on_what_was_asked_before(file: TokenFile) -> None:
    forward = Batches(file, context=16, rows=4, seed=3)
    batches = [forward.pair(step) for step in range(60)]  # four epochs
    backward = Batches(file, context=16, rows=4, seed=3)
    for step in reversed(range(60)):
        assert torch.equal(backward.pair(step)[0], batches[step][0])
    resumed = Batches(file, context=16, rows=4, seed=3)
    assert torch.equal(resumed.pair(37)[0], batches[37][0])


@pytest.mark.parametrize("world", [2, 3, 4, 6, 12])
def test_workers_together_see_the_batch_of_one(file: TokenFile, world: int) -> None:
    for step in range(12):  # two epochs; several batches straddle their ends
        whole = Batches(file, context=16, rows=12, seed=1).pair(step)
        parts = [
            Batches(file, context=16, rows=12, seed=1).pair(step, rank, world)
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
    seen = torch.cat([batches.pair(step)[0] for step in range(steps)])
    for epoch in range(3):
        tokens = seen[epoch * length : (epoch + 1) * length].flatten()
        assert len(tokens.unique()) == len(tokens)
        assert count - len(tokens) <= 2 * context  # nothing but the two ends is left out


def test_epochs_differ_in_offset_and_order(file: TokenFile) -> None:
    batches = Batches(file, context=16, rows=1, seed=0)
    length = batches.windows_per_epoch
    epochs = [[int(batches.pair(e * length + k)[0][0, 0]) for k in range(length)] for e in range(8)]
    offsets = {epoch[0] % 16 for epoch in epochs}
    assert len(offsets) > 3 and all(start % 16 == e[0] % 16 for e in epochs for start in e)
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == 8
    assert all(epoch != sorted(epoch) for epoch in epochs)


def test_every_token_is_seen_over_some_epochs(file: TokenFile) -> None:
    """The ends that one epoch leaves out fall into others."""
    batches = Batches(file, context=16, rows=10, seed=0)
    steps = 60 * batches.windows_per_epoch // 10
    seen = torch.cat([torch.cat(batches.pair(step)).flatten() for step in range(steps)])
    assert len(seen.unique()) == 1003


def test_seeds_differ(file: TokenFile) -> None:
    starts = {
        tuple(Batches(file, context=16, rows=8, seed=seed).pair(0)[0][:, 0].tolist())
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
    assert batches.pair(3)[0].tolist() == [list(range(8))] * 5


def test_short_types_become_int64(tmp_path: Path) -> None:
    short = shards.write(tmp_path, "short", [np.full(40, 65_535)], "uint16")
    inputs, targets = Batches(short, context=8, rows=2, seed=0).pair(0)
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
        ({"framing": "heaps"}, "rows are 'heaps'; they must be one of stream"),
        ({"stride": 17}, "stride is 17"),
    ],
)
def test_wrong_settings_are_named(file: TokenFile, changes: dict[str, Any], message: str) -> None:
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
        Batches(file, context=16, rows=4, seed=0).pair(*place)


def texts(folder: Path, name: str, sizes: list[int], first: int = 0) -> TokenFile:
    """Documents of these lengths, of ids that no two share."""
    ends = np.cumsum([first, *sizes])
    ranges = [np.arange(a, b) for a, b in itertools.pairwise(ends)]
    return shards.write(folder, name, ranges, "uint32")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenFile]:
    folder = tmp_path_factory.mktemp("two")
    sizes = [3, 40, 17, 2, 9, 33, 8]
    return {
        "left": texts(folder, "left", sizes * 4),
        "right": texts(folder, "right", sizes, first=1_000),
    }


def same(one: Rows, other: Rows) -> bool:
    assert (one.documents is None) == (other.documents is None)
    alike = np.array_equal(one.ids, other.ids) and np.array_equal(one.seeds, other.seeds)
    if one.documents is None or other.documents is None:
        return alike
    return alike and np.array_equal(one.documents, other.documents)


def weight(rows: Rows) -> int:
    """How many tokens of these rows are predicted."""
    weights = NextToken().batch(rows).weights
    return rows.ids[:, 1:].size if weights is None else int(weights.sum())


@pytest.mark.parametrize("framing", FRAMES)
class TestFramings:
    @pytest.mark.parametrize("world", [2, 3, 6])
    def test_a_batch_is_a_function_of_seed_and_step(
        self, two: dict[str, TokenFile], framing: str, world: int
    ) -> None:
        """Of a mixture, asked for backwards, by workers, and after a restart."""

        def batches() -> loader.Batches:
            return loader.Batches(
                two, context=8, rows=6, seed=5, framing=framing, weights=(0.7, 0.3)
            )

        whole, backwards = batches(), batches()
        steps = [whole.batch(step) for step in range(12)]
        for step in reversed(range(12)):
            assert same(backwards.batch(step), steps[step])
            parts = [batches().batch(step, rank, world) for rank in range(world)]
            assert np.array_equal(np.concatenate([part.ids for part in parts]), steps[step].ids)
            marks = [part.documents for part in parts if part.documents is not None]
            expected = steps[step].documents
            assert expected is None or np.array_equal(np.concatenate(marks), expected)

    def test_an_epoch_visits_every_row_once(self, two: dict[str, TokenFile], framing: str) -> None:
        batches = loader.Batches(two["left"], context=8, rows=1, seed=2, framing=framing)
        once = batches.windows_per_epoch
        for epoch in range(2):
            rows = [batches.batch(epoch * once + k) for k in range(once)]
            cuts = batches.frames[""]
            if cuts.room == 1:  # no offset: the rows are known
                every, _ = cuts.cut(np.arange(once), np.zeros(once, dtype=np.int64))
                found = [tuple(row.ids[0].tolist()) for row in rows]
                assert sorted(found) == sorted(tuple(row) for row in every.tolist())
            assert len({tuple(row.ids[0].tolist()) for row in rows}) == once
        # Of `packed` rows the first tokens of documents count as well: there are as many of them in
        # every pass, about.
        predicted = sum(8 if framing == "packed" else weight(row) for row in rows)
        seen = batches.seen(once)
        assert seen["data/tokens"] == pytest.approx(predicted)
        assert seen["data/epochs"] == pytest.approx(predicted / batches.unique_tokens)

    def test_the_documents_seen_can_be_asked(
        self, two: dict[str, TokenFile], framing: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loader, "_AT_ONCE", 5)
        batches = loader.Batches(two, context=8, rows=3, seed=4, framing=framing, weights=(2, 1))
        shown: set[int] = set()
        for step in range(40):
            for name, file in two.items():
                documents = np.split(file.ids, file.document_ends[:-1])
                expected = [bool(shown & set(document.tolist())) for document in documents]
                assert batches.documents_seen(step)[name].tolist() == expected
            rows = batches.batch(step)
            real = rows.ids if rows.documents is None else rows.ids[rows.documents >= 0]
            shown |= set(real.flatten().tolist())
        assert len(shown) > 100


class TestMixtures:
    @settings(max_examples=20, deadline=None)
    @given(weight=st.integers(1, 99), rows=st.integers(1, 9), steps=st.integers(1, 30))
    def test_shares_and_epochs_hold(
        self, two: dict[str, TokenFile], weight: int, rows: int, steps: int
    ) -> None:
        batches = loader.Batches(two, context=8, rows=rows, seed=1, weights=(weight, 100 - weight))
        ids = np.concatenate([batches.batch(step).ids for step in range(steps)])
        left = int((ids[:, 0] < 1_000).sum())
        assert abs(left - rows * steps * weight / 100) < 1
        seen = batches.seen(steps)
        counts = {name: cuts.count for name, cuts in batches.frames.items()}
        assert seen["data/tokens/left"] == pytest.approx(left * 8)
        assert seen["data/tokens/right"] == pytest.approx((len(ids) - left) * 8)
        assert seen["data/tokens"] == pytest.approx(len(ids) * 8)
        assert seen["data/epochs/left"] == pytest.approx(left / counts["left"])
        assert seen["data/epochs/right"] == pytest.approx((len(ids) - left) / counts["right"])
        assert seen["data/epochs"] == pytest.approx(len(ids) / sum(counts.values()))

    def test_each_source_goes_through_epochs_of_its_own(self, two: dict[str, TokenFile]) -> None:
        batches = loader.Batches(two, context=8, rows=4, seed=1, weights=(1, 3))
        right = batches.frames["right"].count
        rows = np.concatenate([batches.batch(step).ids for step in range(2 * right)])
        rows = rows[rows[:, 0] >= 1_000]
        for epoch in range(6):
            tokens = rows[epoch * right : (epoch + 1) * right, :-1]
            assert len(np.unique(tokens)) == tokens.size

    def test_the_first_source_is_seen_as_it_is_alone(self, two: dict[str, TokenFile]) -> None:
        mixed = loader.Batches(two, context=8, rows=2, seed=9, weights=(1, 1))
        alone = loader.Batches(two["left"], context=8, rows=1, seed=9)
        for step in range(20):
            ids = mixed.batch(step).ids
            assert ids[ids[:, 0] < 1_000].tolist() == alone.batch(step).ids.tolist()


class TestRowSeeds:
    def test_they_differ_over_runs_steps_and_rows(self) -> None:
        seeds = [row_seeds(seed, step, 0, 64) for seed in (0, 1, 2**64 - 1) for step in range(32)]
        assert len(np.unique(np.concatenate(seeds))) == 3 * 32 * 64

    def test_they_belong_to_the_row_and_not_to_the_worker(self, file: TokenFile) -> None:
        whole = loader.Batches(file, context=16, rows=12, seed=1).batch(3)
        parts = [loader.Batches(file, context=16, rows=12, seed=1).batch(3, r, 3) for r in range(3)]
        assert np.array_equal(np.concatenate([part.seeds for part in parts]), whole.seeds)

    def test_they_are_fixed_for_ever(self) -> None:
        assert row_seeds(7, 5, 3, 2).tolist() == [17028090436427168972, 10324043136656801133]
