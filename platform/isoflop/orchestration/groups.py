"""How do the workers of one run serve the next? A Ray Train group that is kept from point to point.

Starting a group costs tens of seconds: a controller, and a process for each worker, all of which
import torch and join a process group. So the process of a Tune trial, which Tune reuses, starts one
for its first point and keeps it: its ranks take one job after another from a `Post`.

    trial:   put a job           news: records, then the result
    ranks:   take the same job   execute it together, tell

A group whose process dies is over. Whoever asked starts another, from the run's own checkpoint. It
is closed before its trial's process ends: what it has reserved of a cluster would outlive it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.orchestration.job import Job
from isoflop.orchestration.later import carry_out
from isoflop.orchestration.scribe import beside
from isoflop.training.distributed import Ranks
from isoflop.training.loop import Record

if TYPE_CHECKING:
    from isoflop.orchestration.slots import Slots

NEWS_SECONDS = 1.0  # between two looks at a group's records, and whether it lives
CLOSING_SECONDS = 60.0  # for the processes of a group that is not wanted any more
Values = dict[str, Any]


@dataclass(eq=False)
class Post:
    """What the trial gives its ranks, and what they tell. An actor's methods, one loop's."""

    jobs: list[Job | None] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    results: dict[int, Values] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def put(self, job: Job | None) -> int:
        """The number of the job; None: there will be no other."""
        async with self.changed:
            self.jobs.append(job)
            self.changed.notify_all()
            return len(self.jobs) - 1

    async def take(self, number: int) -> Job | None:
        """The job of that number, once it is there."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.jobs) > number)
            return self.jobs[number]

    async def tell(self, records: list[Record]) -> None:
        async with self.changed:
            self.records += records

    async def end(self, number: int, values: Values) -> None:
        async with self.changed:
            self.results[number] = values
            self.changed.notify_all()

    async def news(self, number: int, seconds: float) -> tuple[list[Record], Values | None]:
        """After so long, or once the job has ended: what was told since, and how it ended."""
        async with self.changed:
            try:
                ended = self.changed.wait_for(lambda: number in self.results)
                await asyncio.wait_for(ended, seconds)
            except TimeoutError:
                pass
            told, self.records = self.records, []
            return told, self.results.pop(number, None)


class Group:
    """The workers of one run after another: Ray Train's, in a thread of this process."""

    def __init__(self, slots: Slots, store: Path) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.slots, self.store = slots, store
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        post: Any = ray.remote(num_cpus=0)(Post)  # not on a machine that may be lost without us
        self.post = post.options(scheduling_strategy=here).remote()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="group", daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def put(self, job: Job) -> int:
        """Have a job carried out; its number."""
        import ray

        return int(ray.get(self.post.put.remote(job)))

    def news(self, number: int) -> tuple[list[Record], Values | None]:
        """What a job has recorded since, and its result if it has one: within a second. Raises
        ray.train.TrainingFailedError if a process of the group dies, or the job raises in one."""
        import ray

        alive = self.alive
        found: tuple[list[Record], Values | None] = ray.get(
            self.post.news.remote(number, NEWS_SECONDS)
        )
        if found[1] is None and not alive:
            raise self.error or RuntimeError("a group of workers ended before its run did")
        return found

    def close(self) -> None:
        """Let the processes end, and wait for them."""
        import ray

        if self.alive:
            ray.get(self.post.put.remote(None))
            self.thread.join(CLOSING_SECONDS)
        ray.kill(self.post)

    def _run(self) -> None:
        try:
            _trainer(self.slots, self.store, self.post).fit()
        except BaseException as error:  # raised to whoever asks for news
            self.error = error


class Kept:
    """The group that a trial's process has, if it has one."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.group: Group | None = None

    def group_of(self, slots: Slots) -> Group:
        """The one that is there, or one of that size. A dead one is given too: it says why."""
        if self.group and self.group.slots != slots:
            self.close()
        self.group = self.group or Group(slots, self.store)
        return self.group

    def close(self) -> None:
        if self.group:
            self.group.close()
        self.group = None


def _trainer(slots: Slots, store: Path, post: Any) -> Any:
    from ray import train
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        _serve,
        train_loop_config={"post": post},
        scaling_config=train.ScalingConfig(
            num_workers=slots.workers, use_gpu=slots.gpu, resources_per_worker=slots.bundle
        ),
        run_config=train.RunConfig(
            # New for each start: the runs' own checkpoints say where to go on, not Train's.
            name=f"group-{time.time_ns()}",
            storage_path=str(store.absolute()),
            # Train itself would start as many workers again, on nodes that it takes to be alive.
            failure_config=train.FailureConfig(
                max_failures=0,
                controller_failure_limit=3,  # the default retries for ever
            ),
        ),
    )


def _serve(config: dict[str, Any]) -> None:
    """One rank of a group: what is put in the post, in its order."""
    import ray
    from ray import train
    from ray.train.torch import get_device

    context, post = train.get_context(), config["post"]
    ranks = Ranks(
        rank=context.get_world_rank(), world=context.get_world_size(), device=str(get_device())
    )

    def tell(records: list[Record]) -> None:
        if ranks.leads:
            post.tell.remote(records)

    number = 0
    while (job := ray.get(post.take.remote(number))) is not None:
        values = carry_out(job, ranks, tell, beside)
        if ranks.leads:
            ray.get(post.end.remote(number, values))
        number += 1
