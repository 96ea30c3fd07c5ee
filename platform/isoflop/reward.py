"""How does a checkpoint go on by reward? `isoflop reward`: GRPO on a rubric, judged on equal seeds.

    before: every prompt with the same seeds -> GRPO steps -> after: the same prompts and seeds

What is left in the folder is a checkpoint (`isoflop sample` reads it), the course of the steps, and
both sets of rollouts with their rewards in the format of `verifiers`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.exchange.checkpoint import Loaded
    from isoflop.rollouts.grpo import Settings, Step
    from isoflop.rollouts.rewards import Task, Trace
    from isoflop.rollouts.rubric import Scores
    from isoflop.rollouts.statistics import Aggregate

SHOWN = 12  # lines of a course, however many steps


def add(text: argparse.ArgumentParser) -> None:
    """The options of `isoflop reward`."""
    text.description = (
        "Go on from a pre-trained checkpoint with GRPO: each step asks every prompt several times, "
        "scores what comes back by a rubric, and makes what scored above its group likelier."
    )
    text.add_argument("folder", type=Path, help="a checkpoint, or the folder of a run")
    text.add_argument(
        "--rubric", default="python", metavar="FILE.py",
        help="a file with functions marked @reward(weight) or @metric, of isoflop.rollouts.rubric "
        "(default: %(default)s, what looks like it)",
    )  # fmt: skip
    text.add_argument(
        "--prompts", default="code", metavar="SOURCE",
        help="code, text, a .txt file, or a .jsonl file of {prompt, answer, info} (%(default)s)",
    )  # fmt: skip
    text.add_argument("--steps", type=int, default=40, help="default: %(default)s")
    text.add_argument(
        "--samples", type=int, default=8, help="rollouts of a prompt in a step (%(default)s)"
    )
    text.add_argument("--tokens", type=int, default=32, help="of a rollout (%(default)s)")
    text.add_argument("--lr", type=float, default=1e-3, help="default: %(default)s")
    text.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    text.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="a new folder for the result"
    )
    text.set_defaults(act=show)


def show(options: argparse.Namespace) -> int:
    """Train, and print the course and what it came to."""
    from isoflop.rollouts.grpo import Settings

    settings = Settings(samples=options.samples, new_tokens=options.tokens, seed=options.seed)
    every = max(1, options.steps // SHOWN)

    def report(step: Step) -> None:
        if step.step % every == 0 or step.step == options.steps - 1:
            reward = "none" if step.reward is None else f"{step.reward:.3f}"
            print(f"step {step.step:>4}  reward {reward}  entropy {step.entropy:.2f}", flush=True)

    found = go_on(
        options.folder, options.out, settings, rubric=options.rubric, prompts=options.prompts,
        steps=options.steps, lr=options.lr, report=report,
    )  # fmt: skip
    print(_told(found))
    print(f"isoflop sample {options.out}   writes with it")
    return 0


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What rewards did. Aggregates are over the same prompts and seeds, before and after."""

    steps: list[Step]
    before: Aggregate
    after: Aggregate
    difference: Aggregate  # paired
    parts: dict[str, tuple[float | None, float | None]]  # of each function, before and after


def go_on(
    folder: Path,
    out: Path,
    settings: Settings,
    *,
    rubric: str | Path = "python",
    prompts: str = "code",
    steps: int = 40,
    lr: float = 1e-3,
    report: Callable[[Step], None] = lambda step: None,
) -> Taught:
    """Teach the model in `folder` by reward and leave it in `out`. Equal arguments give equal
    weights. Raises ValueError for a folder that is no checkpoint, one that is there already, a
    rubric or prompts that cannot be read, and prompts too long for the model.
    """
    if out.exists():
        raise ValueError(f"--out {out}: there is something already; name a new folder")
    if steps < 1 or not lr > 0:
        raise ValueError(f"--steps {steps} --lr {lr}: both must be above 0")
    from isoflop.exchange.checkpoint import load_checkpoint
    from isoflop.rollouts import grpo
    from isoflop.rollouts.prompts import tasks as read
    from isoflop.rollouts.rubric import of_text, text
    from isoflop.run import AdamW
    from isoflop.training import optimizer

    loaded, judge = load_checkpoint(folder), of_text(text(rubric))
    if loaded.run.objective.family != "decoder":
        raise ValueError(
            f"{folder} is a {loaded.run.model.name}; rewards teach models that write from left to "
            "right in one stream"
        )
    tasks = read(prompts)
    before = _written(loaded, tasks, settings)
    loaded.model.train()
    course = grpo.train(
        loaded.model,
        optimizer.build(loaded.model, AdamW(lr=lr, weight_decay=0.0)),
        tasks,
        judge,
        loaded.tokenizer,
        steps=steps,
        settings=settings,
        report=report,
    )
    loaded.model.eval()
    after = _written(loaded, tasks, settings)
    scores = [judge.score(before), judge.score(after)]
    found = _compared(course, *scores)
    how = {"rubric": str(rubric), "prompts": prompts, "lr": lr, **asdict(settings)}
    both = {"before": (before, scores[0]), "after": (after, scores[1])}
    _leave(out, loaded, found, both, how)
    return found


