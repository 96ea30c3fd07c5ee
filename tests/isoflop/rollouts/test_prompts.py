"""Are prompts what a spec says, from wherever they come, and the same for every run?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isoflop.data import feed
from isoflop.data.prepare import Prepared
from isoflop.rollouts.novelty import Reading
from isoflop.rollouts.prompts import SHIPPED, read, resolve, set_id
from isoflop.rollouts.references import band, measure, novelty, references, windows
from isoflop.run import Rollouts, Run, Spec

MakeRun = Callable[..., Run]
HELD = Spec(name="held", kind="heldout_prefix", count=6, prefix_tokens=8, new_tokens=12)
TRAINED = Spec(name="trained", kind="train_prefix", count=6, prefix_tokens=8, new_tokens=12)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sets(name: str) -> None:
    (spec,) = read(Rollouts(specs=(Spec(name=name, source=name),))).specs
    assert len(set(spec.prompts)) == len(spec.prompts) == 16
    assert "" in spec.prompts


def test_a_users_file(tmp_path: Path) -> None:
    lines = tmp_path / "own.txt"
    lines.write_text("Once upon\n\nIn the end\nOnce upon\n")
    objects = tmp_path / "own.jsonl"
    objects.write_text(json.dumps({"prompt": "Once upon"}) + "\n" + '{"prompt": "In the end"}\n')
    specs = [Spec(name="own", source=str(path)) for path in (lines, objects)]
    made = [read(Rollouts(specs=(spec,))) for spec in specs]
    assert [rollouts.specs[0].prompts for rollouts in made] == [("Once upon", "In the end")] * 2
    assert made[0].science() == made[1].science(), "where they were read is no science"
    assert made[0].science() != Rollouts().science()
    lines.unlink()
    assert read(made[0]) == made[0], "a worker without the file has the prompts"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"prompt": 3}\n', "line 1"),
        ("x.jsonl", "{\n", "no JSON"),
        ("x.jsonl", '{"prompt": "a", "info": 3}\n', "info is 3"),
        ("x.txt", "\n", "holds no prompts"),
        ("x.csv", "a\n", "must be text or code, or a file"),
        ("gone.txt", None, "cannot be read"),
    ],
)
def test_what_is_no_prompt_is_refused(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read(Rollouts(specs=(Spec(name="own", source=str(path)),)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "other", "prompts": ("a",)}, "kind"),
        ({}, "prompts is"),
        ({"kind": "empty", "prompts": ("a",)}, "left out"),
        ({"prompts": ("a",), "top_p": 0.0}, "top_p is 0.0"),
        ({"prompts": ("a",), "min_p": 2.0}, "min_p is 2.0"),
        ({"prompts": ("a",), "repetition": 0.0}, "repetition is 0.0"),
        ({"prompts": ("a",), "answers": ("b", "c")}, "answers is"),
        ({"prompts": ("a",), "name": "a/b"}, "letters"),
        ({"prompts": ("a",), "seeds": 0}, "seeds is 0"),
    ],
)
def test_specs_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec(**values)  # type: ignore[arg-type]


def test_names_are_different() -> None:
    one = Spec(name="a", kind="empty")
    with pytest.raises(ValueError, match="different names"):
        Rollouts(specs=(one, one))
    assert len(Rollouts(prompts=("x",), specs=(one,)).asked) == 2
    assert Rollouts().asked == ()


def test_held_out_prefixes_are_held_out(bytes_text: Prepared) -> None:
    text = bytes_text.validation()
    prompts = resolve(HELD, bytes_text.tokenizer(), held_out=[text])
    assert 1 < len(prompts) <= 6
    whole = text.ids.tobytes()
    for prompt in prompts:
        assert prompt.truth is not None and (len(prompt.ids), len(prompt.truth)) == (8, 12)
        joined = np.concatenate([prompt.ids, prompt.truth]).astype(text.ids.dtype)
        assert joined.tobytes() in whole
        assert prompt.text == bytes_text.tokenizer().decode(prompt.ids.tolist())
    again = resolve(HELD, bytes_text.tokenizer(), held_out=[text])
    assert set_id(prompts) == set_id(again) == set_id(again[::-1])


def test_training_prefixes_are_rows_that_training_reads(
    bytes_text: Prepared, make_run: MakeRun
) -> None:
    run = make_run()
    reads = feed.batches(run, bytes_text)
    prompts = resolve(TRAINED, bytes_text.tokenizer(), reads=reads, steps=run.steps)
    assert len(prompts) == 6
    assert [p.first_read for p in prompts] == sorted(p.first_read or 0 for p in prompts)
    for prompt in prompts:
        assert prompt.first_read is not None and prompt.truth is not None
        rows = reads.batch(prompt.first_read - 1).ids[:, :20].tolist()
        assert [*prompt.ids.tolist(), *prompt.truth.tolist()] in rows
    assert prompts[-1].first_read == run.steps


def test_a_text_that_is_too_short_says_so(bytes_text: Prepared) -> None:
    long = Spec(name="held", kind="heldout_prefix", prefix_tokens=10**8)
    with pytest.raises(ValueError, match="no text of the run is that long"):
        resolve(long, bytes_text.tokenizer(), held_out=[bytes_text.validation()])


def test_references_are_measured_once(bytes_text: Prepared, tmp_path: Path) -> None:
    files, tokenizer = [bytes_text.validation()], bytes_text.tokenizer()
    first = references(tmp_path, files, tokenizer, 32)
    assert first["repetition"] == measure(files, tokenizer, 32)["repetition"]
    assert first["entropy"].value is None and first["compression"].value is not None
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text().replace('"prompts": ', '"prompts": 1'))
    assert references(tmp_path, files, tokenizer, 32) != first, "it was read"
    kept.write_text("{")
    assert references(tmp_path, files, tokenizer, 32) == first
    assert references(tmp_path / "nowhere", files, tokenizer, 32) == first
    assert band(first["compression"], first["compression"]) == "within"
    assert band(first["entropy"], first["compression"]) == "unknown"
    assert band(first["compression"], first["length"]) == "unknown", "all lengths are equal"


def test_held_out_text_is_newer_than_training_text(bytes_text: Prepared, make_run: MakeRun) -> None:
    run = make_run(tokens=200 * 128)
    seen = Reading(feed.batches(run, bytes_text)).until(run.steps)
    assert seen is not None
    held = novelty(seen, [bytes_text.validation()], 24)
    own = novelty(seen, [bytes_text.train()], 24)
    for name in ("novel_8", "novel_16"):
        (a, b) = (held[name].value, own[name].value)
        assert a is not None and b is not None and a > b
    assert len(windows([bytes_text.validation()], 24, 7)) == 7
