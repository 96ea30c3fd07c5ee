"""What does a study's command do? Prepare the text, resolve the runs, then plan, train or report.

A `Campaign` is a study made concrete on one machine: its text prepared, every point a resolved run
with a folder of its own. Results lie under the storage folder:

    data/                    prepared text, shared by all studies
    mlflow.db, mlartifacts/  the tracking store, unless a server is named
    <study>/runs/<identity>/ one folder per run (see orchestration.job)
    <study>/runs.parquet     the run table
    <study>/report.html      and figures/

Whatever has a final result is never run again, so the same command resumes, extends and re-reports.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isoflop import preregister, record, tracking, trunks
from isoflop.data import feed
from isoflop.data.mixture import Mixed, parts, prepare_all
from isoflop.data.prepare import Prepared
from isoflop.design import Point, Search, Study, UserError, build, user_input
from isoflop.orchestration.job import Job, execute, result
from isoflop.orchestration.mirror import Mirror, is_url, not_checkpoints
from isoflop.progress import near
from isoflop.rollouts import capture, prompts
from isoflop.run import Run, Text
from isoflop.telling import COMPLETE, Telling, complete
from isoflop.training import attending
from isoflop.training.checkpoint import write_json
from isoflop.training.distributed import Ranks
from isoflop.training.means import USUAL, Means
from isoflop.training.precision import refusal
from isoflop.training.process import settle
from isoflop.training.sharding import refuse
from isoflop.watching import NONE, Limits, alone, stoppable

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.plan import Device, Workers
    from isoflop.report.searched import Searched
    from isoflop.searching import Source

LOCAL = (
    "runs",
    "ray",
    "trunks",
    "stop",
    "lock",
    "driver.json",
    COMPLETE,
)  # of a study's folder: not for the driver to write back


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a study runs and keeps its results; never part of a run's identity."""

    storage: Path
    mirror: Mirror | None = None  # of the storage, where it is a URL
    tracking: str | None = None
    address: str | None = None
    workers: Workers = None  # of each run
    at_once: int | None = None
    beside: bool = False  # rollouts are captured by processes of their own
    means: Means = USUAL  # how each worker computes

    def __post_init__(self) -> None:
        for name in ("workers", "at_once"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")

    @staticmethod
    def at(storage: str | Path, **others: Any) -> Machine:
        """With its results in a folder, or at a URL. Raises UserError."""
        with user_input():
            mirror = Mirror.of(str(storage)) if is_url(str(storage)) else None
        # Absolute, since workers do not stand where the command was typed.
        here = mirror.local if mirror else Path(storage).absolute()
        return Machine(storage=here, mirror=mirror, **others)

    def fetch(self, study: str) -> None:
        """What other machines have recorded of a study."""
        if self.mirror:
            self.mirror.pull(self.storage / study, not_checkpoints)

    @property
    def tracking_uri(self) -> str:
        return self.tracking or f"sqlite:///{(self.storage / 'mlflow.db').absolute()}"


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """A study on a machine: all its jobs, and those that this command was asked for."""

    study: Study
    machine: Machine
    jobs: list[Job]  # every point of the study, under this command's overrides
    chosen: list[Job]  # those that --only keeps
    preregister: bool = False  # predict the largest budget before it starts
    limits: Limits = NONE
    overrides: tuple[str, ...] = ()
    device: Device | None = None  # that `--plan` is asked about

    @property
    def folder(self) -> Path:
        return self.machine.storage / self.study.name

    @staticmethod
    def prepare(
        study: Study,
        machine: Machine,
        points: Sequence[Point],
        overrides: Sequence[str],
        quiet: bool = False,
    ) -> Campaign:
        """Read and tokenize the text (cached), resolve every run. Raises UserError before any
        training.
        """
        with user_input():
            runs = [(point, build(study, point, overrides)) for point in study.points]
            if machine.tracking:
                tracking.check(machine.tracking)
            prepared = prepared_texts({run.data for _, run in runs}, machine, quiet)
            jobs = [job_of(study, machine, point, run, prepared[run.data]) for point, run in runs]
        wanted = [job for job in jobs if job.axes in points]
        return Campaign(
            study=study,
            machine=machine,
            jobs=_distinct(jobs),
            chosen=_distinct(wanted),
            overrides=tuple(overrides),
        )

    def plan(self) -> None:
        """Print every run that is left to do, and what all of them cost; start nothing."""
        from isoflop.plan import PLAN, show

        if isinstance(self.study.points, Search):
            from isoflop.searching import plan

            return plan(self)
        left = record.unfinished(self.chosen)
        price = self.limits.price
        saved = trunks.steps_saved(trunks.attached(left, self.folder))
        seconds = show(
            self.chosen, left, self.machine.workers, self.machine.at_once, price, shared=saved,
            device=self.device, means=self.machine.means,
        )  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / PLAN, seconds)

    def _least(self, size: Callable[[Job], float]) -> Job:
        """The chosen point where that is smallest; of a search that has not begun, one it may
        choose."""
        if self.chosen:
            return min(self.chosen, key=size)
        from isoflop.searching import possible

        return min(possible(self, 4), key=size)

    def profile(self, detail: str) -> None:
        """A few steps of the chosen point with the largest step, in this process: where does the
        time go?"""
        from isoflop.training import profiling

        job = self._least(
            lambda job: -job.run.batch_tokens * job.run.training_flops / job.run.steps
        )
        settle(job.threads)
        folder = self.folder / "profile" / job.run.identity
        batches = feed.batches(job.run, job.prepared)
        found = profiling.profile(
            job.run, batches, folder, fine=detail == "fine", means=self.machine.means
        )
        print(f"{job.label}\n{found}")

    def smoke(self) -> None:
        """Two steps of the smallest point, in this process, in a folder that is thrown away."""
        import tempfile

        smallest = self._least(lambda job: job.run.training_flops)
        short = replace(smallest.run, tokens=2 * smallest.run.batch_tokens)
        with tempfile.TemporaryDirectory() as folder:
            short = replace(short, rollouts=replace(short.rollouts, beyond="now"))
            job = replace(smallest, run=short, folder=Path(folder), stop_file=Path(folder) / "stop")
            values = execute(job, Ranks(), lambda records: None)
        if values["status"] == "failed":
            raise RuntimeError(values["traceback"])
        print(
            f"{smallest.label}: two steps, held-out loss {values['loss']:.3f} nats per token, "
            f"{values['seconds']:.1f} s. The study is ready to run."
        )

    def report(self) -> str:
        """Analyse what there is, write the run table and the report; the verdict in words."""
        from isoflop.report.analysis import analyse, judge
        from isoflop.report.page import build as lay_out

        self.folder.mkdir(parents=True, exist_ok=True)
        found = self._findings()
        from isoflop.plan import against_plan

        table, predicted = preregister.scores(self.folder, self._table())
        record.save(table, self.folder / "runs.parquet")
        family, budget = f"axis.{self.study.family}", f"axis.{self.study.budget}"
        unit, judged, curves = judge(self.study.objective, table, record.curves(self.jobs))
        analysis = analyse(judged, curves=curves, family=family, budget=budget, unit=unit)
        page = lay_out(
            self.folder,
            name=self.study.name,
            question=self.study.question,
            table=judged,
            curves=curves,
            rollouts=record.rollouts(self.jobs),
            references=record.references(self.jobs),
            family=family,
            budget=budget,
            analysis=analysis,
            search=found,
            cost=against_plan(self.folder, self.jobs),
        )
        text: str = found.text if found else analysis.verdict.text
        sentences = re.split(r"(?<=\.) (?=[A-Z])", text)
        print("\n" + "\n".join(textwrap.fill(line, 100) for line in sentences))
        if predicted:
            print(predicted)
        print(f"\nreport  {near(page)}")
        if self.machine.mirror:  # the runs are there already
            self.machine.mirror.push(self.folder, lambda name: name.split("/")[0] not in LOCAL)
            print(f"kept at {self.machine.mirror.url}/{self.study.name}")
        return text

    def _table(self) -> pd.DataFrame:
        """The run table, with what `--plan` had said of each run."""
        from isoflop.plan import said_and_took

        table, pairs = record.table(self.jobs), said_and_took(self.folder, self.jobs)
        if pairs:
            for index, column in enumerate(("planned_seconds", "taken_seconds")):
                table[column] = [pairs[name][index] if name in pairs else None
                                 for name in table["run"]]  # fmt: skip
        return table

    def _findings(self) -> Searched | None:
        """What a search has found; None of a grid."""
        if not isinstance(self.study.points, Search):
            return None
        from isoflop.report.searched import Searched
        from isoflop.searching import findings

        return Searched(findings(self), record.table(self.jobs), record.references(self.jobs))

    def go(self) -> int:
        """Train what has no result yet, then report. Returns the exit status."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone(self.folder, self.machine.mirror), stoppable(self.folder / "stop"):
            source = self._source()
            left = record.unfinished(self.chosen) if source is None else source.left
            if left or (source and source.further) or self.waiting():
                from isoflop.execution import carry_out

                stopped = carry_out(self, left, source)
                if stopped:
                    print("stopped; the same command goes on from here")
                    return 130
            else:
                print(f"all {len(self.chosen)} runs have finished before; nothing to train")
                self.report()
                if not complete(self):
                    Telling(self).study()
            shutil.rmtree(self.folder / "ray", ignore_errors=True)  # Ray's own bookkeeping
            trunks.clear(self.jobs, self.folder)
        failures = [job for job in self.chosen if _status(job) == "failed"]
        for job in failures:
            print(f"failed: {job.label}: {(result(job.folder) or {}).get('error')}")
        return 1 if failures else 0

    def waiting(self) -> list[Job]:
        """Chosen runs that have ended, and put captures off."""
        from isoflop.orchestration.later import waits

        return [replace(job, late=True) for job in self.chosen if waits(job)]

    def _source(self) -> Source | None:
        """Where the runs of a search come from; None for a grid."""
        if not isinstance(self.study.points, Search):
            return None
        from isoflop.searching import Source

        return Source(self)


def prepared_texts(texts: set[Text], machine: Machine, quiet: bool) -> dict[Text, Prepared | Mixed]:
    """Every text of the study, with a spinner on a terminal while it takes long."""
    from rich.console import Console

    console = Console(quiet=quiet)
    with console.status("preparing the text") as status:
        found = {text: prepare_all(text, machine.storage / "data", status.update) for text in texts}
        if machine.mirror:
            for folder in {part.folder for one in found.values() for part in parts(one).values()}:
                machine.mirror.push(folder)
    return found


def job_of(
    study: Study, machine: Machine, point: Point, run: Run, prepared: Prepared | Mixed
) -> Job:
    """The run of one point, resolved, with its place. Raises ValueError for what would fail."""
    run = replace(run, rollouts=prompts.read(run.rollouts))
    if isinstance(study.points, Search) and any(
        name.startswith("rollout/") for name in study.points.settings.sought
    ):  # the next point follows from what this one writes
        run = replace(run, rollouts=replace(run.rollouts, beyond="now"))
    resolved = run.resolve(vocab=prepared.vocab, fingerprint=prepared.fingerprint)
    _check(resolved, machine, prepared)
    folder = machine.storage / study.name
    return Job(
        study=study.name,
        run=resolved,
        axes=point,
        label=study.label(point),
        folder=(folder / "runs" / resolved.identity).absolute(),
        prepared=prepared,
        stop_file=(folder / "stop").absolute(),
        mirror=machine.mirror,
        beside=machine.beside,
        means=machine.means,
    )


def _check(run: Run, machine: Machine, prepared: Prepared | Mixed) -> None:
    """Raise ValueError for what would fail, or crawl, in every run once it has started."""
    here = "cuda" if torch.cuda.is_available() else "cpu"
    if machine.address is None and (why := refusal(run.precision, here)):
        raise ValueError(why)
    if machine.address is None and (why := attending.refusal(run, here, machine.means)):
        raise ValueError(why)
    need = run.model.context + 1
    for name, part in parts(prepared).items():
        sides = (("training", part.train_tokens), ("validation", part.validation_tokens))
        for side, tokens in sides:
            if tokens < need:
                raise ValueError(
                    f"the {side} text {name and f'of {name!r} '}has {tokens} tokens, fewer than "
                    f"the {need} of one window; use more text or a smaller model.context"
                )
    feed.check(run, prepared)
    workers = machine.workers if isinstance(machine.workers, int) else 1
    if run.rows % workers:
        raise ValueError(
            f"a batch of {run.rows} rows cannot be shared equally by {workers} workers; "
            "choose --workers or batch_tokens so that it can"
        )
    if machine.means.shard == "on":
        refuse(run, 2 if machine.workers == "auto" else workers, machine.means)
    rows, share = machine.means.micro_batch, run.rows // workers
    if run.objective.contrast and rows is not None and rows < share:
        raise ValueError(
            f"--micro-batch is {rows}, but objective.contrast compares all {share} rows of a "
            "worker's batch with each other: leave --micro-batch out"
        )
    capture.check(run.rollouts, run.model.context)


def _distinct(jobs: list[Job]) -> list[Job]:
    """Overrides can make two points the same run; it is trained once."""
    return list({job.run.identity: job for job in jobs}.values())


def _status(job: Job) -> str:
    return str((result(job.folder) or {}).get("status", "missing"))
