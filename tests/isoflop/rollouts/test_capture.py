"""Does a capture keep all it saw, once, and leave the run as it was?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoflop.captures import Spec
from isoflop.rollouts.capture import (
    VALUES,
    Budget,
    Capture,
    Captured,
    check,
    prompt_id,
    read,
    row_seed,
    schedule,
)
from isoflop.rollouts.metrics import METRICS
from isoflop.rollouts.novelty import Reading
from isoflop.rollouts.prompts import resolve
from isoflop.run import Rollouts
from models import GPT2Config
from models.interface import Model

COLUMNS = [
    "run",
    "study",
    "axes",
    "step",
    "tokens_seen",
    "flops",
    "prompt_id",
    "sample_id",
    "first_read",
    "spec",
    "kind",
    "prompt_set",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition",
    "new_tokens",
    "weights",
    "seconds",
    "seed",
    "prompt",
    "answer",
    "info",
    "prompt_ids",
    "completion_ids",
    "logprobs",
    "entropies",
    "text",
    "copied",
    "stop_condition",
    "n_tokens",
    "tokenizer",
    "version",
]


class Bytes:
    """UTF-8, and 256 for the end of text."""

    name = "bytes"
    vocab_size = 257
    end_of_text = 256

    def encode(self, text: str) -> NDArray[np.uint32]:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(bytes([i]) if i < 256 else b"<end>" for i in ids).decode(errors="replace")


ROLLOUTS = Spec(prompts=("def f(x):\n", "", "import "), seeds=3, new_tokens=24)


def build(seed: int = 0) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2Config(vocab=257, context=48, width=16, depth=1, heads=2).build()


class Always:
    """A capture whose process is alone, and so always has the rows."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture

    def __call__(self, model: Model, *, step: int, tokens: int, flops: float) -> Captured:
        found = self.capture(model, step=step, tokens=tokens, flops=flops)
        assert found is not None
        return found


def capture(
    folder: Path, spec: Spec = ROLLOUTS, run: str = "abc", reading: Reading | None = None
) -> Always:
    prompts = resolve(spec, Bytes())
    made = Capture(
        spec, prompts, Bytes(), run=run, study="s", axes={"size": 1}, folder=folder, context=48,
        reading=reading,
    )  # fmt: skip
    return Always(made)


def test_rows_hold_everything(tmp_path: Path) -> None:
    found = capture(tmp_path)(build(), step=123, tokens=4560, flops=7.5e9)
    assert found.rows == tmp_path / "step-00000123.parquet"
    assert os.listdir(tmp_path) == [found.rows.name], "no temporary file is left"
    assert (found.count, found.reused) == (9, False)
    frame = read(tmp_path)
    assert set(frame.columns) == {
        *COLUMNS,
        *(f"{kind}.{name}" for kind in ("m", "why") for name in VALUES),
    }
    assert len(frame) == 9
    first = frame.iloc[0]
    assert (first.run, first.study, first.step, first.tokens_seen) == ("abc", "s", 123, 4560)
    assert (json.loads(first["axes"]), first.flops) == ({"size": 1}, 7.5e9)
    for row in frame.to_dict("records"):
        ids = row["completion_ids"]
        assert row["prompt_id"] == prompt_id(row["prompt"])
        assert row["seed"] == row_seed(row["prompt"], row["sample_id"])
        assert len(ids) == len(row["logprobs"]) == len(row["entropies"]) == row["n_tokens"]
        assert row["stop_condition"] == ("stop" if ids[-1] == 256 else "length")
        own = ids[:-1] if row["stop_condition"] == "stop" else ids
        assert row["text"] == Bytes().decode(own.tolist())
        expected = Bytes().encode(row["prompt"]).tolist() if row["prompt"] else [256]
        assert row["prompt_ids"].tolist() == expected
    mean = frame["m.entropy"].mean()
    assert found.aggregates["entropy"].value == pytest.approx(mean)
    assert found.aggregates["entropy"].prompts == 3
    assert list(found.aggregates) == [metric.name for metric in METRICS]


def test_a_done_step_is_read_not_made(tmp_path: Path) -> None:
    first = capture(tmp_path)(build(), step=5, tokens=1, flops=1.0)
    stamp = first.rows.stat().st_mtime_ns
    again = capture(tmp_path)(build(seed=9), step=5, tokens=1, flops=1.0)  # would write others
    assert (again.reused, again.count) == (True, first.count)
    assert again.rows.stat().st_mtime_ns == stamp
    assert again.aggregates == first.aggregates
    other = capture(tmp_path)(build(seed=9), step=6, tokens=1, flops=1.0)
    assert not other.reused and other.aggregates != first.aggregates


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "other run", "other prompts", "other sampling", "no parquet"]
)
def test_what_is_not_this_capture_is_made_anew(tmp_path: Path, damage: str) -> None:
    first = capture(tmp_path)(build(), step=5, tokens=1, flops=1.0)
    whole = first.rows.read_bytes()
    if damage == "cut":
        first.rows.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        first.rows.write_bytes(b"")
    elif damage == "no parquet":
        first.rows.write_bytes(b"something else" * 100)
    elif damage == "other run":
        capture(tmp_path / "b", run="other")(build(), step=5, tokens=1, flops=1.0)
        os.replace(tmp_path / "b" / first.rows.name, first.rows)
    elif damage == "other sampling":
        capture(tmp_path / "b", replace(ROLLOUTS, min_p=0.2))(build(), step=5, tokens=1, flops=1.0)
        os.replace(tmp_path / "b" / first.rows.name, first.rows)
    else:
        prompts = Spec(prompts=("x", "y", "z"), seeds=3, new_tokens=24)
        capture(tmp_path / "b", prompts)(build(), step=5, tokens=1, flops=1.0)
        os.replace(tmp_path / "b" / first.rows.name, first.rows)
    again = capture(tmp_path)(build(), step=5, tokens=1, flops=1.0)
    assert not again.reused
    assert again.aggregates == first.aggregates


