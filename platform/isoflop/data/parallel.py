"""Who does the work? This process, a few others on this machine, or (from outside) a cluster.

Work is cut into jobs that do not depend on who does them, so the result is the same to the bit for
any number of processes. Jobs and results are small: text and ids go through files, never queues.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

# A process costs the start of an interpreter and of a tokenizer: below this much text for each,
# more of them are slower.
BYTES_PER_PROCESS = 2**25


class Runner(Protocol):
    """Does jobs, in any order, and gives their results as they come."""

    def __call__(
        self, work: Callable[[Job], Result], jobs: Iterable[Job], /
    ) -> Iterator[Result]: ...


def worthwhile(size: int) -> int:
    """How many processes so many bytes of text are worth on this machine."""
    return max(1, min(_cores(), size // BYTES_PER_PROCESS))


def on(processes: int) -> Runner:
    """On so many processes of this machine; 1 is this process itself.

    Raises ValueError for less than one. A worker that dies raises ChildProcessError.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")

    def run(work: Callable[[Job], Result], jobs: Iterable[Job], /) -> Iterator[Result]:
        if processes == 1:
            yield from map(work, jobs)
        else:
            yield from _pooled(work, jobs, processes)

    return run


def _pooled(work: Callable[[Job], Result], jobs: Iterable[Job], processes: int) -> Iterator[Result]:
    """New interpreters, since a fork of a process that has threads (torch, Ray) may hang."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        running: set[Future[Result]] = set()
        try:
            for job in jobs:
                running.add(pool.submit(work, job))
                if len(running) >= 2 * processes:  # never the whole list: a source may be endless
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died, perhaps of too little memory (fewer --processes take "
                "less); finished parts are kept, so the same command continues"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker of a killed parent would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker has a parent"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores() -> int:
    """The processors that this process may use, which in a container are not all there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
