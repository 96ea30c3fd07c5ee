"""What does a model write after these prompts, once for each seed?

One engine for all families. A decoder reads the prompt and goes on; behind an encoder, which reads
the prompt whole, it begins anew; a denoiser fills in blanks (`rollouts.unmask`).

A row is one prompt with one seed. Rows are decoded side by side against a key-value cache: each
prompt is read once and its cache repeated over its seeds, logits are taken at the last position
only, and rows that have finished are dropped. Every row draws its random numbers from its own seed,
up front, so what it writes does not depend on which rows it is decoded with.

Prompts of nearly equal length share a batch: it starts from the shortest, and a longer prompt's
remaining tokens are fed in place of sampled ones. All rows so stand at the same position, and a
model needs no padding and no mask.

Letters: R rows, P prompts, S seeds per prompt, N steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.rollouts.layout import by_columns
from isoflop.rollouts.sampling import Ending, Rollout, Sampling, draw, ended, evaluating
from isoflop.rollouts.steps import RecordedSteps, Steps
from isoflop.rollouts.unmask import unmask
from isoflop.targets import Framing
from models.cache import Cache
from models.interface import Denoiser, EncoderDecoder, Model

__all__ = ["Ending", "Rollout", "Sampling", "generate"]

CHECK = 8  # steps between two looks at which rows have finished: each look waits for the device
Watch = Callable[[int, int, list[int]], None]  # prompt, sample, new tokens
COMPACT = 0.75  # rows are dropped once fewer than this share of them are still writing


def generate(
    model: Model,
    prompts: Sequence[NDArray[np.integer]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    framing: Framing | None = None,
    *,
    batch: int = 256,
    ending: Ending | None = None,
    watch: Watch | None = None,
    recorded: bool = False,
) -> list[Rollout]:
    """One rollout for every prompt and each of its seeds, in that order.

    `framing` says which markers the model knows from its training (`Objective.framing`). Markers
    are never written. A prompt longer than the context less `new_tokens` keeps its last tokens, so
    that all rollouts of a run have the same length and can be compared. At most `batch` rows are
    decoded at a time. The model's training modes and torch's global random state are left as they
    were. `ending`: strings that end a row. `watch` is given each row's new tokens as they are
    written (a denoiser's when they are), which makes the device wait at every step. `recorded`: a
    decoder's step is recorded and played again, for small models on a GPU (`rollouts.steps`).

    Raises ValueError if nothing of a prompt would fit, on an empty prompt (begin it with the end of
    text), on ids outside the vocabulary, and if there is not one list of seeds per prompt.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many lists of seeds, not {len(seeds)}")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    room = model.config.context - sampling.new_tokens
    if room < 1:
        raise ValueError(
            f"new_tokens is {sampling.new_tokens}, which leaves no room for a prompt in a context "
            f"of {model.config.context} tokens; it must be below that"
        )
    fed = _fed(prompts, room, model.config.text_vocab)
    if isinstance(model, Denoiser):
        rows = unmask(model, fed, seeds, sampling, framing, batch)
        rows = [_cut(row, ending) for row in rows] if ending else rows
        for row in rows if watch else ():
            assert watch is not None
            watch(row.prompt_index, row.sample, row.completion_ids.tolist())
        return rows
    rows = []
    with evaluating(model), by_columns(model, sampling.new_tokens) as head:
        steps = (RecordedSteps if recorded else Steps)(model, head)
        for tasks in _batches(_tasks(model, fed, seeds, framing, batch), sampling, batch):
            rows += _decode(steps, tasks, sampling, ending, watch)
    return sorted(rows, key=lambda row: (row.prompt_index, row.sample))


def _fed(prompts: Sequence[NDArray[np.integer]], room: int, vocab: int) -> list[NDArray[np.int64]]:
    """The prompts as far as there is room for them. Raises ValueError for what is no prompt."""
    fed = []
    for index, prompt in enumerate(prompts):
        ids = np.asarray(prompt)[-room:].astype(np.int64)
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"prompt {index} is empty; begin it with the end-of-text token")
        if ids.min() < 0 or ids.max() >= vocab:
            raise ValueError(f"prompt {index} holds ids outside the vocabulary of {vocab} tokens")
        fed.append(ids)
    return fed


@dataclass(frozen=True, eq=False)
class _Task:
    """Some of the seeds of one prompt: what is prefilled once."""

    prompt_index: int
    first_sample: int
    prompt: NDArray[np.int64]
    ids: NDArray[np.int64]  # what the decoder is given
    source: NDArray[np.int64] | None  # what the encoder reads, where there is one
    seeds: tuple[int, ...]


