"""How does a study run whose points are searched for? Runs are chosen while others train.

A `Source` gives the next run whenever there is room for one, and hears how they go and end. What is
chosen is written to the study's folder before it starts (`points.json`), so that every command
knows the runs of all those before it, whatever was searched for then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isoflop import record
from isoflop.campaign import Campaign, job_of, prepared_texts
from isoflop.design import Point, Search, UserError, build, user_input
from isoflop.orchestration.job import FINAL, PRUNE, Job, result
from isoflop.progress import duration
from isoflop.rollouts.catalogue import METRICS
from isoflop.run import short
from isoflop.space import PLAIN, Findings, most
from isoflop.training.evaluate import points
from isoflop.training.loop import Record
from isoflop.upcoming import keep

if TYPE_CHECKING:
    from isoflop.orchestration.searches import Asked, Searching

SHOWN = 8  # points of a plan that may be chosen


class Source:
    """The runs of a search, one after another. A watcher too: it is told to Optuna what ended."""

    def __init__(self, campaign: Campaign) -> None:
        """Opens the search, and tells it what finished before. Raises UserError for what could not
        be searched for in any of its runs."""
        self.campaign, self.search = campaign, searched(campaign)
        examples = possible(campaign, 1)
        with user_input():
            for job in examples:
                check(self.search, job)
                if why := in_vain(self.search, job):
                    print(f"warning: {why}")
            longest = max(job.run.tokens or 1 for job in examples)
            self.searching = opened(campaign, longest)
        self.jobs = {job.run.identity: job for job in campaign.jobs}
        open_jobs = [self._taken(asked) for asked in self.searching.resume()]
        self.left = [job for job in open_jobs if job is not None]
        for job in campaign.jobs:  # recorded, and not told: for another search of the folder
            if _status(job) == "finished":
                self.searching.warm(job.run.identity, job.axes, metrics(job, self.search))

    @property
    def further(self) -> int:
        """Runs that are still to be chosen."""
        return max(0, most(self.search.space, self.search.settings) - self.searching.asked)

    def together(self) -> int:
        """Runs that may be chosen at once, to train as one: as many as the user settles, or a
        quarter of what is left, so that the later ones learn from them."""
        asked = self.campaign.machine.means.together
        return asked or max(1, (len(self.left) + self.further) // 4)

    def __call__(self) -> Job | None:
        """The next run; None where the search has had its trials."""
        if self.left:
            return self.left.pop(0)
        while self.further:
            job = self._taken(self.searching.ask())
            if job is not None:
                return job
        return None

    def _taken(self, asked: Asked) -> Job | None:
        """The run of a point, which becomes one of the study's; None where there is nothing to
        train for it. A driver that is killed anywhere in here does it again."""
        label = self.campaign.study.label(asked.point)
        try:
            job = made(self.campaign, asked.point)
        except ValueError as error:
            print(f"{label} cannot be run: {error}", flush=True)
            self.searching.drop(asked, str(error))
            return None
        identity = job.run.identity
        if identity in self.searching.running:
            self.searching.drop(asked, "the same run is under way")
            return None
        self.searching.begin(asked, identity)
        if identity not in self.jobs:
            self.jobs[identity] = job
            keep(self.campaign.folder, self.campaign.study, [asked.point])
            self.campaign.jobs.append(job)
            self.campaign.chosen.append(job)
        if _status(job) in FINAL:
            self.ended(job, result(job.folder) or {})
            return None
        return job

    def started(self, job: Job) -> None:
        """It was chosen here."""

    def progressed(self, job: Job, records: list[Record]) -> None:
        aim = self.search.settings.aims[0]
        for each in records:
            if aim.metric not in each:
                continue
            end = "low" if aim.towards == "down" else "high"
            hope = each.get(f"{aim.metric}.{end}") if aim.metric.startswith("rollout/") else None
            value = each[aim.metric]
            why = self.searching.heard(job.run.identity, each["tokens"], value, hope)
            if why:
                (job.folder / PRUNE).write_text(why)
                return

    def ended(self, job: Job, result: dict[str, Any]) -> None:
        known = metrics(job, self.search) if result["status"] == "finished" else {}
        self.searching.tell(job.run.identity, result["status"], known)


def searched(campaign: Campaign) -> Search:
    assert isinstance(campaign.study.points, Search), "a grid is not searched"
    return campaign.study.points


def opened(campaign: Campaign, longest: int = 1) -> Searching:
    """The search in its study's folder. Raises ValueError."""
    from isoflop.orchestration.searches import Searching

    search = searched(campaign)
    return Searching(
        campaign.folder,
        campaign.study.name,
        search.space,
        search.settings,
        overrides=campaign.overrides,
        longest=longest,
    )


def made(campaign: Campaign, point: Point) -> Job:
    """The run of a point. Raises ValueError where its study or its text does not allow it."""
    run = build(campaign.study, point, campaign.overrides)
    text = prepared_texts({run.data}, campaign.machine, quiet=True)[run.data]
    return job_of(campaign.study, campaign.machine, point, run, text)


