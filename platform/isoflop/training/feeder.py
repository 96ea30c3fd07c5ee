"""Where does the next step's batch come from while this one computes? From a thread, one ahead.

    step s computes   |  the thread frames s + 1 .. s + ahead: rows -> batch -> pinned memory

What a batch holds is a pure function of its step, so the thread changes no bit of a run: it only
works earlier. An error in framing a batch is raised when the loop asks for that batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from isoflop.objectives import Batch

AHEAD = 2  # one is ready while the next is made; more would only hold memory


def ahead(device: str) -> int:
    """How many steps ahead batches are framed by default: some for a GPU, none on a CPU.

    A GPU computes by itself, and the loop's thread would let it wait. A trial on a CPU has one core
    for both: there framing takes a hundredth of a step, and the change of threads cost more.
    """
    return AHEAD if device.startswith("cuda") else 0


class Feeder:
    """The batches of the steps [start, stop), each asked for once, in order; a context manager."""

    def __init__(
        self,
        frame: Callable[[int], Batch],
        *,
        start: int,
        stop: int,
        device: str = "cpu",
        ahead: int = AHEAD,
    ) -> None:
        """`frame` gives a step's batch on the CPU; with `ahead` 0 it is called where it is asked.

        Raises ValueError for a negative `ahead`.
        """
        if ahead < 0:
            raise ValueError(f"ahead is {ahead}; it must be at least 0")
        self._frame, self._stop, self._ahead = frame, stop, ahead
        self._pins = device.startswith("cuda")
        self._asked = start  # the first step that nobody has asked the thread for
        self.waited = 0.0  # seconds that the loop stood still for batches, all together
        self._waiting: deque[Future[Batch]] = deque()
        self._thread = _thread(device) if ahead else None

    def batch(self, step: int) -> Batch:
        """The batch of the next step. Raises what framing it raised."""
        began = time.perf_counter()
        try:
            return self._next(step)
        finally:
            self.waited += time.perf_counter() - began

    def _next(self, step: int) -> Batch:
        if self._thread is None:
            return self._made(step)
        assert step == self._asked - len(self._waiting), f"step {step} is not the next one"
        self._ask(step + 1)
        found = self._waiting.popleft().result()
        self._ask(step + 1 + self._ahead)
        return found

    def close(self) -> None:
        """End the thread: what it has begun is finished, and no more is."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()

    def __enter__(self) -> Feeder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, end: int) -> None:
        """Have the thread frame the steps before `end`, as far as the run goes."""
        assert self._thread is not None
        while self._asked < min(end, self._stop):
            self._waiting.append(self._thread.submit(self._made, self._asked))
            self._asked += 1

    def _made(self, step: int) -> Batch:
        batch = self._frame(step)
        return batch.pinned() if self._pins else batch


def _thread(device: str) -> ThreadPoolExecutor:
    """One thread, which pins memory for the device of its own rank and for no other."""
    name = "isoflop-feeder"
    if not device.startswith("cuda"):
        return ThreadPoolExecutor(1, thread_name_prefix=name)
    place = torch.device(device)
    index = torch.cuda.current_device() if place.index is None else place.index
    return ThreadPoolExecutor(
        1, thread_name_prefix=name, initializer=torch.cuda.set_device, initargs=(index,)
    )