def _tasks(
    model: Model,
    prompts: Sequence[NDArray[np.int64]],
    seeds: Sequence[Sequence[int]],
    framing: Framing | None,
    batch: int,
) -> list[_Task]:
    encoded = isinstance(model, EncoderDecoder)
    framing = framing or Framing()
    start = np.array(framing.start or (model.config.vocab - 1,))  # a blank, if nothing is said
    tasks = []
    for index, prompt in enumerate(prompts):
        read = np.concatenate((framing.before, prompt, framing.after)).astype(np.int64)
        ids, source = (start, read) if encoded else (read, None)
        for first in range(0, len(seeds[index]), batch):
            own = tuple(seeds[index][first : first + batch])
            tasks.append(_Task(index, first, prompt, ids, source, own))
    return tasks


def _batches(tasks: list[_Task], sampling: Sampling, batch: int) -> Iterator[list[_Task]]:
    """Tasks with equally many seeds and nearly equal lengths, at most `batch` rows together.

    A prompt that is d tokens longer than its batch's shortest costs everyone d steps; a batch of
    its own would cost `new_tokens` steps. Half of that is where they part.
    """
    group: list[_Task] = []
    for task in sorted(tasks, key=lambda task: (len(task.seeds), len(task.ids))):
        if group and (
            len(task.seeds) != len(group[0].seeds)
            or (len(group) + 1) * len(task.seeds) > batch
            or len(task.ids) - len(group[0].ids) > sampling.new_tokens // 2
        ):
            yield group
            group = []
        group.append(task)
    if group:
        yield group


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is known of a batch before its first step; time runs along the first axis.

    Step t stands for the token at position `shortest + t`.
    """

    tasks: list[_Task]
    new_tokens: int

    @property
    def shortest(self) -> int:
        return len(self.tasks[0].ids)

    @property
    def steps(self) -> int:
        return len(self.tasks[-1].ids) - self.shortest + self.new_tokens

    @property
    def prefix(self) -> NDArray[np.int64]:
        """The tokens (P, shortest) that are read at once."""
        return np.stack([task.ids[: self.shortest] for task in self.tasks])

    def read(self, blank: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
        """What the encoder reads, (P, longest), filled up with blanks, and where it is no blank."""
        sources = [task.source for task in self.tasks if task.source is not None]
        if not sources:
            return None
        longest = max(len(source) for source in sources)
        filled = [np.pad(s, (0, longest - len(s)), constant_values=blank) for s in sources]
        lengths = np.array([len(source) for source in sources])
        return np.stack(filled), np.arange(longest) < lengths[:, None]

    @property
    def starts(self) -> NDArray[np.int64]:
        """The step (R,) at which each row begins to write its own tokens."""
        lengths = [len(task.ids) - self.shortest for task in self.tasks]
        return np.repeat(np.array(lengths), len(self.tasks[0].seeds))

    def forced(self) -> NDArray[np.int64]:
        """The prompts' remaining tokens (N, R), and -1 where the row writes its own."""
        tokens = np.full((self.steps, len(self.tasks)), -1, dtype=np.int64)
        for column, task in enumerate(self.tasks):
            rest = task.ids[self.shortest :]
            tokens[: len(rest), column] = rest
        return np.repeat(tokens, len(self.tasks[0].seeds), axis=1)

    def uniforms(self) -> NDArray[np.float32]:
        """Each row's random numbers (N, R) in [0, 1), from its own first token on."""
        drawn = np.zeros((self.steps, len(self.starts)), dtype=np.float32)
        seeds = [seed for task in self.tasks for seed in task.seeds]
        for row, (start, seed) in enumerate(zip(self.starts, seeds, strict=True)):
            values = np.random.default_rng(seed).random(self.new_tokens, dtype=np.float32)
            drawn[start : start + self.new_tokens, row] = values
        return drawn


def _prefill(steps: Steps, plan: _Plan, device: torch.device) -> tuple[Tensor, Cache]:
    """The logits (R, V) behind what all rows were given, and the cache of R rows."""
    seeds, model = len(plan.tasks[0].seeds), steps.model
    cache = model.new_cache(len(plan.tasks), plan.shortest + plan.steps - 1, steps.cache_kind)
    prefix, read = torch.from_numpy(plan.prefix).to(device), plan.read(model.config.vocab - 1)
    inputs = {}
    if read is not None:
        source, present = (torch.from_numpy(part).to(device) for part in read)
        inputs = {"source": source, "present": None if bool(present.all()) else present}
    hidden = model.hidden(prefix, cache, **inputs)
    logits = steps.head(hidden[:, -1])[:, : steps.vocab]
    if seeds == 1:
        return logits, cache
    return logits.repeat_interleave(seeds, dim=0), cache.expand(seeds)