def possible(campaign: Campaign, count: int) -> list[Job]:
    """Runs that may be chosen. Raises UserError where none can be built."""
    from isoflop.orchestration.searches import preview

    search = searched(campaign)
    found, why = {}, ""
    with user_input():
        for point in preview(search.space, search.settings, count + SHOWN):
            try:
                job = made(campaign, point)
            except ValueError as error:
                why = f"{campaign.study.label(point)} cannot be run: {error}"
                continue
            found[job.run.identity] = job
            if len(found) == count:
                break
    if not found:
        raise UserError(why)
    return list(found.values())


def check(search: Search, job: Job) -> None:
    """Raises ValueError for a rollout metric that the runs of the search do not have."""
    names = {metric.name for metric in METRICS}
    sets = {spec.name for spec in job.run.rollouts.asked}
    unheld = {"judged"}  # and what only models that write from left to right have of it
    if job.run.objective.family != "decoder":
        unheld = {metric.name for metric in METRICS if metric.level == "token"}
    settings = search.settings
    near = [aim for aim in settings.aims if aim.towards == "reference"]
    for metric in sorted(settings.sought):
        if not metric.startswith("rollout/"):
            continue
        name, _, plain = metric.removeprefix("rollout/").rpartition("/")
        paid = bool(job.run.rollouts.rewards) and plain.startswith("reward")
        if name not in sets or not (paid or plain in names):
            own = ", ".join(f"rollout/{one}/" if one else "rollout/" for one in sorted(sets))
            raise ValueError(
                f"the search is after {metric!r}; its runs have {own or 'no rollouts'}, each with "
                f"one of {', '.join(sorted(names))}"
            )
        if plain in unheld and any(metric == aim.metric for aim in near):
            raise ValueError(
                f"the search wants {metric!r} near to that of held-out text, which has none: it is "
                "of the model that writes, or of a judge"
            )


def in_vain(search: Search, job: Job) -> str | None:
    """Why pruning will end no run, if so: they are not evaluated between its rung and their end."""
    run, settings = job.run, search.settings
    if settings.pruning is None or settings.aims[0].metric.startswith("rollout/"):
        return None
    on_the_way = [step for step in points(run.steps, run.evaluation.times) if step < run.steps]
    last, first = max(on_the_way, default=0) * run.batch_tokens, settings.pruning.first
    if first <= last:
        return None
    return (
        f"no run will be ended early: pruning.first is {first:,} tokens, and a run of "
        f"{run.steps * run.batch_tokens:,} is evaluated last before its end after {last:,}"
    )


def metrics(job: Job, search: Search) -> dict[str, float | None]:
    """What a search may be after, of a finished run: metrics by their name, and by what `str` says
    of an aim how far they are from held-out text's."""
    row = record.table([job]).iloc[0].to_dict()
    found = {name: _number(row.get(column)) for name, column in PLAIN.items()}
    found |= {str(k): _number(v) for k, v in row.items() if str(k).startswith("rollout/")}
    held_out = record.references([job]) if search.settings.near else {}
    for aim in search.settings.aims:
        value = found.get(aim.metric)
        reference = held_out.get(aim.metric, {}).get(job.run.identity)
        if aim.towards == "reference" and value is not None and reference is not None:
            found[str(aim)] = abs(value - reference)
    return found


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def _status(job: Job) -> str:
    return str((result(job.folder) or {}).get("status", "missing"))


def findings(campaign: Campaign) -> Findings:
    """What the search has found. Tells it what was recorded since; starts nothing."""
    with user_input():
        return opened(campaign).findings()


def plan(campaign: Campaign) -> None:
    """Print what may be chosen and what it may cost; start nothing."""
    from isoflop.plan import show, slots

    search = searched(campaign)
    with user_input():
        asked = opened(campaign).asked if campaign.folder.exists() else 0
    left = max(0, most(search.space, search.settings) - asked)
    print("\n".join(line.strip() for line in search.described()))
    print(f"{asked} trials have been chosen; for the {left} others, points like these:\n")
    examples = possible(campaign, max(1, min(left, SHOWN)))
    machine, price = campaign.machine, campaign.limits.price
    workers = machine.workers if isinstance(machine.workers, int) else 1
    seconds = show(
        examples, examples, workers, machine.at_once, summary=False, device=campaign.device
    )
    total = sum(seconds.values()) / len(seconds) * left
    flops = sum(float(job.run.training_flops) for job in examples) / len(examples) * left
    at_once, where = slots(workers, machine.at_once, campaign.device)
    wall = total / at_once / workers
    cost = "" if price is None else f", {wall / 3600 * price:.2f} dollars"
    less = ", less what pruning saves" if search.settings.pruning else ""
    print(
        f"\n{left} runs: about {short(flops)} FLOPs, {duration(wall)}{cost} with {at_once} at once "
        f"on {where}{less}. Nothing has been started."
    )
