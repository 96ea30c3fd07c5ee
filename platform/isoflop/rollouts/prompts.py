"""What is the model asked to go on from?

    spec -> read (files, once, before the run starts) -> prompts (tokens, once per run)

A set is known by the hash of its content, and each prompt by that of its text, so two runs ask the
same where the hashes agree, wherever the prompts came from.

Letters: C prompts, K tokens of a prefix, M tokens that follow it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.captures import Rollouts, Spec
from isoflop.rollouts import rubric
from isoflop.rollouts.novelty import Reads
from isoflop.rollouts.rewards import Task

SHIPPED = ("text", "code")


class Tokenizer(Protocol):
    """What asking needs of `isoflop.data.tokenizers.Tokenizer`."""

    @property
    def name(self) -> str: ...
    @property
    def end_of_text(self) -> int: ...
    def encode(self, text: str) -> NDArray[np.uint32]: ...
    def decode(self, ids: Iterable[int]) -> str: ...


class Held(Protocol):
    """Held-out text: `isoflop.data.shards.TokenFile`."""

    @property
    def ids(self) -> NDArray[Any]: ...
    @property
    def document_ends(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is asked, and what the text it was taken from goes on with, if it was."""

    text: str
    ids: NDArray[np.integer]
    truth: NDArray[np.integer] | None = None
    first_read: int | None = None  # the optimizer step that first trained on it
    answer: str = ""  # to it, for rewards; and whatever else they may ask for
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return prompt_id(self.text)


def prompt_id(prompt: str) -> str:
    """12 hex digits: the hash of the prompt's text."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def set_id(prompts: Sequence[Prompt]) -> str:
    """12 hex digits: the hash of the prompts' texts, in whatever order."""
    return hashlib.sha256("".join(sorted(p.key for p in prompts)).encode()).hexdigest()[:12]