def _written(loaded: Loaded, tasks: Sequence[Task], settings: Settings) -> list[Trace]:
    """Every prompt with the seeds that a capture would ask it with."""
    from isoflop.rollouts.generate import Sampling, generate
    from isoflop.rollouts.grpo import trace_of
    from isoflop.rollouts.prompts import prompt_ids, row_seed

    texts = [task.prompt for task in tasks]
    seeds = [[row_seed(text, i) for i in range(settings.samples)] for text in texts]
    end = loaded.tokenizer.end_of_text
    sampling = Sampling(settings.temperature, settings.new_tokens, (end,))
    rows = generate(loaded.model, prompt_ids(texts, loaded.tokenizer), seeds, sampling)
    rows = sorted(rows, key=lambda row: (row.prompt_index, row.sample))
    return [trace_of(row, tasks[row.prompt_index], loaded.tokenizer) for row in rows]


def _compared(course: list[Step], before: Scores, after: Scores) -> Taught:
    from isoflop.rollouts.statistics import mean

    prompts = [before.prompts.index(prompt) for prompt in before.prompts]
    pairs = [
        None if a is None or b is None else b - a
        for a, b in zip(before.rewards, after.rewards, strict=True)
    ]
    parts = [
        {
            name: mean([row.parts.get(name) for row in scores.rows], prompts).value
            for name in before.rows[0].weights
        }
        for scores in (before, after)
    ]
    return Taught(
        steps=course,
        before=mean(before.rewards, prompts),
        after=mean(after.rewards, prompts),
        difference=mean(pairs, prompts),
        parts={name: (value, parts[1][name]) for name, value in parts[0].items()},
    )


def _leave(
    out: Path,
    loaded: Loaded,
    found: Taught,
    written: dict[str, tuple[list[Trace], Scores]],
    how: dict[str, object],
) -> None:
    """Everything under another name first, so that a folder of this name is whole."""
    from safetensors.torch import save_model

    from isoflop.data import tokenizers
    from isoflop.rollouts.verifiers import write_traces
    from isoflop.training.checkpoint import write_json

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(loaded.model, str(partial / "model.safetensors"))
    tokenizers.save(loaded.tokenizer, partial)
    state = json.loads((loaded.folder / "state.json").read_text())
    write_json(partial / "state.json", {**state, "rewarded": how})
    write_json(partial / "rewards.json", [asdict(step) for step in found.steps])
    for name, (traces, scores) in written.items():
        (partial / name).mkdir()
        write_traces(partial / name, list(zip(traces, scores.rows, strict=True)))
    partial.rename(out)


def _told(found: Taught) -> str:
    difference = found.difference
    ends = "" if difference.low is None else f" [{difference.low:+.3f}, {difference.high:+.3f}]"
    lines = [
        f"reward {_text(found.before.value)} before, {_text(found.after.value)} after, on the same "
        f"{difference.prompts} prompts and seeds: {difference.value or 0:+.3f}{ends} (95 %)"
    ]
    lines += [f"  {name:<12} {_text(a)} -> {_text(b)}" for name, (a, b) in found.parts.items()]
    fall = found.steps[-1].entropy - found.steps[0].entropy
    lines.append(
        f"  entropy      {found.steps[0].entropy:.2f} -> {found.steps[-1].entropy:.2f} nats"
    )
    if fall < -0.5 * found.steps[0].entropy:
        lines.append("  more than half of the entropy is gone: the model may write one text only")
    return "\n".join(lines)


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