def test_a_death_while_writing_leaves_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            capture(tmp_path)(build(), step=5, tokens=1, flops=1.0)
    assert read(tmp_path).empty
    assert not capture(tmp_path)(build(), step=5, tokens=1, flops=1.0).reused
    assert len(os.listdir(tmp_path)) == 1, "the half-written file made way"


def test_training_does_not_notice(tmp_path: Path) -> None:
    """The same losses to the bit, with dropout's random state in play, captured or not."""

    def train(folder: Path | None) -> list[float]:
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        losses = []
        for step in range(4):
            if folder:
                capture(folder)(model, step=step, tokens=0, flops=0.0)
            tokens = torch.randint(0, 257, (2, 17))
            logits = torch.nn.functional.dropout(model(tokens[:, :-1]), 0.1, model.training)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert train(tmp_path) == train(None)
    assert len(os.listdir(tmp_path)) == 4


def test_seeds_belong_to_prompts_not_to_runs(tmp_path: Path) -> None:
    """Two runs with the same weights write the same; more seeds or prompts only add rows."""
    capture(tmp_path / "a")(build(), step=0, tokens=0, flops=0.0)
    more = Spec(prompts=("new", *ROLLOUTS.prompts[::-1]), seeds=5, new_tokens=24)
    capture(tmp_path / "b", more, run="other")(build(), step=0, tokens=0, flops=0.0)
    key = ["prompt_id", "sample_id"]
    both = read(tmp_path / "a").merge(read(tmp_path / "b"), on=key, validate="one_to_one")
    assert len(both) == 9
    assert (both.text_x == both.text_y).all()
    seeds = {row_seed(prompt, sample) for prompt in ("a", "b", "1:a") for sample in range(50)}
    assert len(seeds) == 150 and min(seeds) >= 0 and max(seeds) < 2**63


def test_the_empty_prompt_starts_from_the_end_of_text() -> None:
    asked = resolve(Spec(prompts=("ab", "")), Bytes())
    assert [prompt.ids.tolist() for prompt in asked] == [[97, 98], [256]]


def test_read_orders_by_step_and_takes_an_empty_folder(tmp_path: Path) -> None:
    assert read(tmp_path).empty
    for step in (10, 2):
        capture(tmp_path)(build(), step=step, tokens=step, flops=0.0)
    assert read(tmp_path).step.unique().tolist() == [2, 10]


def test_a_diverged_model_is_captured_too(tmp_path: Path) -> None:
    model = build()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    found = capture(tmp_path)(model, step=3, tokens=0, flops=0.0)
    assert found.aggregates["surprise"].value is None
    assert found.aggregates["surprise"].missing == 9
    rows = read(tmp_path)
    assert rows["m.surprise"].isna().all()
    assert (rows["why.surprise"] == "log probabilities that are not finite").all()
    assert capture(tmp_path)(model, step=3, tokens=0, flops=0.0).reused


@pytest.mark.parametrize(
    ("steps", "captures", "expected"),
    [
        (1000, 4, (0, 10, 100, 1000)),
        (1000, 2, (0, 1000)),
        (1, 5, (0, 1)),
        (3, 9, (0, 1, 2, 3)),
        (10_000, 5, (0, 10, 100, 1000, 10_000)),
    ],
)
def test_schedule(steps: int, captures: int, expected: tuple[int, ...]) -> None:
    assert schedule(steps, captures) == expected


def test_every_so_many_steps() -> None:
    assert schedule(10, 4, every=4) == (0, 4, 8, 10)
    assert schedule(8, 4, every=4) == (0, 4, 8)


def test_schedule_is_sorted_unique_and_bounded() -> None:
    for steps in (1, 2, 7, 100, 12345):
        for captures in (2, 3, 8, 50):
            points = schedule(steps, captures)
            assert list(points) == sorted(set(points))
            assert (points[0], points[-1]) == (0, steps)
            assert len(points) <= captures
    with pytest.raises(ValueError, match="captures is 1"):
        schedule(10, 1)


def test_budget() -> None:
    budget = Budget(0.02)
    # At a tenth of a run of 100 s, 2 s may go: 0.5 are gone, this one and the last cost as much.
    assert budget.affords(spent=0.5, training=10, expected=0.5, done=0.1, captures=2)
    assert budget.affords(spent=0.5, training=10, expected=0.5, done=0.1, captures=3)
    assert not budget.affords(spent=0.5, training=10, expected=0.5, done=0.1, captures=4)
    assert not budget.affords(spent=1.1, training=10, expected=0.5, done=0.1, captures=2)
    assert budget.affords(spent=1.5, training=100, expected=0.5, done=1.0)
    assert not budget.affords(spent=1.6, training=100, expected=0.5, done=1.0), "nor at the end"
    assert not Budget(0.0).affords(spent=0, training=100, expected=0.1, done=0.5)


def test_errors_come_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a' twice"):
        check(Rollouts(prompts=("a", "b", "a")), 48)
    with pytest.raises(ValueError, match=r"new_tokens is 48; it must be below .* 48 tokens"):
        capture(tmp_path, Spec(prompts=("a",), new_tokens=48))
    with pytest.raises(ValueError, match=r"specs.x.prefix_tokens and new_tokens are 32 \+ 40"):
        check(Rollouts(specs=(Spec(name="x", kind="heldout_prefix", new_tokens=40),)), 48)