def _seen(plan: _Plan, sampling: Sampling, vocab: int, device: torch.device) -> Tensor | None:
    """Which tokens stand in each row's prompt (R, V), where a repetition penalty asks for it."""
    if sampling.repetition == 1:
        return None
    marks = torch.zeros(len(plan.tasks), vocab, dtype=torch.bool, device=device)
    for row, task in enumerate(plan.tasks):
        marks[row, torch.from_numpy(task.prompt).to(device)] = True
    return marks.repeat_interleave(len(plan.tasks[0].seeds), dim=0)


def _decode(
    steps: Steps,
    tasks: list[_Task],
    sampling: Sampling,
    ending: Ending | None,
    watch: Watch | None,
) -> list[Rollout]:
    plan = _Plan(tasks, sampling.new_tokens)
    check = 1 if watch else CHECK
    device = next(steps.model.parameters()).device
    forced = torch.from_numpy(plan.forced()).to(device)
    uniforms = torch.from_numpy(plan.uniforms()).to(device)
    finish = torch.from_numpy(plan.starts + sampling.new_tokens).to(device)
    stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=device)

    written = torch.zeros_like(forced)
    logprobs, entropies = torch.zeros_like(uniforms), torch.zeros_like(uniforms)
    rows = torch.arange(forced.shape[1], device=device)  # those that are still decoded
    logits, cache = _prefill(steps, plan, device)
    seen = _seen(plan, sampling, steps.vocab, device)
    for step in range(plan.steps):
        here: tuple[int, Tensor] | int = (step, rows)
        if len(rows) == forced.shape[1]:
            here = step  # all of them: a view, and no search
        token, logprob, entropy = draw(logits, uniforms[here], sampling, seen)
        if step < plan.steps - sampling.new_tokens:  # some prompt has tokens left
            given = forced[here]
            token = torch.where(given < 0, token, given)
        written[here] = token
        logprobs[here] = logprob
        entropies[here] = entropy
        if seen is not None:
            seen = seen.scatter(1, token.unsqueeze(1), True)
        if watch:
            _show(plan, rows, token, step, sampling, watch)
        if step + 1 == plan.steps:
            break
        if step % check == check - 1:
            past = torch.where(forced[: step + 1, rows] < 0, written[: step + 1, rows], -1)
            done = torch.isin(past, stops).any(dim=0) | (finish[rows] <= step + 1)
            if ending:
                done |= _held(past, ending).to(device)
            alive = torch.nonzero(~done).squeeze(1)
            if not len(alive):
                break
            if len(alive) < (len(rows) if watch else COMPACT * len(rows)):
                cache = cache.keep(alive)
                rows, token = rows[alive], token[alive]
                seen = None if seen is None else seen[alive]
        logits = steps(token, cache)
    made = _rows(plan, sampling, written, logprobs, entropies)
    return [_cut(row, ending) for row in made] if ending else made


def _show(
    plan: _Plan, rows: Tensor, token: Tensor, step: int, sampling: Sampling, watch: Watch
) -> None:
    """Tell of the tokens (R,) of a step, as far as they are the rows' own."""
    seeds = len(plan.tasks[0].seeds)
    for row, own in zip(rows.tolist(), token.tolist(), strict=True):
        start = int(plan.starts[row])
        if start <= step < start + sampling.new_tokens:
            task = plan.tasks[row // seeds]
            watch(task.prompt_index, task.first_sample + row % seeds, [own])


def _held(past: Tensor, ending: Ending) -> Tensor:
    """Which rows hold a string that ends them; `past` (N, R) is -1 where they have not begun."""
    columns = past.cpu().numpy().T
    return torch.tensor([ending.count(ids[ids >= 0].tolist()) is not None for ids in columns])


def _cut(row: Rollout, ending: Ending) -> Rollout:
    """Ended by the first of the strings in it."""
    count = ending.count(row.completion_ids.tolist())
    if count is None:
        return row
    return replace(
        row,
        completion_ids=row.completion_ids[:count],
        logprobs=row.logprobs[:count],
        entropies=row.entropies[:count],
        stop="stop",
    )


def _rows(
    plan: _Plan, sampling: Sampling, written: Tensor, logprobs: Tensor, entropies: Tensor
) -> list[Rollout]:
    ids = written.cpu().numpy().astype(np.int32)
    measured = (logprobs.cpu().numpy(), entropies.cpu().numpy())
    owners = [(task, i) for task in plan.tasks for i in range(len(task.seeds))]
    rows = []
    for row, (start, (task, i)) in enumerate(zip(plan.starts, owners, strict=True)):
        own = slice(start, start + sampling.new_tokens)
        count, stop = ended(ids[own, row], sampling.stop_ids)
        logprob, entropy = (values[own, row][:count].copy() for values in measured)
        rows.append(
            Rollout(
                prompt_index=task.prompt_index,
                sample=task.first_sample + i,
                prompt_ids=task.prompt.astype(np.int32),
                completion_ids=ids[own, row][:count].copy(),
                logprobs=logprob,
                entropies=entropy,
                stop=stop,
            )
        )
    return rows