def row_seed(prompt: str, sample: int) -> int:
    """A 63-bit seed that depends on the prompt's text and the sample's number only."""
    digest = hashlib.sha256(f"{sample}:{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def read(rollouts: Rollouts) -> Rollouts:
    """The same with the prompts of every source and the text of the rubric in it, so that no worker
    needs the files.

    Raises ValueError for a source that is not there, or holds what is no prompt, and for a rubric
    that is none.
    """
    specs = tuple(
        _filled(spec) if spec.source and not spec.prompts else spec for spec in rollouts.specs
    )
    rewards = rollouts.rewards or (rubric.text(rollouts.rubric) if rollouts.rubric else "")
    return replace(rollouts, specs=specs, rewards=rewards)


def _filled(spec: Spec) -> Spec:
    found = tasks(spec.source)
    answers = tuple(task.answer for task in found)
    infos = tuple(json.dumps(task.info, sort_keys=True) for task in found)
    return replace(
        spec,
        prompts=tuple(task.prompt for task in found),
        answers=answers if any(answers) else (),
        infos=infos if any(task.info for task in found) else (),
    )


def tasks(source: str) -> tuple[Task, ...]:
    """The prompts of a source, with the answer and the info that a .jsonl file has beside them.

    Of a prompt that stands there twice, the first. Raises ValueError where `read` does.
    """
    shipped = source in SHIPPED
    folder = resources.files("isoflop.rollouts") / "sets"
    path = folder / f"{source}.jsonl" if shipped else Path(source)
    if not shipped and not source.endswith((".txt", ".jsonl")):
        raise ValueError(
            f"rollouts source is {source!r}; it must be {' or '.join(SHIPPED)}, or a file that "
            "ends in .txt (a prompt per line) or .jsonl"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts cannot be read from {source!r}: {error}") from error
    if source.endswith(".txt"):
        found = [Task(prompt=line) for line in lines if line.strip()]
    else:
        found = [_task(line, f"{source}, line {n}") for n, line in enumerate(lines, 1) if line]
    if not found:
        raise ValueError(f"{source!r} holds no prompts")
    first: dict[str, Task] = {}
    for task in found:
        first.setdefault(task.prompt, task)
    return tuple(first.values())


def _task(line: str, where: str) -> Task:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        raise ValueError(f'{where} is {line!r}; it must be an object with "prompt", a string')
    answer, info = value.get("answer", ""), value.get("info", {})
    if not isinstance(info, dict):
        raise ValueError(f"{where}: info is {info!r}; it must be an object")
    return Task(prompt=prompt, answer=str(answer), info=info)


def resolve(
    spec: Spec,
    tokenizer: Tokenizer,
    *,
    held_out: Sequence[Held] = (),
    reads: Reads | None = None,
    steps: int = 0,
) -> tuple[Prompt, ...]:
    """The prompts of a spec. `held_out` and what the run `reads` in its `steps` are asked for only
    where prefixes are taken from them.

    Raises ValueError where those texts are too short.
    """
    if spec.kind == "fixed":
        return tuple(
            replace(
                written(prompt, tokenizer),
                answer=spec.answers[i] if spec.answers else "",
                info=json.loads(spec.infos[i]) if spec.infos else {},
            )
            for i, prompt in enumerate(spec.prompts)
        )
    if spec.kind == "empty":
        return (written("", tokenizer),)
    if spec.kind == "heldout_prefix":
        found = list(_held_out(spec, held_out))
    else:
        assert reads is not None, "training prefixes are taken from what the run reads"
        found = list(_trained(spec, reads, steps))
    prompts: dict[str, Prompt] = {}
    for ids, first in found:
        text = _decoded(tokenizer, ids[: spec.prefix_tokens])
        prefix, truth = ids[: spec.prefix_tokens], ids[spec.prefix_tokens :]
        prompts.setdefault(text, Prompt(text, prefix, truth, first))
    if not prompts:
        raise ValueError(
            f"rollouts.specs.{spec.name} takes prefixes of {spec.prefix_tokens} tokens and "
            f"{spec.new_tokens} that follow; no text of the run is that long"
        )
    return tuple(prompts.values())


def prompt_ids(prompts: Sequence[str], tokenizer: Tokenizer) -> list[NDArray[np.integer]]:
    """The tokens that each prompt is fed as: (K,) each, at least one."""
    return [written(prompt, tokenizer).ids for prompt in prompts]


def written(prompt: str, tokenizer: Tokenizer) -> Prompt:
    """A prompt as tokens. The empty one starts from the end of text, as documents do."""
    start = np.array([tokenizer.end_of_text], dtype=np.uint32)
    return Prompt(prompt, tokenizer.encode(prompt) if prompt else start)


Found = Iterator[tuple[NDArray[np.int64], int | None]]


def _held_out(spec: Spec, files: Sequence[Held]) -> Found:
    """Beginnings of documents, evenly spaced over those that are long enough; of a text with fewer
    of them, windows that do not overlap."""
    length = spec.prefix_tokens + spec.new_tokens
    for number, file in enumerate(files):
        count = len(range(number, spec.count, len(files)))
        ends = file.document_ends
        starts = np.concatenate([[0], ends[:-1]])
        starts = starts[ends - starts > length]
        if len(starts) < count:
            starts = np.arange(0, max(0, len(file.ids) - length + 1), length)
        for start in starts[spread(len(starts), count)].tolist():
            yield np.asarray(file.ids[start : start + length], dtype=np.int64), None


def _trained(spec: Spec, reads: Reads, steps: int) -> Found:
    """Beginnings of rows, evenly spaced over the run's first pass over its text."""
    length = spec.prefix_tokens + spec.new_tokens
    if length > reads.context + 1:
        return
    rows = min(steps * reads.rows, reads.windows_per_epoch)
    for entry in spread(rows, spec.count).tolist():
        step, row = divmod(entry, reads.rows)
        yield reads.batch(step).ids[row, :length], step + 1


def spread(available: int, count: int) -> NDArray[np.int64]:
    """At most `count` places in [0, available), evenly spaced."""
    return (
        np.unique(np.linspace(0, available - 1, count).astype(np.int64))
        if available
        else (np.empty(0, np.int64))
    )


def _decoded(tokenizer: Tokenizer, ids: NDArray[np.integer]) -> str:
    # Bytes that are no character yet may decode to what UTF-8 cannot hold.
    return tokenizer.decode(ids.tolist()).encode("utf-8", "replace").decode()
