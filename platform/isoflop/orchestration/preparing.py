"""How is a text prepared by a whole cluster? Each unit is a task, on whichever node has a core.

The source and the output must lie on storage that all nodes see under the same paths. A unit whose
node is lost is done again elsewhere: files take their names only once they are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from isoflop.data.parallel import Job, Result, Runner
from isoflop.orchestration.cluster import Resources, cluster

RETRIES = 3  # of a task whose process or node dies


@contextmanager
def join(address: str) -> Iterator[Runner]:
    """The runner of the cluster at `address` ("auto": the one on this machine).

    Raises ValueError if nothing answers there.
    """
    with cluster(address) as resources:
        yield runner(resources)


def runner(resources: Resources) -> Runner:
    """Does jobs as tasks of the cluster that this process has joined."""

    def run(work: Callable[[Job], Result], jobs: Iterable[Job], /) -> Iterator[Result]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_do)
        running: list[ray.ObjectRef[Result]] = []
        try:
            for job in jobs:
                running.append(task.remote(work, job))
                if len(running) >= 2 * max(1, resources.cpus):
                    done, running = ray.wait(running)
                    yield from ray.get(done)
            while running:
                done, running = ray.wait(running)
                yield from ray.get(done)
        except RayTaskError as error:
            raise error.cause from None  # what the work raised, as if it had been here
        except RayError as error:
            raise ChildProcessError(
                f"the cluster lost a unit of the text {1 + RETRIES} times, with process or node "
                f"({type(error).__name__}); finished parts are kept, so the same command continues"
            ) from error
        finally:
            for left in running:
                ray.cancel(left)

    return run


def _do(work: Callable[[Job], Result], job: Job) -> Result:
    return work(job)
