"""What would an ended run have written, had it been asked, and what does another make of it?

The same code as while it trained, on its checkpoints: captures that are there are left as they are,
missing ones get the rows that they would have had. The weights of step 0 follow from the seed; of a
finished run those at the end are kept, of one that was stopped its newest two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from isoflop.data.mixture import Mixed, parts, prepare_all
from isoflop.data.prepare import Prepared
from isoflop.orchestration.capturing import captures, write_references
from isoflop.rollouts import capture, control, outside, prompts, references, rows
from isoflop.rollouts.judge import judge
from isoflop.rollouts.metrics import GROUP, plugins
from isoflop.rollouts.regard import regard
from isoflop.rollouts.rewards import Trace
from isoflop.rollouts.rubric import Scores, of_text, text
from isoflop.run import Run, Spec
from isoflop.training.checkpoint import AVERAGED
from isoflop.training.distributed import Ranks
from isoflop.training.loop import initial
from models.interface import Config, Model

Zoo = Mapping[str, type[Config]]
Say = Callable[[str], None]
WEIGHTS = "model.safetensors"  # of a checkpoint


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run as its folder tells of it."""

    folder: Path
    run: Run
    study: str
    axes: dict[str, Any]

    @staticmethod
    def read(folder: Path, zoo: Zoo) -> Ended:
        """Raises ValueError where there is no run, or one of an unknown model."""
        try:
            values = json.loads((folder / "run.json").read_text())
            run, study, axes = values["run"], values["study"], values["axes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} is not the folder of a run ({error!r})") from error
        return Ended(folder=folder, run=Run.from_json(run, zoo), study=study, axes=axes)

    def models(self) -> list[tuple[int, Path]]:
        """Every step whose weights are kept, and where. Raises ValueError if there are none."""
        found = sorted((self.folder / "checkpoints").glob("step-*"))
        if not found:
            raise ValueError(f"{self.folder} has no checkpoints: nothing can be asked of it")
        return [(int(path.name.removeprefix("step-")), path) for path in found]

    def at(self, step: int, kinds: Collection[str], device: str | None = None) -> dict[str, Model]:
        """The models of a kept step, or of step 0, by what they hold: "raw" or "ema" weights.
        Raises ValueError where there are none."""
        place = device or _here()
        if step == 0:
            return dict.fromkeys(kinds, initial(self.run).to(place))
        path = dict(self.models()).get(step)
        if path is None:
            raise ValueError(f"{self.folder} keeps no weights of step {step}")
        files = {"raw": WEIGHTS, "ema": AVERAGED}
        return {kind: self.load(path, files[kind], place) for kind in kinds}

    def load(self, path: Path, file: str = WEIGHTS, device: str | None = None) -> Model:
        """The model with the weights of a checkpoint. Raises ValueError where it is damaged."""
        device = device or _here()
        model = self.run.model.build()
        try:
            load_model(model, str(path / file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the weights in {path} cannot be read ({error})") from error
        return model.to(device)

    def prepared(self, cache: Path) -> Prepared | Mixed:
        """Its text. Raises ValueError where what is there now is another one."""
        made = prepare_all(self.run.data, cache)
        if made.fingerprint != self.run.data.fingerprint:
            raise ValueError(
                f"the text {self.run.data.source!r} has changed since the run: its fingerprint is "
                f"{made.fingerprint}, and was {self.run.data.fingerprint}"
            )
        return made


def _here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def backfill(
    folder: Path,
    zoo: Zoo,
    cache: Path,
    *,
    specs: Sequence[Spec] = (),
    novelty: bool = False,
    say: Say = lambda line: None,
) -> list[Path]:
    """The files of every set of prompts, those of the run and further `specs`, at step 0 and every
    kept step.

    `cache`: where texts are prepared. `novelty`: compare with what was read, also if the run did
    not; for rows that are made now. Raises ValueError for what cannot be asked.
    """
    ended = Ended.read(folder, zoo)
    own = ended.run.rollouts
    asked = replace(own, specs=(*own.specs, *specs), novelty=own.novelty or novelty)
    asked = prompts.read(asked)
    capture.check(asked, ended.run.model.context)
    if not asked.asked:
        raise ValueError(f"{folder} was asked nothing; name prompts to ask now")
    steps = ended.models()
    # Rows belong to the run that was trained: its identity does not know what is asked later.
    made = captures(
        ended.run, ended.prepared(cache), folder / "rollouts", Ranks(),
        study=ended.study, axes=ended.axes, asked=asked,
    )  # fmt: skip
    files, kinds = [], {"raw", *(one.spec.weights for one in made)}
    for step in (0, *(step for step, _ in steps)):
        models = ended.at(step, kinds)
        tokens = step * ended.run.batch_tokens
        flops = float(tokens) * ended.run.model.flops_per_token().training
        for one in made:
            found = one(models[one.spec.weights], step=step, tokens=tokens, flops=flops)
            assert found is not None
            said = "is there" if found.reused else f"{found.count} rollouts"
            say(f"step {step}  {one.spec.name or 'own prompts'}: {said}, {found.rows}")
            files.append(found.rows)
    write_references(ended.run, ended.prepared(cache), made, models)
    return files


def rejudge(folder: Path, by: Path, zoo: Zoo, cache: Path, say: Say = lambda line: None) -> int:
    """Write what the run in folder `by` makes of all rollouts of the run in `folder` into their
    rows, as the metric `judged`, and of held-out text into its references; the number of rollouts.

    Raises ValueError where the two have other tokens, or there are no rollouts.
    """
    ended, other = Ended.read(folder, zoo), Ended.read(by, zoo)
    if ended.run.data.fingerprint != other.run.data.fingerprint:
        raise ValueError(f"{folder} and {by} have other texts or tokenizers: no judge for it")
    files = sorted((folder / "rollouts").glob("step-*.parquet"))
    if not files:
        raise ValueError(f"{folder} has no rollouts to judge")
    model = other.load(other.models()[-1][1])
    count = sum(judge(file, model) for file in files)
    known = references.read(folder / "rollouts")
    text = other.prepared(cache)
    held = [part.validation() for part in parts(text).values()]
    for spec in ended.run.rollouts.asked:
        if spec.name in known and spec.new_tokens < model.config.context:
            known[spec.name]["judged"] = control.judged(model, spec, held, text.tokenizer())
    references.write(folder / "rollouts", known)
    say(f"{count} rollouts in {len(files)} captures judged by {by.name}")
    return count


def reward(
    folder: Path,
    *,
    rubric: str | None = None,
    taskset: str | None = None,
    python: str = sys.executable,
    tasks: str | None = None,
    say: Say = lambda line: None,
) -> int:
    """Write into the rows of the run in `folder` what a file's rubric says of them, or a taskset of
    verifiers that `python` can import; the number of rollouts.

    `tasks`: a file with answers and infos by prompt. Raises ValueError for what cannot be read, and
    where there are no rollouts.
    """

    def outer(traces: Sequence[Trace]) -> Scores:
        assert taskset is not None, "one of the two is given"
        return outside.score(traces, taskset, python=python)

    scorer = of_text(text(rubric)).score if rubric else outer
    return regard(folder, scorer, prompts.tasks(tasks) if tasks else (), say)


def remeasure(folder: Path, say: Say = lambda line: None) -> int:
    """Write what the metrics of installed packages (entry points `isoflop.metrics`) say of all
    rollouts of the run in `folder` into their rows; the number of metrics.

    Raises ValueError where no package has one, one cannot be loaded, or there are no rollouts.
    """
    metrics = plugins()
    if not metrics:
        raise ValueError(f"no installed package has a metric under the entry points {GROUP!r}")
    files = sorted((folder / "rollouts").glob("step-*.parquet"))
    if not files:
        raise ValueError(f"{folder} has no rollouts to measure")
    for file in files:
        for name, found in rows.measure(file, metrics).items():
            value = "none" if found.value is None else f"{found.value:.4g}"
            ends = "" if found.low is None else f" [{found.low:.4g}, {found.high:.4g}]"
            say(f"{file.name}  {name} {value}{ends}")
    return len(metrics)
