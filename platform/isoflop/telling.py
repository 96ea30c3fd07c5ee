"""Does MLflow know all that a study has recorded? What happens is told at once, the rest later.

Nobody tells it of a run that ends when its driver has been killed, when a server is away for longer
than anybody waits, when results come from another machine or `--tracking` names another store.
`mlflow.json` in the study's folder says which store has everything; without it the next command
compares, run by run, and brings what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from isoflop import record, tracking
from isoflop.design import Study
from isoflop.orchestration.job import Job, result
from isoflop.progress import near
from isoflop.training.checkpoint import write_json
from isoflop.training.loop import Record

if TYPE_CHECKING:
    from isoflop.campaign import Campaign

COMPLETE = "mlflow.json"


class Tracked:
    """A watcher: passes what happens on to MLflow."""

    def __init__(self, tracker: tracking.Tracker | tracking.Writer, study: Study) -> None:
        self.tracker = tracker
        self.varied = study.points.varied

    def started(self, job: Job) -> None:
        described = record.described(job.run, job.prepared.train_tokens)
        # "axis." sorts first, and MLflow's plots open with the first names: an axis of one value
        # would leave them empty.
        axes = {f"axis.{name}": job.axes[name] for name in job.axes if name in self.varied}
        tags = {"isoflop.kind": "run", "isoflop.study": job.study}
        self.tracker.start(job.run.identity, job.label, {**axes, **described}, tags)

    def progressed(self, job: Job, records: list[Record]) -> None:
        self.tracker.log(job.run.identity, records)

    def ended(self, job: Job, result: Mapping[str, Any]) -> None:
        summary = {name: result.get(name) for name in record.RESULTS}
        names = ("run.json", "result.json", "rollouts", "traceback.txt")
        files = [job.folder / name for name in names]
        if result.get("error"):
            summary["error"] = result["error"]
        # Its last second was told to nobody where a process was killed and went on.
        records = record.records(job.folder)
        summary[tracking.ENDED] = _how(result, records)
        self.tracker.log(job.run.identity, records)
        self.tracker.end(job.run.identity, result["status"], summary, files)


def _how(result: Mapping[str, Any], records: Sequence[Record]) -> str:
    """What a store that has the same of a run has all of."""
    return f"{result['status']} with {len(records)} records"


class Telling:
    """MLflow's part in one command of a study."""

    def __init__(self, campaign: Campaign, left: Sequence[Job] = ()) -> None:
        """`left`: runs that this command trains; what is missing of all others is told first."""
        machine = campaign.machine
        self.campaign = campaign
        self.tracker = tracking.Tracker(
            machine.tracking_uri, campaign.study.name, machine.storage / "mlartifacts"
        )
        self.watcher = Tracked(self.tracker, campaign.study)
        if not complete(campaign):
            trained = {job.run.identity for job in left}
            self._catch_up([job for job in campaign.jobs if job.run.identity not in trained])
        (campaign.folder / COMPLETE).unlink(missing_ok=True)

    def _catch_up(self, jobs: list[Job]) -> None:
        for job in jobs:
            values = result(job.folder)
            if values:
                self.tracker.do(partial(_unless_known, self.campaign.study, job, values))

    def study(self) -> None:
        """The study as an MLflow run of its own, and the links that open everything."""
        study, folder = self.campaign.study, self.campaign.folder
        key, runs = f"study:{study.name}", {"runs": len(self.campaign.jobs)}
        self.tracker.start(key, f"study {study.name}", runs, {"isoflop.kind": "study"})
        self.tracker.end(
            key, "finished", {"question": study.question},
            [folder / "report.html", folder / "figures", folder / "runs.parquet"],
        )  # fmt: skip
        if self.close():
            print(f"runs    {self._links()}")

    def close(self) -> bool:
        """Wait for what is left to tell. A store that failed is said, not raised."""
        try:
            self.tracker.close()
        except RuntimeError as error:
            print(
                f"warning: {error}; the runs and the report are complete without it, and the same "
                "command tells it what it lacks"
            )
            return False
        write_json(self.campaign.folder / COMPLETE, {"store": _store(self.campaign)})
        return True

    def _links(self) -> str:
        machine = self.campaign.machine
        server = machine.tracking or "http://127.0.0.1:5000"
        keys = [job.run.identity for job in self.campaign.jobs]
        found = self.tracker.links(server, keys) if server.startswith("http") else {}
        lines = [f"{name:<8}{link}" for name, link in found.items()]
        if not machine.tracking:
            lines.insert(0, f"isoflop ui {near(machine.storage)}   starts MLflow for these:")
        return "\n        ".join(lines)


def _unless_known(
    study: Study, job: Job, values: Mapping[str, Any], writer: tracking.Writer
) -> None:
    """A run that ended before, where the store does not hold its end. On the tracking thread."""
    if writer.ended.get(job.run.identity) != _how(values, record.records(job.folder)):
        told = Tracked(writer, study)
        told.started(job)
        told.ended(job, values)


def complete(campaign: Campaign) -> bool:
    """Had the store everything when the last command ended?"""
    try:
        known = json.loads((campaign.folder / COMPLETE).read_text())
    except (FileNotFoundError, ValueError):
        return False
    own = campaign.machine.storage / "mlflow.db"
    there = campaign.machine.tracking is not None or own.is_file()
    return there and isinstance(known, dict) and known.get("store") == _store(campaign)


def _store(campaign: Campaign) -> str:
    """A store's address may hold a password: it is kept as a digest."""
    return hashlib.sha256(campaign.machine.tracking_uri.encode()).hexdigest()[:16]
